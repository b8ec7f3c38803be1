"""The artefact store on S3: the folder's promises, and a whole job, against a server of another make on loopback."""

from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from meta_server.store.artifacts import ArtifactDamaged, ArtifactMissing, Artifacts

pytestmark = [
    pytest.mark.process,
    # the server's and botocore's own
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning"),
]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def url(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    bucket = tmp_path.name.replace("_", "-").lower()
    boto3.client("s3").create_bucket(Bucket=bucket)
    return f"s3://{bucket}/metazoo"


def test_it_keeps_what_a_folder_keeps(url: str, tmp_path: Path) -> None:
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
