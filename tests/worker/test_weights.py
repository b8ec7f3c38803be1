"""Jobs on published weights, against a real zoo: nothing is asked, nothing is charged, and what is not as stated is refused."""

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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
from contracts.problems import faults
from contracts.zoo import Network, Normalisation
from dfml.nets import build_classifier, weights
from dfml.teachers import white_box
from meta_server.store.meta_models import MetaModelStore

pytestmark = [pytest.mark.anyio, pytest.mark.redis]
ADMIN = "admin-key-of-the-tests"
NORMALISE = Normalisation(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.25))
SMALL = {"ways": 3, "shots": 1, "inner_steps": 1, "second_order": False, "images_per_class": 3}
FREE = SMALL | {
    "name": "free", "epochs": 3, "warm_up": 1, "queries": 2, "latent": 4, "generator_width": 4, "generator_steps": 2,
    "replay_tasks": 1, "patience": 1,
}  # fmt: skip
PURER = SMALL | {"name": "purer", "updates": 3, "episodes": 1}
Change = Callable[[httpx.Request, httpx.Response], httpx.Response]


def held(seed: int, width: int = 16) -> bytes:
    generator = torch.Generator().manual_seed(seed)
    return save(weights(build_classifier(width, (3, 16, 16), 3, normalisation=NORMALISE, generator=generator)))


def lay_out(folder: Path, *, published: int = 2) -> None:
    """Two teachers, of which the first `published` give their weights away."""
    folder.mkdir()
    entries = []
    for number in range(2):
        content = held(number)
        (folder / f"{number}.safetensors").write_bytes(content)
        entry = {"file": f"{number}.safetensors", "classes": ["a", "b", "c"], "sha256": sha256(content).hexdigest()}
        entries.append(entry | ({"publish": "weights"} if number < published else {}))
    manifest = {"dataset": "toy", "width": 16, "input": [3, 16, 16], "normalise": NORMALISE.model_dump()}
    (folder / "manifest.json").write_text(json.dumps(manifest | {"teachers": entries}))


class Altered(httpx.AsyncBaseTransport):
    """The zoo, whose answers are changed on the way; `seen` are the paths that were asked for."""

    def __init__(self, app: Any, change: Change, seen: list[str]) -> None:
        self.inner, self.change, self.seen = httpx.ASGITransport(app), change, seen

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request.url.path)
        response = await self.inner.handle_async_request(request)
        await response.aread()
        return self.change(request, response)


def as_it_is(request: httpx.Request, response: httpx.Response) -> httpx.Response:
    return response


def stated(**changed: Any) -> Change:
    """The second model's metadata say something else of its weights."""

    def change(request: httpx.Request, response: httpx.Response) -> httpx.Response:
        if not request.url.path.endswith("/v2/models/toy-1"):
            return response
        body = response.json()
        told = body["parameters"]["weights"]
        told["network"] |= {name: value for name, value in changed.items() if name != "sha256"}
        told |= {name: value for name, value in changed.items() if name == "sha256"}
        return httpx.Response(200, json=body)

    return change


@asynccontextmanager
async def zoo_of(world: Any, redis_url: str, folder: Path, change: Change) -> AsyncIterator[tuple[Any, Any, list[str]]]:
    """A world that asks the zoo of `folder`, a way to submit a job to it, and the paths that were asked for."""
    app = create_app(Settings(redis_url=redis_url, admin_key=ADMIN), registry=open_folder(folder))
    seen: list[str] = []
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://zoo.test") as http,
    ):
        made = await http.post("/admin/keys", json={"budget": 100}, headers={"Authorization": f"Bearer {ADMIN}"})
        secret = made.json()["secret"]
        asking = world.changed(transport=lambda: Altered(app, change, seen))

        async def submit(method: dict[str, Any], **more: Any) -> Any:
            urls = [f"http://zoo.test/v2/models/toy-{number}" for number in range(2)]
            body = {
                "apis": [{"url": url, "api_key": secret, "access": "weights"} for url in urls],
                "budget": {"queries": 100},
                "method": method,
                "meta_model": {"width": 16},
            }
            return (await asking.store.create(JobRequest.model_validate(body | more)))[0]

        yield asking, submit, seen
        usage = (await http.get("/v1/usage", headers={"Authorization": f"Bearer {secret}"})).json()
        assert usage["spent"] == 0  # whatever became of the job


