"""The zoo against plain PyTorch and against MLServer: images a second, milliseconds, memory.

The same Conv4-32 with 3x32x32 images, FP32 on the wire; the server on one core with one thread, clients and Redis (on disk
before it answers, `appendfsync always`) on another. The last line printed is JSON.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import httpx
import numpy as np
import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save
from torch import nn

from benchmarks.rig import load, mlserver
from contracts import oip
from contracts.zoo import Normalisation
from dfml.nets import Classifier, build_classifier, weights
from metazoo import redis_server

SHAPE, WAYS, WIDTH, BATCH = (3, 32, 32), 5, 32, 512
NORMALISE = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
ADMIN = "the-admin-key-of-the-benchmark"
BATCHES = (1, 8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Zoo:
    """A zoo that serves, and a key of it."""

    address: str
    key: str
    pid: int
    model: str
    seconds: float  # until it was ready

    def request(self, body: bytes, headers: dict[str, str]) -> bytes:
        """An infer request of the key."""
        return load.post(
            self.address, f"/v2/models/{self.model}/infer", body, {**headers, "Authorization": f"Bearer {self.key}"}
        )

    def peak_mb(self) -> float:
        """Most memory that the process had at once, in MiB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def textbook(teacher: Classifier) -> nn.Module:
    """The teacher as a textbook writes it, images to logits: conv, norm, ReLU, pool, in PyTorch's default layout."""
    layers: list[nn.Module] = []
    for block in teacher.body.blocks:
        layers += [block.get_submodule("conv"), block.get_submodule("norm"), nn.ReLU(), nn.MaxPool2d(2)]
    network = nn.Sequential(*layers, nn.Flatten(), teacher.head)
    for weight in network.parameters():
        weight.data = weight.data.contiguous()

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network
            self.mean, self.std = teacher.normalise.get_buffer("mean"), teacher.normalise.get_buffer("std")

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            answers: torch.Tensor = self.network((images - self.mean) / self.std)
            return answers

    return Plain().eval()


def teacher(seed: int = 0) -> Classifier:
    """Untrained: speed does not depend on what was learned."""
    generator = torch.Generator().manual_seed(seed)
    return build_classifier(WIDTH, SHAPE, WAYS, normalisation=NORMALISE, generator=generator)


def write_zoo(folder: Path, teachers: int) -> None:
    """A zoo folder of `teachers` such networks."""
    folder.mkdir()
    entries = []
    for number in range(teachers):
        held = save(weights(teacher(number)))
        (folder / f"{number:04d}.safetensors").write_bytes(held)
        digest = hashlib.sha256(held).hexdigest()
        entries.append({"file": f"{number:04d}.safetensors", "classes": list("abcde"), "sha256": digest})
    manifest = {
        "dataset": "t",
        "width": WIDTH,
        "input": SHAPE,
        "normalise": NORMALISE.model_dump(),
        "teachers": entries,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


@contextmanager
def serving(folder: Path, redis_url: str, core: int, *, metered: bool = True) -> Iterator[Zoo]:
    """Serve a zoo folder on one core until the end of the block."""
    port = redis_server.free_port()
    command = ["-m", "metazoo", "zoo", "serve", str(folder), "--port", str(port)]
    told = {"REDIS_URL": redis_url, "METAZOO_ZOO_ADMIN_KEY": ADMIN, "METAZOO_ZOO_FOLDER": str(folder)}
    told |= {"METAZOO_ZOO_DEVICE": "cpu", "METAZOO_ZOO_THREADS": "1", "OMP_NUM_THREADS": "1"}
    began = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *(command if metered else ["-m", "benchmarks.rig.unmetered", str(port)])],
        env={**os.environ, **told},
        stderr=subprocess.DEVNULL,
    )
    os.sched_setaffinity(process.pid, {core})
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, "the zoo ended at once"
            try:
                if httpx.get(f"{url}/v2/health/ready", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.02)
        ready = time.monotonic() - began
        admin = {"Authorization": f"Bearer {ADMIN}"}
        key = httpx.post(f"{url}/admin/keys", json={}, headers=admin).raise_for_status().json()["secret"]
        yield Zoo(url.removeprefix("http://"), key, process.pid, "t-0000", ready)
    finally:
        process.terminate()
        process.wait(20)


