"""Jobs that run through workers of their own processes."""

import base64
import json
import os
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
import safetensors.numpy
from PIL import Image

from contracts.access import DEFAULT_TENANT
from contracts.jobs import JobStatus
from dfml.plans import FEW
from meta_server.app import create_app
from meta_server.queue import Queue, lane_of
from meta_server.settings import Settings
from meta_server.store.artifacts import Artifacts
from meta_server.store.jobs import JobStore
from tests.worker.processes.conftest import KEY, Served, request_to, said, until

pytestmark = [pytest.mark.anyio, pytest.mark.redis, pytest.mark.process, pytest.mark.timeout(180)]


async def test_a_job_through_both_workers(
    store: JobStore,
    redis_url: str,
    queue: Queue,
    api: Any,
    request_of: Any,
    serve: Any,
    start_worker: Any,
    tmp_path: Path,
) -> None:
    served = [serve(api(shape=(3, 32, 32))) for _ in range(2)]
    allow = ",".join(one.host for one in served)
    start_worker("acquire", allow=allow, concurrency=2)
    start_worker("learn.cpu", allow=allow)
    evaluation = {"dataset": "glyphs", "episodes": 4, "shots": [1]}
    job, _ = await store.create(request_to(request_of, *served, budget={"queries": 200}, evaluation=evaluation))
    queue.begin([job.id])
    ended = await until(store, job.id, lambda job: job.finished_at is not None)
    assert ended.status == JobStatus.SUCCEEDED, ended.error
    assert ended.budget.confirmed == 200
    assert ended.score is not None
    assert ended.random_score is not None
    words = said(tmp_path)
    assert {json.loads(line)["level"] for line in words.splitlines() if line} == {"info"}, words
    assert redis_url.split("@")[0].split(":")[-1] not in words  # the password
    assert "Warning" not in words


async def test_a_worker_asks_the_api_that_stands_in_for_another(
    store: JobStore, queue: Queue, api: Any, request_of: Any, serve: Any, start_worker: Any
) -> None:
    books = [api() for _ in range(FEW + 1)]
    served = [serve(one) for one in books]
    job, _ = await store.create(request_to(request_of, *served, budget={"queries": FEW * 20}))
    planned = [one.planned for one in job.progress.per_api.values()]
    books[planned.index(20)].refuse = lambda *_: httpx.Response(403, json={})
    start_worker("acquire", allow=",".join(one.host for one in served))
    queue.begin([job.id])
    asked = await until(store, job.id, lambda job: job.budget.confirmed == FEW * 20)
    assert [one.charged for one in books].count(0) == 1
    assert books[planned.index(0)].charged == 20
    assert asked.progress.per_api[f"a{planned.index(0)}"].stands_in_for == f"a{planned.index(20)}"


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")  # of the S3 server and botocore
async def test_a_job_whose_files_lie_in_s3(
    redis_url: str,
    secret_key: str,
    api: Any,
    request_of: Any,
    serve: Any,
    start_worker: Any,
    s3_url: str,
    tmp_path: Path,
) -> None:
    """From the POST to predictions and back to nothing, over three processes that share no folder."""
    served = [serve(api()) for _ in range(2)]
    allow = ",".join(one.host for one in served)
    for queue in ("acquire", "learn.cpu"):
        start_worker(queue, allow=allow, concurrency=2 if queue == "acquire" else 1, artifacts=s3_url)
    settings = Settings(redis_url=redis_url, artifacts=s3_url, secret_key=secret_key, api_key=KEY)
    app = create_app(settings)
    http = httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://server.test", headers={"Authorization": f"Bearer {KEY}"}
    )
    async with app.router.lifespan_context(app), http:
        request = request_to(request_of, *served, budget={"queries": 200})
        asked = await http.post("/v1/jobs", json=request.model_dump(mode="json", exclude_unset=True))
        job = await until(app.state.services.jobs, asked.json()["id"], lambda job: job.finished_at is not None)
        assert job.status == JobStatus.SUCCEEDED, (job.error, said(tmp_path))
        assert job.budget.confirmed == 200
        paid = (await http.get(f"/v1/jobs/{job.id}/answers?limit=100")).json()["items"]
        assert sum(answer["images"] for answer in paid) == 200
        answer = await http.get(f"/v1/jobs/{job.id}/answers/{paid[0]['name']}")
        assert len(safetensors.numpy.load(answer.content)["indices"]) == paid[0]["images"]
        model = (await http.get(f"/v1/meta-models/{job.meta_model}")).json()
        files = [await http.get(f"/v1/meta-models/{model['id']}/files/{name}") for name in model["files"]]
        assert {name: sha256(file.content).hexdigest() for name, file in zip(model["files"], files, strict=True)} == (
            model["files"]
        )
        pictures = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "maroon", "green")]
        contents = [BytesIO() for _ in pictures]
        for picture, content in zip(pictures, contents, strict=True):
            picture.save(content, "PNG")
        encoded = [base64.b64encode(content.getvalue()).decode() for content in contents]
        task = {"support": {"images": encoded[:2], "labels": ["red", "green"]}, "method": "prototypes"}
        adapted = (await http.post(f"/v1/meta-models/{model['id']}/adapt", json=task)).json()
        assert sorted(adapted["labels"]) == ["green", "red"]
        guessed = await http.post(f"/v1/meta-models/{model['id']}/predict", json=task | {"query": encoded[2:]})
        assert guessed.status_code == 200, guessed.text
        store = Artifacts(s3_url)
        assert store.list(f"jobs/{job.id}/answers")
        assert store.list("adapted-models")
    assert not any(file.endswith(".safetensors") for _, _, files in os.walk(tmp_path) for file in files)


