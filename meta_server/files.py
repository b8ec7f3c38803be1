"""Files of meta-models and adapted models as downloads: streamed, and named by what they hold."""

import re
from collections.abc import Iterator, Mapping
from os import SEEK_END
from typing import Annotated, Any, BinaryIO

from anyio import to_thread
from fastapi import Header
from fastapi.responses import Response, StreamingResponse

from contracts.problems import ProblemError
from meta_server.store.artifacts import ArtifactMissing, Artifacts

CHUNK = 2**18  # bytes
BYTES: dict[str, Any] = {"application/octet-stream": {}}

Range = Annotated[
    str | None,
    Header(
        alias="Range", description="`bytes=FIRST-LAST`, `bytes=FIRST-` or `bytes=-COUNT` for a part.", max_length=100
    ),
]

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{0,18})|-(\d{1,18}))")

_TYPES = {"json": "application/json", "md": "text/markdown; charset=utf-8"}


async def send_file(
    artifacts: Artifacts,
    folder: str,
    digests: Mapping[str, str],
    name: str,
    known: str | None,
    wanted: str | None = None,
) -> Response:
    """The file `name` of a folder, whose files have these SHA-256, or the part of it that the `Range` `wanted` names.

    304 if `known`, an `If-None-Match`, names what it holds. Raises `ProblemError` (`not-found`, `range-not-satisfiable`).
    """
    if name not in digests:
        raise ProblemError("not-found", f"it has no file {name!r}, but: {', '.join(sorted(digests))}")
    etag = f'"{digests[name]}"'
    headers = {"ETag": etag, "Cache-Control": "private, no-cache", "Accept-Ranges": "bytes"}
    if known is not None and (
        known.strip() == "*" or etag in [tag.strip().removeprefix("W/") for tag in known.split(",")]
    ):
        return Response(status_code=304, headers=headers)
    return await send(artifacts, f"{folder}/{name}", headers=headers, wanted=wanted)


async def send(
    artifacts: Artifacts, path: str, *, headers: dict[str, str] | None = None, wanted: str | None = None
) -> Response:
    """The file at `path` of the artefact store, or the part that the `Range` `wanted` names; one it cannot read is ignored.

    Raises `ProblemError` (`not-found`, `range-not-satisfiable`).
    """
    try:
        file, size = await to_thread.run_sync(_open, artifacts, path)
    except ArtifactMissing:
        raise ProblemError("not-found", "the file is no longer in the artefact store") from None
    headers = {"Accept-Ranges": "bytes"} | (headers or {})
    kind = _TYPES.get(path.rpartition(".")[2], "application/octet-stream")
    part = _part(wanted, size)
    start, stop = part or (0, size)
    if start >= stop and part is not None:
        file.close()
        raise ProblemError(
            "range-not-satisfiable", f"the file has {size} bytes", headers={"Content-Range": f"bytes */{size}"}
        )
    headers["Content-Length"] = str(stop - start)
    if part is not None:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
    status = 200 if part is None else 206
    return StreamingResponse(_chunks(file, start, stop), status_code=status, headers=headers, media_type=kind)


def _part(wanted: str | None, size: int) -> tuple[int, int] | None:
    """The bytes (start, stop) that a `Range` names, empty where the file has none of them; None for the whole file."""
    found = _RANGE.fullmatch(wanted.strip()) if wanted else None
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        return max(0, size - int(suffix)), size
    start = int(first)
    if last and int(last) < start:
        return None  # no valid range: as if there was none (RFC 9110, 14.1.1)
    return start, min(int(last) + 1 if last else size, size)


def _open(artifacts: Artifacts, path: str) -> tuple[BinaryIO, int]:
    file = artifacts.open(path)
    size = file.seek(0, SEEK_END)
    file.seek(0)
    return file, size


def _chunks(file: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    """Read in a thread by the response, so it may block."""
    with file:
        file.seek(start)
        while start < stop and (chunk := file.read(min(CHUNK, stop - start))):
            start += len(chunk)
            yield chunk
