"""Fetches public data sets into the folder of data sets: over pooch, which checks every file against its digest."""

import shutil
import sys
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dfml.datasets.sources import Download

CHUNK = 2**16  # bytes between two moves of the bar
PATIENCE = 60  # seconds that a server may be silent


class NotFetched(Exception):
    """A file could not be fetched, or is not the one that was published. The message says what to do."""


def fetch(download: Download, root: Path) -> Path:
    """The file, or the folder that it holds, in `root`; what is there and whole is not fetched again. Raises NotFetched.

    A file appears under its name when it is whole and its digest right, never before.
    """
    import pooch
    import requests

    if download.folder is not None and (root / download.folder).is_dir():
        return root / download.folder
    root.mkdir(parents=True, exist_ok=True)
    pooch.get_logger().setLevel("ERROR")  # the bar tells what its lines would
    try:
        with _bar(download.file) as bar:
            downloader = pooch.HTTPDownloader(progressbar=bar, chunk_size=CHUNK, timeout=PATIENCE)
            path = Path(
                pooch.retrieve(download.url, download.digest, fname=download.file, path=root, downloader=downloader)
            )
    except ValueError as error:  # pooch's word for another digest
        raise NotFetched(
            f"{download.url} is not the file that was published: its digest is not {download.digest}. Nothing was kept: "
            "try again, or get it elsewhere"
        ) from error
    except (requests.RequestException, OSError) as error:
        raise NotFetched(f"{download.url} could not be fetched: {error}") from error
    return path if download.folder is None else _unpacked(path, download.folder)


def _unpacked(path: Path, folder: str) -> Path:
    """The folder that an archive holds, beside it; the archive is of no more use then."""
    draft = path.with_name(f".{path.name}.unpacking")
    try:
        with tarfile.open(path) as archive:
            archive.extractall(draft, filter="data")  # refuses links and paths that lead out
        (draft / folder).rename(path.with_name(folder))
        path.unlink()
    except (tarfile.TarError, OSError) as error:
        raise NotFetched(f"{path} could not be unpacked: {error}; remove it and get it again") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return path.with_name(folder)


class _Bar:
    """What pooch moves, as rich shows it. It is closed by whoever made it."""

    def __init__(self, progress: Any, task: Any) -> None:
        self._progress, self._task = progress, task

    @property
    def total(self) -> float:
        return float(self._progress.tasks[self._task].total or 0)

    @total.setter
    def total(self, value: float) -> None:
        self._progress.update(self._task, total=value or None)

    def update(self, n: int) -> None:
        self._progress.advance(self._task, n)

    def reset(self) -> None:
        """Pooch resets before its last step to leave the bar full."""
        self._progress.update(self._task, completed=0)

    def close(self) -> None:
        pass


@contextmanager
def _bar(name: str) -> Iterator[Any]:
    """A bar in a terminal, silence elsewhere."""
    if not sys.stderr.isatty():
        yield False
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = [TextColumn(name), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield _Bar(progress, progress.add_task(name, total=None))