async def test_a_large_job_keeps_no_small_one_waiting(
    store: JobStore, queue: Queue, api: Any, request_of: Any, serve: Any, start_worker: Any
) -> None:
    """One place, a job of 16 APIs in line, and then two of 2 APIs, by two tenants: they take turns from there on.

    Of four turns two are the other tenant's, and each of the first one's jobs has one.
    """
    order: list[str] = []

    def telling(job: str) -> Any:
        class Telling(api):
            async def handle(self, request: httpx.Request) -> httpx.Response:
                if request.url.path.endswith("/infer") and not self.charged:
                    order.append(job)
                return await super().handle(request)

        return serve(Telling())

    asked: dict[str, list[Served]] = {name: [] for name in ("large", "small", "other")}
    jobs: dict[str, str] = {}
    lanes: dict[str, str] = {}
    for name, tenant, apis in (("large", "a", 16), ("small", "a", 2), ("other", "b", 2)):
        asked[name] = [telling(name) for _ in range(apis)]
        while name not in jobs or len(set(lanes.values())) < len(jobs):  # no chance in it
            job, _ = await store.create(
                request_to(request_of, *asked[name], budget={"queries": 16 * apis}), tenant=tenant
            )
            jobs[name], lanes[name] = job.id, lane_of(job.id, tenant)
        queue.send_all(jobs[name], (await store.load(jobs[name])).due(), tenant=tenant)
    start_worker("acquire", allow=",".join(one.host for served in asked.values() for one in served))
    for name in ("small", "other"):
        await until(
            store, jobs[name], lambda job: all(one.state == "done" for one in job.progress.per_api.values()), 60
        )
    began = order[: max(len(order) - order[::-1].index(name) for name in ("small", "other"))]
    assert began.count("large") <= 4, order


async def test_a_job_is_paused_and_resumed_without_losing_an_answer(
    store: JobStore, queue: Queue, api: Any, request_of: Any, serve: Any, start_worker: Any
) -> None:
    served = serve(slow := api(idempotency=False), 0.2)  # a lost answer would be lost for good
    start_worker("acquire", allow=served.host)
    job, _ = await store.create(request_to(request_of, served, budget={"queries": 320}))
    queue.begin([job.id])
    await until(store, job.id, lambda job: job.budget.confirmed > 50)
    await store.moves.pause(job.id, reason="night")
    paused = await until(store, job.id, lambda job: job.status == JobStatus.PAUSED, 40)
    assert (paused.reason, paused.budget.reserved, paused.budget.unconfirmed) == ("night", 0, 0)
    assert paused.budget.confirmed == slow.charged < 320
    await store.moves.resume(job.id)
    queue.send_all(job.id, (await store.load(job.id)).due(), tenant=DEFAULT_TENANT)
    ended = await until(store, job.id, lambda job: job.progress.per_api["a0"].state == "done", 40)
    assert ended.budget.confirmed == slow.charged == 320
