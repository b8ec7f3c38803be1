"""A server that nobody here wrote: MLServer hosts an exported teacher, and a job asks it as it asks any other API."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load

from benchmarks.rig import mlserver
from contracts.zoo import Normalisation
from dfml.nets import build_classifier
from worker.queries import queries_of
from worker.transport import Guard, GuardedTransport

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.process, pytest.mark.timeout(800)]

SHAPE, WAYS, QUERIES = (3, 16, 16), 5, 96


@pytest.fixture
def teacher() -> torch.nn.Module:
    normalise = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    generator = torch.Generator().manual_seed(0)
    return build_classifier(8, SHAPE, WAYS, normalisation=normalise, generator=generator)


@pytest.mark.filterwarnings("ignore::UserWarning:torch.export", "ignore::DeprecationWarning")
async def test_a_job_asks_an_mlserver(world, teacher: torch.nn.Module, tmp_path: Path) -> None:
    try:
        mlserver.environment()
    except mlserver.EnvironmentUnavailable as error:
        pytest.skip(str(error))
    with mlserver.serving(teacher, SHAPE, WAYS, tmp_path / "mlserver") as served:
        guard = Guard(allow=[served.http])
        real = world.changed(guard=guard, transport=lambda: GuardedTransport(guard), timeout=60.0, patience=30.0)
        job = await real.acquire_all(await real.submit(queries=QUERIES, apis=[{"url": served.url}]))
    (api,) = job.progress.per_api.values()
    assert (api.state, job.budget.confirmed, job.budget.unconfirmed) == ("done", QUERIES, 0)
    stored = await real.store.load(job.id)
    images = queries_of(stored.request, SHAPE)
    for settled in await real.store.ledger(job.id).settled("a0"):
        kept = load(real.context.artifacts.read(settled.path))
        with torch.inference_mode():
            expected = teacher(torch.from_numpy(images.images(kept["indices"]))).softmax(-1).numpy()
        np.testing.assert_allclose(kept["probabilities"], expected, atol=1e-5)
