"""A zoo of one model that can be checked by hand, on a real Redis, and small zoo folders."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from fastapi import FastAPI
from safetensors.torch import save
from torch import Tensor, nn

from api_zoo.app import create_app
from api_zoo.inference import Model
from api_zoo.settings import Settings
from contracts import oip
from contracts.zoo import Normalisation
from dfml.nets import build_classifier, weights

ADMIN = "admin-key-of-the-tests"
LABELS = ["red", "green", "blue"]
SHAPE = (3, 2, 2)


class Brightest(nn.Module):
    """Logits are the mean of each channel: the colour that an image has most of."""

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.float() / 255 if images.dtype == torch.uint8 else images
        return 10 * pixels.mean((2, 3))


@dataclass
class Zoo:
    """A running application, and requests to it."""

    http: httpx.AsyncClient
    app: FastAPI

    async def key(self, **limits: Any) -> dict[str, str]:
        """Headers with a new key."""
        made = await self.http.post("/admin/keys", json=limits, headers=bearer(ADMIN))
        assert made.status_code == 201, made.text
        return bearer(made.json()["secret"])

    async def infer(
        self, headers: dict[str, str], images: Tensor, *, binary: bool = True, model: str = "colours", **more: str
    ) -> httpx.Response:
        body, described = oip.encode_request([_tensor(images)], binary=binary)
        return await self.http.post(f"/v2/models/{model}/infer", content=body, headers={**headers, **described, **more})

    async def spent(self, headers: dict[str, str]) -> int:
        return (await self.http.get("/v1/usage", headers=headers)).json()["spent"]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def _tensor(images: Tensor, name: str = "images") -> oip.Tensor:
    datatype = {torch.uint8: "UINT8", torch.float32: "FP32", torch.float64: "FP64"}[images.dtype]
    return oip.Tensor(name, datatype, tuple(images.shape), images.numpy().tobytes())


def _colours(n: int) -> Tensor:
    """uint8 images (n, 3, 2, 2): red, green, blue, red, …"""
    images = torch.zeros((n, *SHAPE), dtype=torch.uint8)
    for index in range(n):
        images[index, index % 3] = 255
    return images


def _models() -> dict[str, Model]:
    return {name: Model(name, Brightest(), LABELS, SHAPE) for name in ("colours", "others")}


@asynccontextmanager
async def _running(redis_url: str, registry: dict[str, Model] | None = None, **more: Any) -> AsyncIterator[Zoo]:
    settings = Settings(redis_url=redis_url, admin_key=ADMIN, **{"max_images": 8, "max_body": 4096, **more})
    app = create_app(settings, registry=_models() if registry is None else registry)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://zoo") as http,
    ):
        yield Zoo(http, app)


def _write_zoo(folder: Path, *, teachers: int = 2, hashes: bool = True, **changed: Any) -> dict[str, Any]:
    """A zoo folder of untrained teachers; returns its manifest, as written."""
    normalise = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
    folder.mkdir(parents=True, exist_ok=True)
    entries = []
    for number in range(teachers):
        generator = torch.Generator().manual_seed(number)
        held = save(weights(build_classifier(4, (3, 16, 16), 3, normalisation=normalise, generator=generator)))
        (folder / f"{number:02d}.safetensors").write_bytes(held)
        entry = {"file": f"{number:02d}.safetensors", "classes": ["a", "b", "c"]}
        entries.append({**entry, "sha256": sha256(held).hexdigest()} if hashes else entry)
    manifest = {
        "dataset": "toy",
        "width": 4,
        "input": [3, 16, 16],
        "normalise": normalise.model_dump(),
        "teachers": entries,
        **changed,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return manifest


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
async def zoo(redis_url: str) -> AsyncIterator[Zoo]:
    """A zoo of the models `colours` and `others`, 8 images a request, bodies of 4 KiB."""
    async with _running(redis_url) as zoo:
        yield zoo


@pytest.fixture
def running() -> Callable[..., Any]:
    """Starts a zoo: `running(redis_url, registry, **settings)`."""
    return _running


@pytest.fixture
def write_zoo() -> Callable[..., dict[str, Any]]:
    """Makes a zoo folder: `write_zoo(folder, teachers=, hashes=, **changed)`."""
    return _write_zoo


@pytest.fixture
def colours() -> Callable[[int], Tensor]:
    return _colours


@pytest.fixture
def tensor() -> Callable[..., oip.Tensor]:
    """A protocol tensor of a torch one."""
    return _tensor


@pytest.fixture
def admin() -> dict[str, str]:
    return bearer(ADMIN)
