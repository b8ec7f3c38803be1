"""The small zoo of glyph teachers that `metazoo up` and `metazoo demo` host when they are given none."""

import subprocess
import sys
from pathlib import Path

from rich.console import Console

TEACHERS = 12


def ensure(folder: Path, console: Console) -> Path:
    """The zoo folder, trained on first use (about two minutes on two cores); an interrupted build goes on.

    Raises `SystemExit` with the builder's own exit code when it fails: it has already said why.
    """
    if not (folder / "manifest.json").exists():
        console.print(f"Training {TEACHERS} glyph teachers into {folder}; this happens once.", markup=False)
    build = ["zoo", "build", "--dataset", "glyphs", "--teachers", str(TEACHERS), "--ways", "5", "--seed", "0"]
    command = [sys.executable, "-m", "metazoo", *build, "--out", str(folder)]
    done = subprocess.run(command, check=False, stdout=subprocess.DEVNULL)  # which says to host it: so do we
    if done.returncode:
        raise SystemExit(done.returncode)
    return folder
