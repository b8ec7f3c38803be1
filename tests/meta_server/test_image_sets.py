"""Images of one's own: uploaded, refused whole, planned for, shown, and nobody else's business."""

import io
import zipfile
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from PIL import Image

from contracts.jobs import JobRequest
from meta_server.orphans import OrphanSweeper
from meta_server.planning import fitted, pinned
from meta_server.services import Services
from meta_server.store import image_sets

pytestmark = [pytest.mark.anyio, pytest.mark.redis]
ZIP = {"Content-Type": "application/zip"}


def archive(count: int = 20, **more: bytes) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        for index in range(count):
            drawn = io.BytesIO()
            Image.new("RGB", (16, 16), (12 * index, 0, 0)).save(drawn, "PNG")
            file.writestr(f"{index:03d}", drawn.getvalue())
        for name, held in more.items():
            file.writestr(name, held)
    return content.getvalue()


async def test_a_set_is_uploaded_found_and_deleted(http: httpx.AsyncClient, services: Services) -> None:
    content = archive()
    made = await http.post("/v1/image-sets?name=photos", content=content, headers=ZIP)
    assert made.status_code == 201, made.text
    told = made.json()
    assert (told["name"], told["images"], told["bytes"]) == ("photos", 20, len(content))
    assert image_sets.archive_of(services.artifacts, told["id"]) == content
    assert (await http.get("/v1/image-sets")).json() == {"items": [told], "next": None}
    assert (await http.get(f"/v1/image-sets/{told['id']}")).json() == told
    assert (await http.delete(f"/v1/image-sets/{told['id']}")).status_code == 204
    assert (await http.get(f"/v1/image-sets/{told['id']}")).status_code == 404
    assert services.artifacts.list("image-sets") == []


async def test_what_cannot_be_used_is_refused_whole(
    http: httpx.AsyncClient, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = await http.post("/v1/image-sets", content=archive(notes=b"hello"), headers=ZIP)
    assert refused.status_code == 422
    assert [fault["field"] for fault in refused.json()["errors"]] == ["body.notes"]
    for content, words in ((b"no zip", "no zip archive"), (archive(3), "give 16")):
        refused = await http.post("/v1/image-sets", content=content, headers=ZIP)
        assert (refused.status_code, refused.json()["errors"][0]["field"]) == (422, "body")
        assert words in refused.json()["errors"][0]["message"]
    assert (await http.post("/v1/image-sets", content=archive())).status_code == 415
    assert services.artifacts.list("image-sets") == []
    monkeypatch.setattr(image_sets, "MOST_SETS", 0)
    assert (await http.post("/v1/image-sets", content=archive(), headers=ZIP)).status_code == 409


async def test_a_job_is_planned_for_as_many_images_as_there_are(
    http: httpx.AsyncClient, services: Services, request_body: dict[str, Any]
) -> None:
    name = (await http.post("/v1/image-sets", content=archive(), headers=ZIP)).json()["id"]
    made = await http.post("/v1/jobs", json=request_body | {"unlabeled": name})
    assert made.status_code == 202, made.text
    assert made.json()["request"]["unlabeled"] == name
    assert made.json()["request"]["method"]["images"] == 20
    told = (await http.post("/v1/jobs/estimate", json=request_body | {"unlabeled": name})).json()
    assert told["queries"] == 40  # twenty images to both APIs, of a budget of 100
    for method, field in (({"name": "bidf_mkd"}, "body"), ({"name": "pqd"}, "unlabeled")):
        body = request_body | {"method": method, "unlabeled": name if field == "body" else "is_" + "0" * 22}
        refused = await http.post("/v1/jobs", json=body)
        assert refused.status_code == 422
        assert "unlabeled" in refused.json()["errors"][0]["field"]
    stored = await services.jobs.load(made.json()["id"])
    lease = await services.jobs.take(stored.id, "acquire:a0", "test")
    assert lease is not None
    await services.jobs.work.begin(stored.id, lease)
    await services.jobs.work.agree_on_shape(stored.id, lease, (3, 8, 8))
    shown = await http.get(f"/v1/jobs/{stored.id}/images?count=64")
    assert (shown.status_code, Image.open(io.BytesIO(shown.content)).format) == (200, "PNG")
    await http.delete(f"/v1/image-sets/{name}")
    assert (await http.get(f"/v1/jobs/{stored.id}/images")).status_code == 410


async def test_it_is_nobody_elses(http: httpx.AsyncClient, request_body: dict[str, Any]) -> None:
    name = (await http.post("/v1/image-sets", content=archive(), headers=ZIP)).json()["id"]
    key = (await http.post("/admin/keys", json={"name": "b", "tenant": "other", "role": "user"})).json()["secret"]
    theirs = {"Authorization": f"Bearer {key}"}
    assert (await http.get(f"/v1/image-sets/{name}", headers=theirs)).status_code == 404
    assert (await http.delete(f"/v1/image-sets/{name}", headers=theirs)).status_code == 404
    assert (await http.get("/v1/image-sets", headers=theirs)).json()["items"] == []
    refused = await http.post("/v1/jobs", json=request_body | {"unlabeled": name}, headers=theirs)
    assert [fault["field"] for fault in refused.json()["errors"]] == ["unlabeled"]


async def test_an_archive_that_no_record_names_is_swept(http: httpx.AsyncClient, services: Services) -> None:
    """As of a server that was killed between the two."""
    name = (await http.post("/v1/image-sets", content=archive(), headers=ZIP)).json()["id"]
    image_sets.keep_archive(services.artifacts, "is_" + "0" * 22, archive())
    kept, lost = sorted(services.artifacts.list("image-sets"), key=lambda path: name not in path)
    tomorrow = OrphanSweeper(services.redis, services.artifacts, now=lambda: datetime.now(UTC) + timedelta(days=2))
    assert await tomorrow.round() == [lost]
    assert services.artifacts.list("image-sets") == [kept]


def test_a_raised_budget_asks_no_image_that_is_not_there(request_body: dict[str, Any]) -> None:
    """And the same ones first: the plan of the smaller budget is the beginning of the larger one's."""
    request = JobRequest.model_validate(request_body | {"method": {"apis_per_image": 1}, "budget": {"queries": 100}})
    made = fitted(request, 120)
    larger = made.model_copy(update={"budget": made.budget.model_copy(update={"queries": 1000})})
    assert (made.method.images, made.method.apis_per_image) == (120, 1)  # type: ignore[union-attr]
    assert pinned(larger).method.images == 120  # type: ignore[union-attr]
