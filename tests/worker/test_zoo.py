"""A job against a zoo of several architectures, ways, sizes and normalisations: the books of both agree."""

from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save

from api_zoo.app import create_app
from api_zoo.folder import open_folder
from api_zoo.importing import import_teacher
from api_zoo.settings import Settings
from contracts.jobs import JobRequest, JobStatus
from contracts.zoo import Normalisation
from dfml.nets import build_classifier, weights

pytestmark = [pytest.mark.anyio, pytest.mark.redis]
ADMIN = "admin-key-of-the-tests"
TEACHERS = [("conv4", 16, 3), ("resnet10", 20, 5), ("resnet18", 24, 2), ("conv4", 32, 8)]


def lay_out(folder: Path) -> None:
    """One untrained teacher of each kind: what they answer does not matter here."""
    for number, (backbone, side, ways) in enumerate(TEACHERS):
        normalise = Normalisation(mean=(0.1 * number, 0.2, 0.3), std=(0.5, 0.4, 0.3))
        net = build_classifier(
            16,
            (3, side, side),
            ways,
            normalisation=normalise,
            backbone=backbone,
            generator=torch.Generator().manual_seed(1),
        )
        source = folder.parent / f"{number}.safetensors"
        source.write_bytes(save(weights(net)))
        classes = [f"c{label}" for label in range(ways)]
        shape = (3, side, side)
        import_teacher(source, folder, name=str(number), classes=classes, input_shape=shape, normalise=normalise)


async def test_a_job_learns_from_a_zoo_of_every_kind(world: Any, redis_url: str, tmp_path: Path) -> None:
    lay_out(tmp_path / "zoo")
    models = open_folder(tmp_path / "zoo")
    app = create_app(Settings(redis_url=redis_url, admin_key=ADMIN), registry=models)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://zoo.test") as http,
    ):
        made = await http.post("/admin/keys", json={"budget": 400}, headers={"Authorization": f"Bearer {ADMIN}"})
        secret = made.json()["secret"]
        request = JobRequest.model_validate(
            {
                "apis": [{"url": f"http://zoo.test/v2/models/{name}", "api_key": secret} for name in models],
                "budget": {"queries": 400},
                "method": {"steps": 4, "batch": 8},
                "meta_model": {"width": 16},
                "image_size": 32,
            }
        )
        asking = world.changed(transport=lambda: httpx.ASGITransport(app))
        job, _ = await asking.store.create(request)
        acquired = await asking.acquire_all(job)
        usage = (await http.get("/v1/usage", headers={"Authorization": f"Bearer {secret}"})).json()
    assert {one.state for one in acquired.progress.per_api.values()} == {"done"}
    assert acquired.budget.confirmed == usage["spent"] == 400
    told = await asking.learn(job.id)
    assert told.status == JobStatus.SUCCEEDED
