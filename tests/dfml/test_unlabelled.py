"""Archives of images that anyone may have sent: what is read, what is refused before it is, and that nothing fills memory."""

import io
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dfml import unlabelled
from dfml.picture_files import BadPicture
from dfml.unlabelled import BadArchive, ImageArchive, OwnImages, order


def picture(shade: int, kind: str = "PNG", size: tuple[int, int] = (12, 10)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 255 - shade, 7)).save(file, kind)
    return file.getvalue()


def zipped(files: dict[str, bytes], **options: Any) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", **options) as archive:
        for name, held in files.items():
            archive.writestr(name, held)
    return content.getvalue()


def pictures(count: int = 16) -> dict[str, bytes]:
    return {f"{index:03d}.png": picture(10 * index) for index in range(count)}


def test_images_come_in_the_order_of_the_seed_none_twice_resized() -> None:
    archive = ImageArchive(zipped(pictures()))
    archive.check()
    assert len(archive) == 16
    pool = OwnImages(archive, seed=3, size=(8, 9))
    got = pool.images(range(16))
    assert (got.shape, got.dtype) == ((16, 3, 8, 9), np.uint8)
    drawn = order(16, seed=3)
    assert got[:, 0, 0, 0].tolist() == [10 * index for index in drawn]
    assert sorted(drawn) == list(range(16))
    assert (pool.images(np.array([5, 2])) == got[[5, 2]]).all()
    assert (OwnImages(archive, seed=4, size=(8, 9)).images(range(16)) != got).any()
    assert pool.images([]).shape == (0, 3, 8, 9)


def test_folders_and_what_hides_itself_are_no_images() -> None:
    hidden = {"__MACOSX/._a.png": b"x", ".DS_Store": b"x", "a/.git/b": b"x", "folder/": b""}
    files = {f"folder/{name}": content for name, content in pictures().items()}
    archive = ImageArchive(zipped(hidden | files, compression=zipfile.ZIP_DEFLATED))
    archive.check()
    assert len(archive) == 16


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no zip archive"),
        (b"PK\x05\x06" + b"\x00" * 18, "holds 0 images"),
        (zipped(pictures(15)), "holds 15 images: give 16"),
        (zipped(pictures())[:-30] + zipped(pictures())[-22:], "damaged"),
        (zipped(pictures()) + b"comment", "no zip archive"),
        (zipped(pictures())[:-12] + struct.pack("<HII", 60_000, 900, 0) + b"\x00\x00", "lists more than"),
        (zipped(pictures())[:-12] + struct.pack("<HII", 16, 2**31, 0) + b"\x00\x00", "lists more than"),
    ],
    ids=["nothing", "empty", "few", "cut", "comment", "many", "large directory"],
)
def test_what_is_no_archive_of_images_is_refused(content: bytes, words: str) -> None:
    with pytest.raises(BadArchive, match=words):
        ImageArchive(content)


def test_a_directory_of_64_bits_is_not_followed() -> None:
    """It could name any number of files anywhere."""
    plain = zipped(pictures())
    with pytest.raises(BadArchive, match="lists more than"):
        ImageArchive(plain[:-22] + struct.pack("<IIQI", 0x07064B50, 0, 0, 1) + plain[-22:])


def test_every_file_that_cannot_be_used_is_named() -> None:
    files = pictures() | {"notes.txt": b"hello", "cut.png": picture(3)[:45]}
    with pytest.raises(BadArchive, match=r"notes\.txt") as refused:
        ImageArchive(zipped(files)).check()
    assert dict(refused.value.faults).keys() == {"notes.txt", "cut.png"}


@pytest.mark.parametrize(
    ("limit", "value", "words"),
    [
        ("MOST_BYTES", 1000, "unpacked"),
        ("MOST_PIXELS", 1000, "pixels together"),
        ("LARGEST_FILE", 20, "larger than 20"),
    ],
)
def test_what_is_larger_than_it_may_be_is_refused(
    monkeypatch: pytest.MonkeyPatch, limit: str, value: int, words: str
) -> None:
    monkeypatch.setattr(unlabelled, limit, value)
    with pytest.raises(BadArchive, match=words):
        ImageArchive(zipped(pictures())).check()


def test_a_bomb_is_refused_by_what_it_states_and_not_unpacked_beyond() -> None:
    bomb = zipped(pictures() | {"z.png": b"\x00" * (unlabelled.LARGEST_FILE + 1)}, compression=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 200_000
    with pytest.raises(BadArchive, match="larger than"):
        ImageArchive(bomb).check()
    size = struct.pack("<I", unlabelled.LARGEST_FILE + 1)
    assert bomb.count(size) == 2
    lying = bomb.replace(size, struct.pack("<I", 40))
    with pytest.raises(BadArchive, match=r"z\.png: it cannot be unpacked"):
        ImageArchive(lying).check()


def test_other_packings_are_refused() -> None:
    with pytest.raises(BadArchive, match="packed otherwise"):
        ImageArchive(zipped(pictures(), compression=zipfile.ZIP_LZMA)).check()


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_archive_with_any_bytes_changed_is_refused_or_read(data: st.DataObject) -> None:
    """Never another error."""
    content = bytearray(zipped(pictures(), compression=zipfile.ZIP_DEFLATED))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        archive = ImageArchive(bytes(content))
        archive.check()
    except BadArchive:
        return
    read: Callable[[], Any] = lambda: OwnImages(archive, seed=0, size=(8, 8)).images(range(len(archive)))  # noqa: E731
    try:
        assert read().shape == (len(archive), 3, 8, 8)
    except BadPicture:
        pytest.fail("it was checked")
