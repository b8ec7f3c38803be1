"""Everything a request may use, opened once when the zoo starts and closed when it stops."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import anyio
import torch
from anyio import to_thread
from redis.asyncio import Redis

from api_zoo.engine import Engine
from api_zoo.folder import BadZoo, open_folder
from api_zoo.inference import Model
from api_zoo.settings import Settings
from api_zoo.weights import Shelf
from metering.gate import Gate
from metering.keyring import Keyring
from metering.scripts import Scripts, connect, disconnect


@dataclass(frozen=True, slots=True)
class Services:
    """What routes are given."""

    redis: Redis
    gate: Gate
    keyring: Keyring
    models: Mapping[str, Model]
    settings: Settings
    computing: anyio.CapacityLimiter  # of what is decoded
    engine: Engine = field(default_factory=Engine)


def hosted(settings: Settings) -> dict[str, Model]:
    """The models of the settings' folder. Raises `BadZoo`."""
    if settings.folder is None:
        raise BadZoo("no zoo folder: set METAZOO_ZOO_FOLDER, or `metazoo zoo serve FOLDER`")
    device = settings.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device != "cpu" and not torch.cuda.is_available():
        raise BadZoo(f"METAZOO_ZOO_DEVICE is {device}, but torch sees no GPU: set it to cpu")
    return open_folder(
        settings.folder,
        unverified=settings.unverified,
        policy=settings.policy,
        shelf=Shelf(settings.loaded_bytes),
        device=device,
        half=settings.precision == "bf16",
    )


@asynccontextmanager
async def open_services(
    settings: Settings,
    *,
    redis: Redis | None,
    registry: Mapping[str, Model] | None,
    gate: Gate | None = None,
) -> AsyncIterator[Services]:
    """The services by `settings`. A Redis that is passed in is used, and closed by whoever passed it.

    Raises `BadZoo` when the folder of the settings cannot be hosted.
    """
    async with AsyncExitStack() as opened:
        if registry is None:
            registry = await to_thread.run_sync(hosted, settings)
        if redis is None:
            redis = connect(settings.redis_url.get_secret_value())
            opened.push_async_callback(disconnect, redis)
        scripts = Scripts(redis)
        gate = gate or Gate(redis, scripts, lease_seconds=settings.answer_seconds + 5)
        engine = Engine(settings.threads)
        opened.callback(engine.close)
        computing = anyio.CapacityLimiter(settings.threads)
        yield Services(redis, gate, Keyring(redis, scripts), registry, settings, computing, engine)
