"""Takes the JavaScript libraries of the server's pages from npm when the package is built or installed, checked by SHA-256.

They are not in the repository and no page loads them from elsewhere. Files that are there already are used as they are,
if their hashes are right: put them there by hand where the registry cannot be reached.
"""

import hashlib
import io
import tarfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

FOLDER = "meta_server/dashboard/static/vendor"
REGISTRY = "https://registry.npmjs.org"
TRIES = 3


@dataclass(frozen=True)
class Library:
    """One file of one npm package; `digest` is the file's SHA-256."""

    package: str
    version: str
    path: str
    digest: str

    @property
    def url(self) -> str:
        """Where npm keeps the package."""
        return f"{REGISTRY}/{self.package}/-/{self.package}-{self.version}.tgz"

    @property
    def name(self) -> str:
        """The file's name in the dashboard."""
        return self.path.rpartition("/")[2]

    def right(self, content: bytes) -> bool:
        """Whether this is the file."""
        return sha256(content) == self.digest

    def fetch(self) -> bytes:
        """The file from npm. Raises `OSError`, `ValueError` when it is another file."""
        with urllib.request.urlopen(self.url, timeout=60) as answer:  # noqa: S310, an https constant
            packed = io.BytesIO(answer.read())
        with tarfile.open(fileobj=packed, mode="r:gz") as archive:
            member = archive.extractfile(f"package/{self.path}")
            content = b"" if member is None else member.read()
        if not self.right(content):
            raise ValueError(f"{self.url} does not hold the {self.path} that was reviewed")
        return content


LIBRARIES = (
    Library(
        "plotly.js-basic-dist-min",  # lines and bars, without eval; a quarter of the size of the strict build
        "4.1.1",
        "plotly-basic.min.js",
        "99784e3abfb07b142a15e521a439e6d9addceadb3f79553fd24c72774f0649ba",
    ),
    Library(
        "idiomorph",
        "0.8.0",
        "dist/idiomorph.min.js",
        "4cbd535caf7663a51eda9bce6595371c384fc430d54b8d414e29a61167f19f96",
    ),
    Library(
        "swagger-ui-dist",
        "5.35.0",
        "swagger-ui-bundle.js",
        "e6a898692f2d768e807c3ba4626068a69a2c5dd960dd6c76f3e4d3a3de180af2",
    ),
    Library(
        "swagger-ui-dist",
        "5.35.0",
        "swagger-ui.css",
        "5ed08757e53da3e026d6cbecc61fe5d43585c9560b302d534ad56692519a273d",
    ),
)


class Vendor(BuildHookInterface[Any]):
    """A wheel is not built without the libraries. An editable install without npm goes on: pages then say what is missing."""

    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before it collects files; `version` is `standard` or `editable`."""
        folder = Path(self.root) / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        for library in LIBRARIES:
            try:
                _have(library, folder / library.name)
            except OSError as error:
                message = (
                    f"{library.url} cannot be reached ({error}): put its {library.path} at {folder / library.name}"
                )
                if version != "editable":
                    raise OSError(message) from error
                self.app.display_warning(f"The dashboard will be without {library.name}: {message}")


def sha256(content: bytes) -> str:
    """The digest that names a file here."""
    return hashlib.sha256(content).hexdigest()


def _have(library: Library, file: Path) -> None:
    if file.exists() and library.right(file.read_bytes()):
        return
    for left in reversed(range(TRIES)):
        try:
            file.write_bytes(library.fetch())
        except OSError:
            if not left:
                raise
        else:
            return
