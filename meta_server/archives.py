"""Folders of the artefact store as one zip, written while it is sent: no more than a piece of a file is in memory."""

from collections.abc import Iterable, Iterator
from zipfile import ZipFile, ZipInfo

from fastapi.responses import StreamingResponse

from meta_server.files import CHUNK
from meta_server.store.artifacts import Artifacts

_EARLIEST = (1980, 1, 1, 0, 0, 0)  # the same files make the same zip, whenever it is asked for


def send_archive(artifacts: Artifacts, folder: str, names: Iterable[str], *, title: str) -> StreamingResponse:
    """The files of these names in a zip, in a folder called `title`, which is safe in a header: an id of ours."""
    headers = {"Content-Disposition": f'attachment; filename="{title}.zip"', "Cache-Control": "private, no-cache"}
    body = _zipped(artifacts, folder, sorted(names), title)
    return StreamingResponse(body, headers=headers, media_type="application/zip")


def _zipped(artifacts: Artifacts, folder: str, names: list[str], title: str) -> Iterator[bytes]:
    """Read in a thread by the response, so it may block. Stored, not deflated: weights do not shrink."""
    sink = _Sink()
    with ZipFile(sink, "w") as archive:  # type: ignore[call-overload]  # it needs `write` and `flush` alone
        for name in names:
            entry = ZipInfo(f"{title}/{name}", date_time=_EARLIEST)
            entry.external_attr = 0o644 << 16
            with artifacts.open(f"{folder}/{name}") as source, archive.open(entry, "w") as target:
                while chunk := source.read(CHUNK):
                    target.write(chunk)
                    yield sink.taken()
    yield sink.taken()


class _Sink:
    """Holds what was written until it is taken."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        self._held += data
        return len(data)

    def flush(self) -> None:
        """Nothing waits anywhere else."""

    def taken(self) -> bytes:
        held, self._held = bytes(self._held), bytearray()
        return held
