"""Files from the server, whole or not at all; and folders, each file checked by its SHA-256, kept if it is there already."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import quote

from client._flow import Flow, Request, retried
from client.errors import InvalidAnswer


def download(path: str, digests: Mapping[str, str], folder: Path, *, retries: int) -> Flow[Path]:
    """Put the files below `path` on the server into `folder`, made if need be.

    Raises `InvalidAnswer` when a file has no plain name or arrives damaged.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, digest in digests.items():
        if Path(name).name != name or name in {"", ".", ".."}:
            raise InvalidAnswer(f"{path}: {name!r} is no plain file name; nothing was written to it")
        target, part = folder / name, folder / f".{name}.part"
        if target.is_file() and _sha256(target) == digest:
            continue
        try:
            yield from retried(Request("GET", f"{path}/files/{quote(name, safe='')}", save_to=part), retries=retries)
            if _sha256(part) != digest:
                raise InvalidAnswer(f"{path}: {name} arrived damaged: download it again")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return folder


def download_file(url: str, path: str | os.PathLike[str], retries: int, **params: int) -> Flow[Path]:
    """Put what `url` answers at `path`: what arrives lies beside it until it is complete."""
    target = Path(path)
    part = target.with_name(f".{target.name}.part")
    try:
        yield from retried(Request("GET", url, params=params, save_to=part), retries=retries)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target


def cached(model_id: str) -> Path:
    """Where files of a model are kept between runs: below `XDG_CACHE_HOME`, or `~/.cache`."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "metazoo" / quote(model_id, safe="")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
