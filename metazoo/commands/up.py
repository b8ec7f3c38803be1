"""`metazoo up`: everything on this machine, on loopback, until Ctrl-C."""

import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console

DATA_DIR = Path.home() / ".local" / "share" / "metazoo"


def up(
    zoo: Annotated[
        Path | None, typer.Option(help="Zoo folder to host. Default: DATA_DIR/zoo, made of glyph teachers if missing.")
    ] = None,
    data_dir: Annotated[
        Path, typer.Option(envvar="METAZOO_HOME", help="Keeps Redis, artefacts, secrets and logs.")
    ] = DATA_DIR,
    ready_file: Annotated[
        Path | None,
        typer.Option(
            help="Where to write addresses and keys as JSON, and for shells beside it (.env). Default: DATA_DIR/ready.json."
        ),
    ] = None,
    acquirers: Annotated[int, typer.Option(min=1, help="APIs asked at once.")] = 32,
) -> None:
    """Start Redis, the zoo, the server and two workers on this machine; stop them all on Ctrl-C.

    A part that ends by itself is started again, and jobs go on.
    """
    from metazoo import private_files
    from metazoo.demo_zoo import ensure
    from metazoo.stack import Stack, StackError

    console = Console(stderr=True, highlight=False)
    signal.signal(signal.SIGTERM, interrupt)
    data_dir = data_dir.absolute()
    ready_file = (ready_file or data_dir / "ready.json").absolute()
    shell_file = ready_file.with_suffix(".env")
    if shell_file == ready_file:
        raise typer.BadParameter("end it in .json: what shells source is written beside it, as .env")
    try:
        folder = zoo.absolute() if zoo else ensure(data_dir / "zoo", console)
        stack = Stack(data_dir, folder, acquirers, on_ready=lambda name: console.print(f"  {name:8} ready"))
        with stack:
            private_files.write(shell_file, stack.ready.to_shell(ready_file))
            private_files.write(ready_file, stack.ready.to_json())
            console.print(f"zoo        {stack.ready.zoo_url}  ({len(stack.ready.models)} models)")
            console.print(f"server     {stack.ready.server_url}  (API reference at /docs)")
            console.print(f"dashboard  {stack.ready.server_url}/  (sign in with METAZOO_API_KEY)")
            console.print(f"keys       {ready_file}", soft_wrap=True)
            console.print(f"next       source {shell_file}  (in another shell)", soft_wrap=True)
            console.print("Ctrl-C stops everything.")
            try:
                while True:
                    if told := stack.revive():
                        console.print(f"{told} and is started again; jobs go on", markup=False)
                        private_files.write(ready_file, stack.ready.to_json())
                    time.sleep(0.2)
            finally:
                ready_file.unlink(missing_ok=True)
                shell_file.unlink(missing_ok=True)
    except StackError as error:
        console.print(f"metazoo up: {error}", markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("stopped")


def interrupt(number: int, frame: FrameType | None) -> None:
    """Signal handler: end as Ctrl-C does, so that every `with` and `finally` runs."""
    raise KeyboardInterrupt
