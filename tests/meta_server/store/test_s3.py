"""The artefact store on S3 keeps the folder's promises, against a server of another make on loopback."""

from pathlib import Path

import boto3
import pytest

from meta_server.store.artifacts import ArtifactDamaged, ArtifactMissing, Artifacts

pytestmark = [
    pytest.mark.process,
    # the server's and botocore's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


def test_it_keeps_what_a_folder_keeps(s3_url: str, tmp_path: Path) -> None:
    url = s3_url
    one, other = Artifacts(url), Artifacts(url)
    assert one.list("a") == []
    one.write("a/b/one", b"1")
    one.write("a/two", b"2")
    other.write("a/two", b"22")
    assert one.read("a/two") == b"22"
    assert one.list("a") == ["a/b/one", "a/two"]
    boto3.client("s3").put_object(Bucket=url.split("/")[2], Key="metazoo/a/three", Body=b"by another process")
    assert one.list("a") == ["a/b/one", "a/three", "a/two"]  # no listing is remembered
    assert one.exists("a/three")
    boto3.client("s3").delete_object(Bucket=url.split("/")[2], Key="metazoo/a/three")
    assert not one.exists("a/three")
    with one.open("a/two") as file:
        file.seek(1)
        assert file.read() == b"2"
    assert (one.local("a") / "b" / "one").read_bytes() == b"1"
    assert one.modified("a/two").tzinfo is not None
    source = tmp_path / "made"
    source.mkdir()
    (source / "x").write_bytes(b"x")
    one.put_folder(source, "into/here")
    assert other.read("into/here/x") == b"x"
    path = one.keep("answers/a0.0", ".bin", b"paid for")
    one.write(path, b"something else")
    with pytest.raises(ArtifactDamaged):
        one.recall(path)
    one.remove_file("a/two")
    one.remove_file("a/two")
    one.remove("a")
    one.remove("a")
    assert one.list("a") == []
    for call in (one.read, one.open, one.local, one.modified):
        with pytest.raises(ArtifactMissing):
            call("nothing")
