"""Every method, larger students, and answers that tell less: jobs against a zoo whose teachers have three and five classes."""

import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from safetensors.torch import save

from api_zoo.app import create_app
from api_zoo.folder import open_folder
from api_zoo.settings import Settings
from contracts.jobs import JobRequest, JobStatus
from contracts.methods import METHOD_NAMES
from dfml.io import load
from dfml.nets import STUDENT, build_classifier, weights
from meta_server.store.meta_models import MetaModelStore

pytestmark = [pytest.mark.anyio, pytest.mark.redis]
ADMIN = "admin-key-of-the-tests"
QUERIES = 96
SMALL = {"ways": 3, "shots": 1, "inner_steps": 1, "second_order": False}
GRADIENTS = {"source": "zeroth-order", "directions": 1}
METHODS: dict[str, dict[str, Any]] = {
    "pqd": {"steps": 3, "batch": 8},
    "distill_average": {"steps": 3, "batch": 8},
    "bidf_mkd": SMALL | {
        "images_per_class": 1, "iterations": 1, "directions": 1, "frequencies": 4, "latent": 4, "generator_width": 4,
        "updates": 2, "tasks": 1, "replay_steps": 1, "queries": 1, "diversity": 0,
    },
    "free": SMALL | {
        "epochs": 2, "warm_up": 1, "teachers": 1, "images_per_class": 2, "latent": 4, "generator_width": 4,
        "generator_steps": 1, "queries": 1, "replay_tasks": 1, "patience": 1, "gradients": GRADIENTS,
    },
    "purer": SMALL | {"updates": 2, "teachers": 1, "images_per_class": 2, "episodes": 1, "gradients": GRADIENTS},
}  # fmt: skip


def lay_out(folder: Path, answers: str) -> None:
    """Teachers of three and five classes under one response policy."""
    folder.mkdir()
    entries = []
    for number, ways in enumerate((3, 5)):
        generator = torch.Generator().manual_seed(number)
        content = save(weights(build_classifier(16, (3, 16, 16), ways, normalisation=STUDENT, generator=generator)))
        (folder / f"{number}.safetensors").write_bytes(content)
        entry = {"file": f"{number}.safetensors", "sha256": sha256(content).hexdigest(), "response_policy": answers}
        entries.append(entry | {"classes": [f"{number}-{label}" for label in range(ways)]})
    manifest = {"dataset": "toy", "width": 16, "input": [3, 16, 16], "normalise": STUDENT.model_dump()}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"teachers": entries}))


async def learned(
    world: Any, redis_url: str, folder_of_zoo: Path, *, answers: str = "probabilities", **request: Any
) -> Any:
    """The meta-model of a small job, loaded from its files."""
    lay_out(folder_of_zoo, answers)
    app = create_app(Settings(redis_url=redis_url, admin_key=ADMIN), registry=open_folder(folder_of_zoo))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://zoo.test") as http,
    ):
        made = await http.post("/admin/keys", json={"budget": 400}, headers={"Authorization": f"Bearer {ADMIN}"})
        secret = made.json()["secret"]
        urls = [f"http://zoo.test/v2/models/toy-{number}" for number in range(2)]
        body = {
            "apis": [{"url": url, "api_key": secret} for url in urls],
            "budget": {"queries": QUERIES},
            "method": {"steps": 3, "batch": 8},
            "meta_model": {"width": 16},
        }
        told = (await http.get(urls[0], headers={"Authorization": f"Bearer {secret}"})).json()
        assert told["parameters"]["response_policy"] == answers
        asking = world.changed(transport=lambda: httpx.ASGITransport(app))
        job, _ = await asking.store.create(JobRequest.model_validate(body | request))
        acquired = await asking.acquire_all(job)
        assert {one.state for one in acquired.progress.per_api.values()} == {"done"}
        ended = await asking.learn(job.id)
        assert (ended.error, ended.status) == (None, JobStatus.SUCCEEDED)
        usage = (await http.get("/v1/usage", headers={"Authorization": f"Bearer {secret}"})).json()
    models = MetaModelStore(world.redis)
    model = await models.get(ended.meta_model)
    assert model.queries == ended.budget.confirmed == usage["spent"]
    assert 0 < model.queries <= QUERIES
    folder = world.context.artifacts.local(await models.folder(model.id))
    assert f"- queries paid for: {usage['spent']} images" in (folder / "README.md").read_text()
    return load(folder)


def test_no_method_is_left_out() -> None:
    assert METHODS.keys() == set(METHOD_NAMES)


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_learns_from_a_zoo_and_its_card_says_what_it_spent(
    world: Any, redis_url: str, tmp_path: Path, method: str
) -> None:
    found = await learned(world, redis_url, tmp_path / "zoo", method={"name": method, **METHODS[method]})
    assert found(torch.rand(2, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize(
    ("student", "dim"),
    [
        ({"width": 64}, 64),
        ({"backbone": "resnet10", "width": 32}, 256),
        ({"backbone": "resnet12"}, 320),
    ],
    ids=str,
)
async def test_larger_students_are_learned(
    world: Any, redis_url: str, tmp_path: Path, student: dict[str, Any], dim: int
) -> None:
    found = await learned(world, redis_url, tmp_path / "zoo", meta_model=student)
    assert found.dim == dim
    assert found(torch.rand(2, 3, 16, 16)).isfinite().all()


@pytest.mark.parametrize(
    ("method", "answers"),
    [("pqd", "topk:2"), ("pqd", "round:1"), ("pqd", "label"), ("distill_average", "label"), ("bidf_mkd", "label")],
)
async def test_answers_that_tell_less_are_learned_from(
    world: Any, redis_url: str, tmp_path: Path, answers: str, method: str
) -> None:
    """By one method of each kind: joint, one by one, and asking as it goes."""
    found = await learned(
        world, redis_url, tmp_path / "zoo", answers=answers, method={"name": method, **METHODS[method]}
    )
    assert found(torch.rand(2, 3, 16, 16)).isfinite().all()
