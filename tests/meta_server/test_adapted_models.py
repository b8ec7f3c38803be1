"""A meta-model that has learned a task is an API: asked by the zoo's protocol, until its time is over."""

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from PIL import Image

from contracts import oip
from contracts.adaptation import AdaptRequest
from contracts.meta_models import MetaModel
from dfml import io
from meta_server.services import Services
from meta_server.serving import Serving
from meta_server.serving.sweeper import Sweeper
from meta_server.store.adapted_models import AdaptedModelStore, folder
from metering.scripts import Scripts

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

Publish = Callable[..., Awaitable[MetaModel]]
CALIBRATION = {"images_per_class": 2, "inversion_steps": 2, "steps": 1}
METHODS: list[dict[str, Any]] = [
    {"method": "logistic"},
    {"method": "prototypes"},
    {"method": "fine-tune", "steps": 3},
    {"method": "prototypes", "calibration": CALIBRATION, "steps": 2},
    {"method": "fine-tune", "calibration": CALIBRATION},
]


def pixels(n: int) -> np.ndarray:
    """uint8 (n, 32, 32, 3): noise, red and green by turns."""
    images = np.random.RandomState(n).randint(0, 60, (n, 32, 32, 3)).astype(np.uint8)
    for index in range(n):
        images[index, :, :, index % 2] += 180
    return images


def files(images: np.ndarray) -> list[str]:
    texts = []
    for image in images:
        file = BytesIO()
        Image.fromarray(image).save(file, format="PNG")
        texts.append(base64.b64encode(file.getvalue()).decode())
    return texts


TASK: dict[str, Any] = {"support": {"images": files(pixels(4)), "labels": ["red", "green", "red", "green"]}}
QUERY = pixels(6)


async def adapt(http: httpx.AsyncClient, model: MetaModel, **options: Any) -> dict[str, Any]:
    response = await http.post(f"/v1/meta-models/{model.id}/adapt", json=TASK | options)
    assert response.status_code == 201, response.text
    assert response.headers["location"] == f"/v1/adapted-models/{response.json()['id']}"
    return response.json()


async def infer(http: httpx.AsyncClient, path: str, images: np.ndarray, **headers: str) -> httpx.Response:
    chw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    body, described = oip.encode_request([oip.Tensor("images", "UINT8", chw.shape, chw.tobytes())], binary=True)
    return await http.post(f"{path}/infer", content=body, headers={**described, **headers})


def probabilities(response: httpx.Response) -> np.ndarray:
    assert response.status_code == 200, response.text
    answer = oip.decode_response(response.content, response.headers.get(oip.HEADER)).outputs[0]
    return np.array(oip.numbers(answer)).reshape(answer.shape)


@pytest.mark.parametrize("options", METHODS, ids=str)
async def test_it_answers_as_predict_does_and_alone_as_in_company(
    options: dict[str, Any], http: httpx.AsyncClient, publish: Publish
) -> None:
    model = await publish()
    adapted = await adapt(http, model, **options)
    assert adapted["labels"] == ["green", "red"]
    assert adapted["shots"] == {"green": 2, "red": 2}
    together = probabilities(await infer(http, adapted["path"], QUERY))
    assert together.sum(1) == pytest.approx(1)
    alone = [probabilities(await infer(http, adapted["path"], image[None]))[0] for image in QUERY]
    assert np.allclose(together, alone, atol=1e-5)
    body = TASK | options | {"query": files(QUERY)}
    predicted = (await http.post(f"/v1/meta-models/{model.id}/predict", json=body)).json()["predictions"]
    rows = [[each["probabilities"][label] for label in adapted["labels"]] for each in predicted]
    assert np.allclose(together, rows, atol=1e-4)


async def test_it_is_an_api_like_those_of_a_zoo(http: httpx.AsyncClient, publish: Publish) -> None:
    adapted = await adapt(http, await publish(), name="colours")
    told = (await http.get(adapted["path"])).json()
    assert told["parameters"]["labels"] == ["green", "red"]
    assert told["inputs"][0]["shape"] == [-1, 3, 32, 32]
    assert (await http.get(f"{adapted['path']}/ready")).json() == {"name": adapted["id"], "ready": True}
    assert [each["name"] for each in (await http.post("/v2/repository/index")).json()] == [adapted["id"]]
    first = await infer(http, adapted["path"], QUERY, **{"Idempotency-Key": "k"})
    again = await infer(http, adapted["path"], QUERY, **{"Idempotency-Key": "k"})
    assert (first.headers["x-query-cost"], again.headers["x-query-cost"]) == ("6", "6")
    assert again.headers["idempotency-replayed"] == "true"
    assert (probabilities(first) == probabilities(again)).all()
    other = await infer(http, adapted["path"], QUERY[:1], **{"Idempotency-Key": "k"})
    assert other.json()["type"].endswith("key-reused")
    file = base64.b64decode(files(QUERY[:1])[0])
    labelled = await http.post(f"/v1/models/{adapted['id']}/classify", files={"files": ("x.png", file)})
    assert labelled.json()[0][0]["label"] == "red"
    assert (await http.get(f"/v1/adapted-models/{adapted['id']}")).json()["answered"] == 7
    assert (await infer(http, adapted["path"], QUERY[:, :8])).status_code == 422


async def test_strangers_and_other_ids_get_nothing(http: httpx.AsyncClient, publish: Publish) -> None:
    adapted = await adapt(http, await publish())
    for headers in ({"Authorization": "Bearer x"}, {"Authorization": ""}):
        assert (await infer(http, adapted["path"], QUERY, **headers)).status_code == 401
        assert (await http.get(adapted["path"], headers=headers)).status_code == 401
        assert (await http.post("/v2/repository/index", headers=headers)).status_code == 401
    assert (await infer(http, "/v2/models/am_none", QUERY)).status_code == 404
    assert (await http.get("/v1/adapted-models/am_none")).status_code == 404
    assert (await http.post("/v1/meta-models/mm_none/adapt", json=TASK)).status_code == 404