def eager(model: Callable[[torch.Tensor], torch.Tensor], batch: int, seconds: float) -> float:
    """Images a second of `model(x)`, by its median call."""
    images = torch.rand((batch, *SHAPE))
    took: list[float] = []
    with torch.inference_mode():
        model(images)
        until = time.perf_counter() + seconds
        while time.perf_counter() < until or len(took) < 3:
            began = time.perf_counter()
            model(images)
            took.append(time.perf_counter() - began)
    return batch / median(took)


def tensor(count: int, *, eight_bit: bool = False) -> oip.Tensor:
    """Random images."""
    images = np.random.default_rng(0).random((count, *SHAPE), dtype=np.float32)
    if eight_bit:
        return oip.Tensor("images", "UINT8", images.shape, (255 * images).astype(np.uint8).tobytes())
    return oip.Tensor("images", "FP32", images.shape, images.tobytes())


def main(
    seconds: Annotated[float, typer.Option(min=0.1, help="Of each measurement.")] = 10.0,
    server_core: Annotated[int, typer.Option(help="Where servers run.")] = 1,
    client_core: Annotated[int, typer.Option(help="Where clients and Redis run.")] = 0,
    compare: Annotated[bool, typer.Option("--mlserver/--no-mlserver", help="Measure MLServer as well.")] = True,
) -> None:
    """Measure everything in one run."""
    rates: dict[str, float] = {}
    p50: dict[str, float] = {}
    p99: dict[str, float] = {}

    def note(name: str, count: int, measured: load.Load) -> None:
        rates[name], p50[name], p99[name] = count * measured.per_second, measured.p50_ms, measured.p99_ms

    torch.set_num_threads(1)
    plain = textbook(teacher())
    os.sched_setaffinity(0, {server_core})
    by_batch = {batch: eager(plain, batch, seconds / 5) for batch in BATCHES}
    rates["eager_512"], rates["eager_best"] = by_batch[BATCH], max(by_batch.values())
    own = {batch: eager(teacher(), batch, seconds / 5) for batch in BATCHES}  # channels_last, pooled before the ReLU
    rates["eager_channels_last_best"] = max(own.values())
    os.sched_setaffinity(0, {client_core})

    binary, json_body = (oip.encode_request([tensor(BATCH)], binary=raw) for raw in (True, False))
    eight_bit = oip.encode_request([tensor(BATCH, eight_bit=True)], binary=True)
    single, single_json = (oip.encode_request([tensor(1)], binary=raw) for raw in (True, False))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        for name, teachers in (("one", 1), ("hundred", 100), ("thousand", 1000)):
            write_zoo(folder / name, teachers)
        redis = redis_server.start(folder / "redis")
        os.sched_setaffinity(redis.process.pid, {client_core})
        try:
            with (
                serving(folder / "one", redis.url, server_core) as zoo,
                serving(folder / "one", redis.url, server_core, metered=False) as free,
            ):
                batches = [
                    ("zoo_binary", zoo, binary),
                    ("zoo_binary_unmetered", free, binary),
                    ("zoo_uint8", zoo, eight_bit),
                    ("zoo_json", zoo, json_body),
                ]
                for name, at, request in batches:
                    note(name, BATCH, load.ask(at.address, at.request(*request), clients=1, seconds=seconds))
                note("zoo_singles", 1, load.ask(zoo.address, zoo.request(*single), clients=64, seconds=seconds))
                alone: dict[bool, list[float]] = {True: [], False: []}
                for _ in range(5):  # by turns, so that what disturbs the machine disturbs both
                    for metered, at in ((True, zoo), (False, free)):
                        measured = load.ask(at.address, at.request(*single), clients=1, seconds=seconds / 5)
                        alone[metered].append(measured.p50_ms)
                metering = median(alone[True]) - median(alone[False])
                p50["zoo_single"], p50["zoo_single_unmetered"] = median(alone[True]), median(alone[False])
            with serving(folder / "hundred", redis.url, server_core) as zoo:
                address, key = zoo.address, {"Authorization": f"Bearer {zoo.key}"}
                for number in range(100):
                    path = f"http://{address}/v2/models/t-{number:04d}/infer"
                    httpx.post(path, content=single[0], headers={**key, **single[1]}).raise_for_status()
                peak = zoo.peak_mb()
            with serving(folder / "thousand", redis.url, server_core) as zoo:
                start_1000 = zoo.seconds
        finally:
            redis.stop()
        if compare:
            for workers in (0, 1):
                _measure_mlserver(plain, folder / f"mlserver-{workers}", workers, server_core, seconds,
                                  json_body, single_json, note)  # fmt: skip
    result = {
        "images_per_s": {name: round(rate, 1) for name, rate in rates.items()},
        "p50_ms": {name: round(value, 3) for name, value in p50.items()},
        "p99_ms": {name: round(value, 3) for name, value in p99.items()},
        **_ratios(rates),
        "metering_p50_ms": round(metering, 3),
        "peak_rss_mb": round(peak, 1),
        "start_1000_s": round(start_1000, 2),
        "eager_best_batch": max(by_batch, key=lambda batch: by_batch[batch]),
        "torch": torch.__version__,
        "cpu": Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0],
        "load_average": os.getloadavg()[0],
    }
    Console().print(_table(rates, p50, p99))
    typer.echo(json.dumps(result))


