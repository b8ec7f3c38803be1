"""Many APIs in one cheap process: each answers at a fixed rate after a fixed latency, charges, and replays by idempotency key.

    python -m benchmarks.rig.answerer --apis 8 --rate 100 --burst 200 --latency 0.1

prints `{"port": …}`. `GET /stats` tells what it charged, when, and how much time of its core that took.
"""

import asyncio
import json
import math
import time
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
import typer

from contracts import oip

CLASSES = 5
SHAPE = (3, 16, 16)
MOST = 64  # images a request


@dataclass
class Api:
    """A bucket of `burst` images that refills at `rate`, and the answers that were paid for."""

    rate: float
    burst: int
    level: float = field(init=False)
    at: float = field(default_factory=time.monotonic)
    answers: dict[str, tuple[bytes, dict[str, str]]] = field(default_factory=dict)
    charged: int = 0
    refused: int = 0
    first: float | None = None
    last: float = 0.0

    def __post_init__(self) -> None:
        self.level = self.burst

    def take(self, images: int) -> float:
        """Seconds to wait for so many images; 0 when they are charged now."""
        now = time.monotonic()
        self.level, self.at = min(self.burst, self.level + self.rate * (now - self.at)), now
        if self.level < images:
            self.refused += 1
            return (images - self.level) / self.rate
        self.level -= images
        self.charged += images
        self.first, self.last = self.first or now, now
        return 0.0

    def limits(self) -> dict[str, str]:
        window = max(1, math.ceil(self.burst / self.rate))
        return {
            "RateLimit-Policy": f'"burst";q={self.burst};w={window};qu="images"',
            "RateLimit": f'"burst";r={int(self.level)};t=1',
        }


class Answerer:
    """The APIs `m0`, `m1`, … behind one port."""

    def __init__(self, apis: int, *, rate: float, burst: int, latency: float) -> None:
        self.apis = {f"m{number}": Api(rate, burst) for number in range(apis)}
        self.latency = latency

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        try:
            while request := await reader.readuntil(b"\r\n\r\n"):
                line, *lines = request.decode("latin-1").split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (each.partition(":") for each in lines)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                status, content, told = await self.answer(line.split(" ")[1], headers, body)
                told = {"Content-Length": str(len(content)), **told}
                head = "".join(f"{name}: {value}\r\n" for name, value in told.items())
                writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + content)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            return
        finally:
            writer.close()

    async def answer(self, path: str, headers: dict[str, str], body: bytes) -> tuple[int, bytes, dict[str, str]]:
        """(status, body, headers) of an answer."""
        if path == "/stats":
            return 200, json.dumps(self.stats()).encode(), {}
        if path == "/v2":
            return 200, b'{"extensions": ["binary_tensor_data"]}', {}
        name = path.split("/")[3]
        api = self.apis[name]
        if not path.endswith("/infer"):
            return 200, json.dumps(self.metadata(name)).encode(), {}
        key = headers.get("idempotency-key", "")
        if key in api.answers:
            content, told = api.answers[key]
            return 200, content, {**told, **api.limits(), "Idempotency-Replayed": "true"}
        cut = int(headers["inference-header-content-length"])
        images = json.loads(body[:cut])["inputs"][0]["shape"][0]
        if wait := api.take(images):
            return 429, b"{}", {"Retry-After": str(math.ceil(wait)), **api.limits()}
        limits = api.limits()  # as they stood when it was charged
        pixels = np.frombuffer(body, np.uint8, offset=cut).reshape(images, -1)[:, ::151][:, :CLASSES] + np.float32(1)
        tensor = oip.Tensor("probabilities", "FP32", pixels.shape, (pixels / pixels.sum(1, keepdims=True)).tobytes())
        content, told = oip.encode_response(oip.InferResponse(model=name, id=None, outputs=[tensor]), binary=None)
        api.answers[key] = content, told
        await asyncio.sleep(self.latency)
        return 200, content, {**told, **limits, "X-Query-Cost": str(images)}

    def metadata(self, name: str) -> dict[str, Any]:
        return {
            "name": name,
            "inputs": [{"name": "images", "datatype": "UINT8", "shape": [-1, *SHAPE]}],
            "outputs": [{"name": "probabilities", "datatype": "FP32", "shape": [-1, CLASSES]}],
            "parameters": {"idempotency": True, "max_images": MOST},
        }

    def stats(self) -> dict[str, float]:
        """Images charged and requests refused by all; when the first image was charged, when the last, and when all APIs
        had been charged for one; seconds of the core.
        """
        apis = [api for api in self.apis.values() if api.first is not None]
        return {
            "charged": sum(api.charged for api in apis),
            "refused": sum(api.refused for api in apis),
            "first": min((api.first or 0.0 for api in apis), default=0.0),
            "all_asked": max((api.first or 0.0 for api in apis), default=0.0),
            "last": max((api.last for api in apis), default=0.0),
            "core_seconds": time.process_time(),
        }


async def run(answerer: Answerer) -> None:
    """Serve until killed."""
    server = await asyncio.start_server(answerer.serve, "127.0.0.1", 0, limit=2**20)
    print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
    await server.serve_forever()


def main(
    apis: Annotated[int, typer.Option(help="How many.")],
    rate: Annotated[float, typer.Option(help="Images a second of each.")],
    burst: Annotated[int, typer.Option(help="Images of each at once.")],
    latency: Annotated[float, typer.Option(help="Seconds before it answers.")] = 0.1,
) -> None:
    """Serve so many APIs on a free port of loopback."""
    asyncio.run(run(Answerer(apis, rate=rate, burst=burst, latency=latency)))


if __name__ == "__main__":
    typer.run(main)
