"""The registry of meta-models: edited, deleted and brought back, compared, taken home in one zip."""

from collections.abc import Awaitable, Callable
from io import BytesIO
from zipfile import ZipFile

import httpx
import pytest
import torch

from contracts.meta_models import Evaluation, MetaModel
from dfml import evaluate
from dfml.datasets import open_dataset
from dfml.io import load
from meta_server.services import Services

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

Publish = Callable[..., Awaitable[MetaModel]]
EPISODES = {"episodes": 20, "shots": [1, 3], "ways": 3, "queries": 4, "seed": 5}


async def test_edits_touch_what_they_name(http: httpx.AsyncClient, publish: Publish) -> None:
    model = await publish(1)
    path = f"/v1/meta-models/{model.id}"
    for edit, expected in (
        ({"notes": "five APIs"}, {"notes": "five APIs"}),
        ({"name": "best", "tags": ["a", "b"]}, {"notes": "five APIs", "name": "best", "tags": ["a", "b"]}),
        ({"tags": [], "notes": None}, {"notes": "five APIs", "name": "best", "tags": []}),
        ({}, {"notes": "five APIs", "name": "best", "tags": []}),
    ):
        told = (await http.patch(path, json=edit)).json()
        assert told == model.model_dump(mode="json") | expected
        assert (await http.get(path)).json() == told
        assert (await http.get("/v1/meta-models")).json()["items"] == [told]
    for edit, field in (({"name": ""}, "name"), ({"tags": ["a b"]}, "tags.0"), ({"queries": 0}, "queries")):
        refused = await http.patch(path, json=edit)
        assert [fault["field"] for fault in refused.json()["errors"]] == [field]
    assert (await http.patch("/v1/meta-models/mm_none", json={})).status_code == 404


async def test_a_deleted_one_is_gone_until_it_is_restored(http: httpx.AsyncClient, publish: Publish) -> None:
    kept, deleted = await publish(1), await publish(2)
    path = f"/v1/meta-models/{deleted.id}"
    assert (await http.delete(path)).status_code == 204
    assert [each["id"] for each in (await http.get("/v1/meta-models")).json()["items"]] == [kept.id]
    compare = {"first": kept.id, "second": deleted.id}
    for response in (
        await http.get(path),
        await http.delete(path),
        await http.patch(path, json={}),
        await http.get(f"{path}/files/config.json"),
        await http.get(f"{path}/archive"),
        await http.post("/v1/meta-models/compare", json=compare),
    ):
        assert response.status_code == 410
    assert (await http.post(f"{path}/restore")).json() == deleted.model_dump(mode="json")
    assert [each["id"] for each in (await http.get("/v1/meta-models")).json()["items"]] == [deleted.id, kept.id]
    assert (await http.post("/v1/meta-models/mm_none/restore")).status_code == 404


async def test_a_comparison_is_two_evaluations_and_their_paired_difference(
    http: httpx.AsyncClient, services: Services, publish: Publish
) -> None:
    first, second = await publish(1), await publish(2)
    body = {"first": first.id, "second": second.id, "evaluation": EPISODES}
    told = (await http.post("/v1/meta-models/compare", json=body)).json()
    glyphs, evaluation = open_dataset("glyphs", None), Evaluation(**EPISODES)
    for model, name in ((first, "first"), (second, "second")):
        backbone = load(services.artifacts.local(await services.meta_models.folder(model.id)))
        alone = evaluate.evaluate(backbone, glyphs, evaluation)
        assert told[name] == alone.model_dump(mode="json")
    for shots in ("1", "3"):
        plain = told["second"]["accuracy"][shots] - told["first"]["accuracy"][shots]
        assert told["difference"]["accuracy"][shots] == pytest.approx(plain)
    backwards = body | {"first": second.id, "second": first.id}
    other = (await http.post("/v1/meta-models/compare", json=backwards)).json()["difference"]
    assert other["interval"] == pytest.approx(told["difference"]["interval"])


def test_pairing_takes_the_episodes_difficulty_out() -> None:
    """Against itself a network differs by nothing for certain, although each accuracy has an interval."""
    from contracts.meta_models import BackboneConfig
    from dfml.nets import build

    backbone = build(BackboneConfig(width=16), (3, 32, 32), generator=torch.Generator().manual_seed(0))
    one, _, difference = evaluate.compare(backbone, backbone, open_dataset("glyphs", None), Evaluation(**EPISODES))
    assert set(difference.accuracy.values()) == set(difference.interval.values()) == {0.0}
    assert min(one.interval.values()) > 0


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"second": "mm_1"}, "second"),
        ({"evaluation": {"episodes": 10_000}}, "evaluation.episodes"),
        ({"evaluation": {"dataset": "nothing"}}, "evaluation.dataset"),
        ({"evaluation": {"dataset": "cifar-fs"}}, "evaluation.dataset"),
        ({"evaluation": {"shots": [99]}}, "evaluation"),
    ],
)
async def test_comparisons_that_are_none(change: dict, field: str, http: httpx.AsyncClient, publish: Publish) -> None:
    await publish(1)
    await publish(2)
    response = await http.post("/v1/meta-models/compare", json={"first": "mm_1", "second": "mm_2"} | change)
    assert [fault["field"] for fault in response.json()["errors"]] == [field]


async def test_a_zip_holds_all_files_and_is_the_same_each_time(
    http: httpx.AsyncClient, services: Services, publish: Publish, tmp_path
) -> None:
    model = await publish(1)
    first, again = [await http.get(f"/v1/meta-models/{model.id}/archive") for _ in range(2)]
    assert first.content == again.content
    assert first.headers["content-type"] == "application/zip"
    assert first.headers["content-disposition"] == f'attachment; filename="{model.id}.zip"'
    with ZipFile(BytesIO(first.content)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == sorted(f"{model.id}/{name}" for name in model.files)
        archive.extractall(tmp_path)
    assert load(tmp_path / model.id).input_shape == (3, 32, 32)