def _measure_mlserver(
    plain: nn.Module, folder: Path, workers: int, core: int, seconds: float,
    json_body: tuple[bytes, dict[str, str]], single: tuple[bytes, dict[str, str]],
    note: Callable[[str, int, load.Load], None],
) -> None:  # fmt: skip
    with mlserver.serving(plain, SHAPE, WAYS, folder, parallel_workers=workers, cores=[core]) as served:
        path = f"/v2/models/{mlserver.NAME}/infer"
        for name, count, (body, headers), clients in (("json", BATCH, json_body, 1), ("singles", 1, single, 64)):
            request = load.post(served.http, path, body, headers)
            measured = load.ask(served.http, request, clients=clients, seconds=seconds)
            note(f"mlserver_{name}_workers_{workers}", count, measured)
        command = [
            mlserver.environment(),
            Path(__file__).parent / "rig" / "grpc_load.py",
            served.grpc,
            mlserver.NAME,
            BATCH,
        ]
        done = subprocess.run(
            [*map(str, command), *map(str, SHAPE), str(seconds)], capture_output=True, text=True, check=True
        )
        note(f"mlserver_grpc_workers_{workers}", BATCH, load.Load(*map(float, done.stdout.split())))


def _ratios(rates: dict[str, float]) -> dict[str, Any]:
    def best(*kinds: str) -> float | None:
        found = [rate for name, rate in rates.items() if name.startswith(tuple(f"mlserver_{kind}" for kind in kinds))]
        return max(found, default=None)

    def ratio(ours: str, theirs: float | None) -> float | None:
        return None if theirs is None else round(rates[ours] / theirs, 2)

    return {
        "ratio_vs_eager_512": ratio("zoo_binary", rates["eager_512"]),
        "ratio_vs_eager_best": ratio("zoo_binary", rates["eager_best"]),
        "ratio_vs_mlserver_best": ratio("zoo_binary", best("json", "grpc")),
        "ratio_json_vs_mlserver_json": ratio("zoo_json", best("json")),
        "ratio_vs_mlserver_single": ratio("zoo_singles", best("singles")),
    }


def _table(rates: dict[str, float], p50: dict[str, float], p99: dict[str, float]) -> Table:
    table = Table(title="Conv4-32, 3x32x32, one core, one thread; batches of 512 but for singles", box=None)
    for heading in ("", "images/s", "p50 ms", "p99 ms"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name in {**rates, **p50}:
        cells = [
            f"{where[name]:,.{digits}f}" if name in where else "-" for where, digits in ((rates, 0), (p50, 2), (p99, 2))
        ]
        table.add_row(name, *cells)
    return table


if __name__ == "__main__":
    typer.run(main)