@pytest.mark.parametrize(
    "method", [FREE, PURER, PURER | {"start": "average"}], ids=["free", "purer", "purer-from-the-average"]
)
async def test_a_job_on_published_weights_asks_nothing_and_its_card_says_so(
    world: Any, redis_url: str, tmp_path: Path, method: dict[str, Any]
) -> None:
    lay_out(tmp_path / "zoo")
    async with zoo_of(world, redis_url, tmp_path / "zoo", as_it_is) as (asking, submit, seen):
        job = await submit(method)
        acquired = await asking.acquire_all(job)
        assert {one.state for one in acquired.progress.per_api.values()} == {"done"}
        seen_by_then = len(seen)
        ended = await asking.learn(job.id)
        assert (ended.error, ended.status) == (None, JobStatus.SUCCEEDED)
        assert len(seen) == seen_by_then  # the learner needs the host no more
        assert not [path for path in seen if path.endswith("/infer")]
    assert (ended.budget.confirmed, ended.budget.unconfirmed, ended.budget.reserved) == (0, 0, 0)
    store = MetaModelStore(world.redis)
    model = await store.get(ended.meta_model)
    assert (model.method, model.queries, len(model.apis)) == (method["name"], 0, 2)
    assert model.teacher_passes > 0
    card = (world.context.artifacts.local(await store.folder(ended.meta_model)) / "README.md").read_text()
    assert "learned from the published weights of 2 classification APIs" in card
    assert "queries paid for: 0 images" in card
    assert f"{model.teacher_passes:,} images" in card


async def test_a_host_that_publishes_nothing_is_a_fault_that_names_the_api(
    world: Any, redis_url: str, tmp_path: Path
) -> None:
    lay_out(tmp_path / "zoo", published=1)
    async with zoo_of(world, redis_url, tmp_path / "zoo", as_it_is) as (asking, submit, _):
        job = await submit(FREE)
        await asking.acquire(job.id, "a1")
        told = await asking.store.get(job.id)
    assert told.status == JobStatus.FAILED
    assert (told.error.code, told.error.param) == ("weights_needed", "apis.1.access")
    assert "toy-1" in told.error.message
    assert "zeroth-order" in told.error.message


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (stated(sha256="0" * 64), "SHA-256"),
        (stated(backbone="vit"), "no network known here"),
        (stated(backbone="onnx"), "whole program"),
        (stated(input=[3, 32, 32]), r"(3, 32, 32)"),
    ],
    ids=["digest", "architecture", "program", "size"],
)
async def test_weights_that_are_not_as_stated_drop_their_api(
    world: Any, redis_url: str, tmp_path: Path, change: Change, reason: str
) -> None:
    lay_out(tmp_path / "zoo")
    async with zoo_of(world, redis_url, tmp_path / "zoo", change) as (asking, submit, _):
        acquired = await asking.acquire_all(await submit(FREE))
    told = acquired.progress.per_api
    assert (told["a0"].state, told["a1"].state) == ("done", "dropped")
    assert reason in told["a1"].reason


async def test_weights_of_another_network_than_stated_are_a_fault(world: Any, redis_url: str, tmp_path: Path) -> None:
    lay_out(tmp_path / "zoo")
    async with zoo_of(world, redis_url, tmp_path / "zoo", stated(width=512, backbone="resnet18")) as (
        asking,
        submit,
        _,
    ):
        job = await submit(PURER)
        await asking.acquire_all(job)
        ended = await asking.learn(job.id)
    assert (ended.error.code, ended.error.param) == ("weights_unfit", "apis.1.access")


@pytest.mark.parametrize("ways", [3, 10**9])
def test_nothing_is_built_that_the_file_does_not_fill(ways: int) -> None:
    network = Network(backbone="resnet18", width=512, input=(3, 16, 16), normalise=NORMALISE)
    with pytest.raises(ValueError, match="do not fit"):
        white_box(network, held(0), ways=ways)  # 700 million numbers, were it made; with the head, ten times the memory
    with pytest.raises(ValueError, match="cannot be read"):
        white_box(network, b"\x80\x04.", ways=3)
    bits = save({"head.weight": torch.zeros(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match="not floats"):
        white_box(network, bits, ways=3)


@pytest.mark.parametrize(
    ("access", "method", "field"),
    [
        (["weights", "predict"], {"name": "free"}, "method.gradients.source"),
        (["predict", "predict"], {"name": "purer"}, "method.gradients.source"),
        (["predict", "weights"], {"name": "pqd"}, "apis.1.access"),
        (["predict", "weights"], {"name": "free", "gradients": {"source": "guided"}}, "apis.1.access"),
        (
            ["predict", "predict"],
            {"name": "purer", "start": "average", "gradients": {"source": "guided"}},
            "method.start",
        ),
    ],
)
def test_what_apis_give_and_the_method_takes_must_be_the_same(
    access: list[str], method: dict[str, Any], field: str
) -> None:
    apis = [{"url": f"http://zoo.test/v2/models/{n}", "access": one} for n, one in enumerate(access)]
    with pytest.raises(ValueError, match="set") as caught:
        JobRequest.model_validate({"apis": apis, "budget": {"queries": 100}, "method": method})
    (fault,) = faults(caught.value.errors())  # type: ignore[attr-defined]
    assert fault.field == field
    if field == "method.gradients.source":
        assert f"apis.{access.index('predict')}.access" in fault.message


def test_an_adapter_without_weights_gives_none() -> None:
    api = {"url": "http://zoo.test/x", "adapter": "classify", "classify": {"labels": ["a", "b"], "size": 16}}
    with pytest.raises(ValueError, match="adapter oip alone"):
        JobRequest.model_validate(
            {"apis": [api | {"access": "weights"}], "budget": {"queries": 9}, "method": {"name": "free"}}
        )