async def test_what_is_kept_of_it(http: httpx.AsyncClient, services: Services, publish: Publish) -> None:
    model = await publish()
    bare, full = await adapt(http, model), await adapt(http, model, keep_support=True)
    assert (bare["support_kept"], full["support_kept"]) == (False, True)
    assert sorted(bare["files"]) == ["config.json", "model.safetensors"]
    assert sorted(full["files"]) == ["config.json", "model.safetensors", "support.safetensors"]
    for name, digest in full["files"].items():
        content = (await http.get(f"/v1/adapted-models/{full['id']}/files/{name}")).content
        assert hashlib.sha256(content).hexdigest() == digest
    images = torch.from_numpy(pixels(4)).permute(0, 3, 1, 2)
    from safetensors.torch import load

    assert torch.equal(load(content)["images"], images)
    raw = [services.artifacts.read(path) for path in services.artifacts.list(folder(bare["id"]))]
    assert not any(image.numpy().tobytes()[:64] in held for held in raw for image in images)
    page = (await http.get("/v1/adapted-models", params={"limit": 1})).json()
    assert [each["id"] for each in page["items"]] == [full["id"]]
    page = (await http.get("/v1/adapted-models", params={"after": page["next"]})).json()
    assert ([each["id"] for each in page["items"]], page["next"]) == ([bare["id"]], None)


async def test_the_end_by_time_or_by_hand(http: httpx.AsyncClient, services: Services, publish: Publish) -> None:
    now = datetime.now(UTC)
    store = AdaptedModelStore(services.redis, Scripts(services.redis), clock=lambda: now)
    services.adapted_models.clock = lambda: now
    model = await publish()
    kept, deleted, expired = [await adapt(http, model, ttl=ttl) for ttl in (3600, 3600, 60)]
    assert (await http.delete(f"/v1/adapted-models/{deleted['id']}")).status_code == 204
    now += timedelta(seconds=60)
    for _ in range(2):  # before and after its remains are swept
        for gone in (deleted, expired):
            for path in (gone["path"], f"/v1/adapted-models/{gone['id']}"):
                assert (await http.get(path)).json()["type"].endswith("gone")
            assert (await http.delete(f"/v1/adapted-models/{gone['id']}")).status_code == 410
            assert (await infer(http, gone["path"], QUERY)).status_code == 410
        assert [each["id"] for each in (await http.get("/v1/adapted-models")).json()["items"]] == [kept["id"]]
        await Sweeper(store, services.artifacts).round()
    assert [path.split("/")[1] for path in services.artifacts.list("adapted-models")] == [kept["id"]] * 2
    assert await services.redis.scard("mz:adapted-models:keys") == 1
    probabilities(await infer(http, kept["path"], QUERY))


async def test_files_of_one_that_was_never_finished_are_swept(services: Services) -> None:
    now = datetime.now(UTC)
    store = AdaptedModelStore(services.redis, Scripts(services.redis), clock=lambda: now)
    await store.begin("am_lost")
    services.artifacts.write(f"{folder('am_lost')}/config.json", b"{}")
    sweeper = Sweeper(store, services.artifacts)
    await sweeper.round()
    assert services.artifacts.exists(f"{folder('am_lost')}/config.json")
    now += timedelta(hours=2)
    await sweeper.round()
    assert services.artifacts.list("adapted-models") == []


async def test_one_backbone_serves_all_and_eviction_only_costs_a_load(
    http: httpx.AsyncClient, services: Services, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], io.load
    monkeypatch.setattr(io, "load", lambda path: loads.append(path) or load(path))
    model = await publish()
    stores = (services.meta_models, services.adapted_models, services.artifacts)
    roomy, cramped = Serving(*stores, memory=2**30), Serving(*stores, memory=1)
    request = AdaptRequest.model_validate(TASK)
    adapted = await asyncio.gather(*(roomy.adapt(model.id, request) for _ in range(5)))
    served = [await services.adapted_models.served(each.id) for each in adapted]
    hosted = await asyncio.gather(*(roomy.hosted(each) for each in served * 2))
    assert len(loads) == 1
    assert len({id(each._module().backbone) for each in hosted}) == 1
    assert len({id(each) for each in hosted}) == 5
    images = torch.from_numpy(QUERY).permute(0, 3, 1, 2)
    for each in served * 2:
        again = await cramped.hosted(each)
        assert torch.allclose(again.predict(images), hosted[0].predict(images))
    assert len(loads) == 11


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"ttl": 59}, "ttl"),
        ({"steps": 5}, "steps"),
        ({"method": "prototypes", "rate": 0.1}, "rate"),
        ({"method": "fine-tune", "steps": 1000, "support": {"images": ["x"] * 60, "labels": ["a", "b"] * 30}}, "steps"),
        ({"calibration": {"inversion_steps": 1000, "images_per_class": 100}}, "calibration"),
        ({"support": {"images": ["", TASK["support"]["images"][0]], "labels": ["a", "b"]}}, "support.images.0"),
    ],
)
async def test_tasks_that_are_none(
    change: dict[str, Any], field: str, http: httpx.AsyncClient, publish: Publish
) -> None:
    model = await publish()
    response = await http.post(f"/v1/meta-models/{model.id}/adapt", json=TASK | change)
    assert response.status_code == 422
    assert [fault["field"] for fault in response.json()["errors"]] == [field]
    assert (await http.get("/v1/adapted-models")).json()["items"] == []
