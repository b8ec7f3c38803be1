"""Files of meta-models and adapted models as downloads: streamed, and named by what they hold."""

from collections.abc import Iterator, Mapping
from os import SEEK_END
from typing import BinaryIO

from anyio import to_thread
from fastapi.responses import Response, StreamingResponse

from contracts.problems import ProblemError
from meta_server.store.artifacts import Artifacts

CHUNK = 2**18  # bytes

_TYPES = {"json": "application/json", "md": "text/markdown; charset=utf-8"}


async def send_file(
    artifacts: Artifacts, folder: str, digests: Mapping[str, str], name: str, known: str | None
) -> Response:
    """The file `name` of a folder, whose files have these SHA-256; 304 if `known`, an `If-None-Match`, names what it holds.

    Raises `ProblemError` (not-found).
    """
    if name not in digests:
        raise ProblemError("not-found", f"it has no file {name!r}, but: {', '.join(sorted(digests))}")
    etag = f'"{digests[name]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if known is not None and (
        known.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]
    ):
        return Response(status_code=304, headers=headers)
    file, size = await to_thread.run_sync(_open, artifacts, f"{folder}/{name}")
    headers["Content-Length"] = str(size)
    kind = _TYPES.get(name.rpartition(".")[2], "application/octet-stream")
    return StreamingResponse(_chunks(file), headers=headers, media_type=kind)


def _open(artifacts: Artifacts, path: str) -> tuple[BinaryIO, int]:
    file = artifacts.open(path)
    size = file.seek(0, SEEK_END)
    file.seek(0)
    return file, size


def _chunks(file: BinaryIO) -> Iterator[bytes]:
    """Read in a thread by the response, so it may block."""
    with file:
        while chunk := file.read(CHUNK):
            yield chunk
