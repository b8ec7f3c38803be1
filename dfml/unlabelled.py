"""Images of one's own, without labels, as what is asked about (the LDFML setting). numpy and Pillow only.

They come as a zip of PNG, JPEG and WebP files, which is never unpacked to disk: `ImageArchive` reads one image at a time. All
of it is checked before it is used, its directory before anything is read by it.
"""

import struct
import zipfile
import zlib
from collections.abc import Sequence
from io import BytesIO

import numpy as np
from numpy.typing import NDArray

from contracts.image_sets import FEWEST, MOST
from dfml.picture_files import BadPicture, opened, pixels

LARGEST_FILE = 32 * 2**20  # bytes of one image file
MOST_BYTES = 512 * 2**20  # of all files, unpacked
MOST_PIXELS = 500_000_000  # of all images: seconds of decoding
_END = b"PK\x05\x06"  # the record at the end of a zip, 22 bytes where it has no comment
_ZIP64 = b"PK\x06\x07"
_ENTRY = 400  # bytes of the directory for an image, path and all

# What zipfile raises for archives that are damaged or none.
_BROKEN = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    struct.error,
)


class BadArchive(ValueError):
    """The archive cannot be used. `faults`: (file, what is wrong with it), of the first few."""

    def __init__(self, message: str, faults: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.faults = list(faults)


class ImageArchive:
    """The images of a zip, in the order of their names: all files but those in folders that hide themselves.

    Raises `BadArchive` for what is no zip, or holds too few or too many files, or larger ones than it may.
    """

    def __init__(self, content: bytes) -> None:
        _check_directory(content)
        try:
            self._zip = zipfile.ZipFile(BytesIO(content))
        except _BROKEN:
            raise BadArchive("it is no zip archive, or is damaged") from None
        listed = [entry for entry in self._zip.infolist() if not entry.is_dir() and not _hidden(entry.filename)]
        self._entries = sorted(listed, key=lambda entry: entry.filename)
        if not FEWEST <= len(self._entries) <= MOST:
            raise BadArchive(f"it holds {len(self._entries)} images: give {FEWEST} to {MOST}")
        if sum(entry.file_size for entry in self._entries) > MOST_BYTES:
            raise BadArchive(f"its files are more than {MOST_BYTES} bytes unpacked: make the images smaller")

    def __len__(self) -> int:
        return len(self._entries)

    def check(self) -> None:
        """Decode every image once. Raises `BadArchive` that names the files which cannot be used; takes seconds."""
        faults, unpacked = [], 0
        for entry in self._entries:
            try:
                image = opened(self._read(entry))
                unpacked += image.width * image.height
                if unpacked > MOST_PIXELS:
                    raise BadArchive(f"its images have more than {MOST_PIXELS} pixels together: make them smaller")
                pixels(image, (3, 8, 8))
            except BadPicture as error:
                faults.append((entry.filename, str(error)))
            if len(faults) == 10:
                break
        if faults:
            told = "; ".join(f"{name[:100]}: {why}" for name, why in faults)
            raise BadArchive(f"files of it cannot be used: {told}", faults)

    def image(self, index: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """The image at a place, turned upright and resized (bilinear): uint8 (3, height, width). Raises `BadPicture`."""
        return pixels(opened(self._read(self._entries[index])), (3, *size))

    def _read(self, entry: zipfile.ZipInfo) -> bytes:
        if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadPicture("it is encrypted, or packed otherwise than stored or deflated")
        if entry.file_size > LARGEST_FILE:
            raise BadPicture(f"it is larger than {LARGEST_FILE} bytes")
        try:
            return self._zip.read(entry)  # no more than `file_size`
        except _BROKEN:
            raise BadPicture("it cannot be unpacked") from None


class OwnImages:
    """The pool of a job: the images of an archive in an order drawn from the seed, none twice, as of one size."""

    def __init__(self, archive: ImageArchive, *, seed: int, size: tuple[int, int]) -> None:
        self._archive, self._size = archive, size
        self._order = order(len(archive), seed=seed)

    def images(self, indices: Sequence[int] | NDArray[np.int64]) -> NDArray[np.uint8]:
        """The images at these places of the pool: uint8 (n, 3, height, width)."""
        chosen = self._order[np.asarray(indices, np.int64).reshape(-1)]
        made = [self._archive.image(index, self._size) for index in chosen.tolist()]
        return np.stack(made) if made else np.empty((0, 3, *self._size), np.uint8)


def order(count: int, *, seed: int) -> NDArray[np.int64]:
    """In which order images of one's own are asked about, so that a part of them is drawn at random."""
    return np.random.RandomState(seed).permutation(count).astype(np.int64)


def _hidden(path: str) -> bool:
    """Whether a file or a folder above it hides itself, as what archivers add does."""
    return any(part.startswith((".", "__MACOSX")) for part in path.split("/"))


def _check_directory(content: bytes) -> None:
    """Refuse a directory that would fill memory when it is read; one that ends otherwise than usual is not looked for."""
    end = content[-22:]
    if len(end) < 22 or not end.startswith(_END):
        raise BadArchive("it is no zip archive, or ends with a comment: make it anew, without one")
    entries, size = struct.unpack("<HI", end[10:16])
    if content[-42:-38] == _ZIP64 or entries > 2 * MOST or size > _ENTRY * MOST:
        raise BadArchive(f"it lists more than {MOST} files: give {FEWEST} to {MOST}")
