"""Files of a meta-model as downloads: streamed, and named by what they hold."""

from collections.abc import Iterator
from os import SEEK_END
from typing import BinaryIO

from anyio import to_thread
from fastapi.responses import Response, StreamingResponse

from contracts.problems import ProblemError
from meta_server.services import Services
from meta_server.store.artifacts import Artifacts

CHUNK = 2**18  # bytes

_TYPES = {"json": "application/json", "md": "text/markdown; charset=utf-8"}


async def send_file(services: Services, meta_model_id: str, name: str, known: str | None) -> Response:
    """The file `name`; 304 if `known`, an `If-None-Match`, names what it holds. Raises `ProblemError` (not-found)."""
    model = await services.meta_models.get(meta_model_id)
    if name not in model.files:
        raise ProblemError("not-found", f"it has no file {name!r}, but: {', '.join(sorted(model.files))}")
    etag = f'"{model.files[name]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache"}
    if known is not None and (
        known.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]
    ):
        return Response(status_code=304, headers=headers)
    path = f"{await services.meta_models.folder(meta_model_id)}/{name}"
    file, size = await to_thread.run_sync(_open, services.artifacts, path)
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
