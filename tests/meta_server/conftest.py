"""The application over a real Redis, called in process."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from contracts.jobs import JobRequest
from contracts.meta_models import BackboneConfig, MetaModel
from meta_server.app import create_app
from meta_server.services import Services
from meta_server.settings import Settings
from meta_server.store.secrets import Secrets

API_KEY = "server-key-of-the-tests"
REQUEST: dict[str, Any] = {
    "apis": [
        {"url": "http://zoo.test/v2/models/a", "api_key": "teacher-secret"},
        {"url": "http://zoo.test/v2/models/b"},
    ],
    "budget": {"queries": 100},
}


@pytest.fixture
def request_body() -> dict[str, Any]:
    """A sound job."""
    return REQUEST


@pytest.fixture
def make_settings(tmp_path: Path) -> Callable[..., Settings]:
    def make(redis_url: str, **options: Any) -> Settings:
        required = {"artifacts": str(tmp_path / "artifacts"), "secret_key": Secrets.generate(), "api_key": API_KEY}
        no_data = {"METAZOO_DATA": tmp_path / "data"}  # whatever the caller's environment names
        return Settings(redis_url=redis_url, **required | no_data | options)

    return make


Open = Callable[..., Awaitable[httpx.AsyncClient]]


@pytest.fixture
async def open_app() -> AsyncIterator[Open]:
    """`await open_app(settings)` starts an application and gives a client that sends the key."""
    async with AsyncExitStack() as stack:

        @asynccontextmanager
        async def started(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
            async with app.router.lifespan_context(app):
                transport = httpx.ASGITransport(app, raise_app_exceptions=False)
                headers = {"Authorization": f"Bearer {API_KEY}"}
                async with httpx.AsyncClient(
                    transport=transport, base_url="http://server.test", headers=headers
                ) as http:
                    http.app = app  # type: ignore[attr-defined]
                    yield http

        async def start(settings: Settings) -> httpx.AsyncClient:
            return await stack.enter_async_context(started(create_app(settings)))

        yield start


@pytest.fixture
async def http(open_app: Open, make_settings: Callable[..., Settings], redis_url: str) -> httpx.AsyncClient:
    """A client of an application over the session's Redis."""
    return await open_app(make_settings(redis_url))


@pytest.fixture
def services(http: httpx.AsyncClient) -> Services:
    """What that application opened."""
    opened: Services = http.app.state.services  # type: ignore[attr-defined]
    return opened


@pytest.fixture
def publish(services: Services, tmp_path: Path) -> Callable[..., Awaitable[MetaModel]]:
    """`await publish()` puts an untrained meta-model in place, as a worker would."""

    async def do(seed: int = 0) -> MetaModel:
        import torch

        from dfml import io, nets

        config = BackboneConfig(width=16)
        backbone = nets.build(config, (3, 32, 32), generator=torch.Generator().manual_seed(seed))
        told = {"name": "toy", "method": "pqd", "apis": [], "queries": 0, "seed": seed, "version": "0"}
        source = tmp_path / f"model-{seed}"
        io.save(source, backbone, {}, options={}, **told)
        job, _ = await services.jobs.create(JobRequest.model_validate(REQUEST))
        lease = await services.jobs.take(job.id, "learn", "test")
        assert lease is not None
        await services.jobs.work.begin(job.id, lease)
        folder = f"meta-models/{job.id}/{lease.fence}"
        files = dict(services.artifacts.put_folder(source, folder))
        model = MetaModel(
            id=f"mm_{seed}",
            created_at="2026-01-01T00:00:00Z",
            job=job.id,
            backbone=config,
            input_shape=(3, 32, 32),
            evaluation=None,
            score=None,
            random_score=None,
            files=files,
            **told,
        )
        await services.jobs.work.publish(job.id, lease, model, folder=folder)
        return model

    return do


@pytest.fixture(autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
