"""MLServer in an environment of its own, serving one exported teacher: what the zoo is compared with.

MLServer pins fastapi < 0.116, so it cannot live in ours. Its environment is made once, in `METAZOO_CACHE` (default
`~/.cache/metazoo`), and sees the torch that is here behind its own packages: nothing heavy is installed twice.
"""

import json
import os
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import nn

from metazoo.redis_server import free_port

VERSION = "1.7.1"
PACKAGES = (
    f"mlserver=={VERSION}",
    "uvloop<0.22",
)  # whose event loops its workers need: later ones are not made unasked
NAME = "teacher"

RUNTIME = """
import numpy
import torch
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Teacher(MLModel):
    async def load(self) -> bool:
        torch.set_num_threads(1)
        self.model = torch.export.load(self.settings.parameters.uri).module()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        images = numpy.array(NumpyCodec.decode_input(payload.inputs[0]), dtype=numpy.float32)
        with torch.inference_mode():
            answers = self.model(torch.from_numpy(images)).softmax(-1).numpy()
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("probabilities", answers)])
"""


class EnvironmentUnavailable(Exception):
    """MLServer cannot be installed here."""


def environment() -> Path:
    """Python of the environment, made if it is not there. Raises `EnvironmentUnavailable`."""
    cache = Path(os.environ.get("METAZOO_CACHE", Path.home() / ".cache" / "metazoo"))
    folder = cache / f"mlserver-{VERSION}-py{sys.version_info.major}{sys.version_info.minor}"
    python = folder / "bin" / "python"
    stamp = folder / ".complete"
    if not stamp.exists():
        venv.create(folder, with_pip=True, clear=True)
        install = [
            str(python),
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            *PACKAGES,
        ]
        try:
            subprocess.run(install, check=True, timeout=500, capture_output=True)
        except (subprocess.SubprocessError, OSError) as error:
            raise EnvironmentUnavailable(f"mlserver {VERSION} cannot be installed: {error}") from error
        stamp.touch()
    ours = Path(sysconfig.get_paths(vars={"base": str(folder), "platbase": str(folder)})["purelib"]) / "behind.pth"
    ours.write_text(sysconfig.get_paths()["purelib"] + "\n")  # searched after its own packages
    return python


@dataclass(frozen=True)
class MLServer:
    """A running MLServer; `host:port` of each transport."""

    http: str
    grpc: str
    process: "subprocess.Popen[bytes]"

    @property
    def url(self) -> str:
        """The model's URL, as a job takes it."""
        return f"http://{self.http}/v2/models/{NAME}"


@contextmanager
def serving(
    module: nn.Module,
    input_shape: tuple[int, int, int],
    ways: int,
    folder: Path,
    *,
    http: int | None = None,
    parallel_workers: int = 0,
    cores: Sequence[int] | None = None,
) -> Iterator[MLServer]:
    """Export `module` (images to logits) into `folder` and serve it until the end of the block, on `cores`.

    `http` is the port to listen on, any that is free where none is given. Raises `EnvironmentUnavailable`.
    """
    python = environment()
    folder.mkdir(parents=True, exist_ok=True)
    images = torch.rand((2, *input_shape))
    exported = torch.export.export(module, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(exported, folder / "teacher.pt2")
    (folder / "teacher_runtime.py").write_text(RUNTIME)
    http, grpc, metrics = http or free_port(), free_port(), free_port()
    settings: dict[str, Any] = {
        "host": "127.0.0.1",
        "http_port": http,
        "grpc_port": grpc,
        "metrics_port": metrics,
        "parallel_workers": parallel_workers,
        "debug": False,
        "grpc_max_message_length": 2**27,
    }
    model = {
        "name": NAME,
        "implementation": "teacher_runtime.Teacher",
        "parameters": {"uri": str(folder / "teacher.pt2")},
        "max_batch_size": 64,
        "max_batch_time": 0.005,
        "inputs": [{"name": "images", "datatype": "FP32", "shape": [-1, *input_shape]}],
        "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, ways]}],
    }
    (folder / "settings.json").write_text(json.dumps(settings))
    (folder / "model-settings.json").write_text(json.dumps(model))
    log = folder / "log"
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [str(python.with_name("mlserver")), "start", str(folder)],
            env={**kept, "PYTHONPATH": str(folder)},
            cwd=folder,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        if cores is not None:
            os.sched_setaffinity(process.pid, cores)  # before its workers start: they inherit it
        server = MLServer(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", process)
        _wait(server, log)
        yield server
    finally:
        os.killpg(process.pid, 15)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()


def _wait(server: MLServer, log: Path, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and server.process.poll() is None:
        try:
            if httpx.get(f"{server.url}/ready", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise EnvironmentUnavailable(f"MLServer did not start: {log.read_text()[-2000:]}")
