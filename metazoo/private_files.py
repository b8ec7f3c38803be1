"""Files that hold secrets: mode 0600 from their first byte, and never seen half written."""

import os
import secrets
from pathlib import Path


def write(path: Path, text: str) -> None:
    """Write `text` to `path` by rename, readable by its owner alone."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
    draft.replace(path)
