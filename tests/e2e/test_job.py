"""A whole job over real HTTP between real processes: what is promised is what is found."""

import hashlib
import json
import stat
from pathlib import Path

import httpx
import pytest
from PIL import Image

from client import Job, JobStatus, Metazoo
from client.errors import Conflict, InvalidRequest, JobFailed
from dfml.datasets import open_dataset

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
QUERIES = 1001  # no multiple of anything


@pytest.fixture(scope="module")
def metazoo(up):
    with Metazoo(
        up.ready["server_url"],
        up.ready["api_key"],
        zoo_url=up.ready["zoo_url"],
        zoo_api_key=up.ready["models"][0]["api_key"],
    ) as client:
        yield client


@pytest.fixture(scope="module")
def finished(up, metazoo: Metazoo) -> tuple[Job, int]:
    """A job that went through, and what the zoo charged for it."""
    before = metazoo.zoo.usage().spent
    job = metazoo.jobs.create(
        {
            "name": "whole",
            "apis": up.apis,
            "budget": {"queries": QUERIES},
            "method": {"name": "pqd", "steps": 120},
            "evaluation": {"dataset": "glyphs", "split": "val", "episodes": 200},
            "seed": 3,
        }
    )
    assert job.status is JobStatus.QUEUED
    job.wait(timeout=240)
    return job, metazoo.zoo.usage().spent - before


def test_the_books_of_job_and_zoo_agree(finished: tuple[Job, int]) -> None:
    job, charged = finished
    budget = job.budget
    assert budget.confirmed == charged
    assert budget.unconfirmed == budget.reserved == 0
    assert budget.confirmed + budget.left == budget.limit == QUERIES
    assert QUERIES - 4 < charged <= QUERIES  # the plan leaves at most a remainder
    assert sum(api.confirmed for api in budget.per_api.values()) == charged
    assert {api.state for api in job.progress.per_api.values()} == {"done"}


def test_it_learned_something(finished: tuple[Job, int]) -> None:
    job, _ = finished
    assert job.score is not None
    assert job.random_score is not None
    assert job.score.accuracy["5"] > job.random_score.accuracy["5"] + job.score.interval["5"]
    assert set(job.seconds) == {"probe", "acquire", "meta_train", "evaluate", "publish"}


def test_events_tell_the_story_in_order(finished: tuple[Job, int]) -> None:
    job, _ = finished
    events = list(job.events())
    ids = [tuple(map(int, event.id.split("-"))) for event in events]
    assert ids == sorted(set(ids))
    phases = [event.data["phase"] for event in events if event.type == "phase"]
    assert phases == ["probe", "acquire", "meta_train", "evaluate", "publish"]
    statuses = [event.data["status"] for event in events if event.type == "status"]
    assert statuses == ["queued", "running", "succeeded"]
    followed = [event.id for event in job.stream()]
    assert followed == [event.id for event in events]


def test_the_model_is_whole_and_says_what_it_cost(metazoo: Metazoo, finished: tuple[Job, int], tmp_path: Path) -> None:
    job, charged = finished
    assert job.meta_model is not None
    model = metazoo.meta_models.retrieve(job.meta_model)
    assert model.queries == charged
    assert model.score == job.score
    folder = metazoo.meta_models.download(model.id, tmp_path / "model")
    for name, digest in model.files.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    assert {"config.json", "model.safetensors", "README.md", "metrics.json", "SHA256SUMS"} <= set(model.files) | {
        "SHA256SUMS"
    }
    assert f"{charged:,}" in (folder / "README.md").read_text()
    text = "".join(path.read_text(errors="replace") for path in folder.iterdir())
    assert job.request.apis[0].url not in text


def test_it_learns_a_new_task_in_one_call(metazoo: Metazoo, finished: tuple[Job, int]) -> None:
    job, _ = finished
    images = open_dataset("glyphs", None).images("val").permute(0, 1, 3, 4, 2).numpy()
    pictures = [[Image.fromarray(image) for image in one_class[:25]] for one_class in images[:3]]
    answer = metazoo.meta_models.predict(
        str(job.meta_model),
        support=[(picture, f"class {k}") for k, one_class in enumerate(pictures) for picture in one_class[:5]],
        query=[picture for one_class in pictures for picture in one_class[5:]],
    )
    truth = [f"class {k}" for k in range(3) for _ in range(20)]
    right = sum(prediction.label == label for prediction, label in zip(answer.predictions, truth, strict=True))
    assert right >= 28  # 20 by chance, with a deviation of 3.7
    assert all(abs(sum(p.probabilities.values()) - 1) < 1e-4 for p in answer.predictions)


def test_the_same_seed_gives_the_same_model(up, metazoo: Metazoo, finished: tuple[Job, int]) -> None:
    job, _ = finished
    again = metazoo.jobs.create(
        {
            "apis": up.apis,
            "budget": {"queries": QUERIES},
            "method": {"name": "pqd", "steps": 120},
            "seed": 3,
        }
    )
    again.wait(timeout=240)
    first, second = (metazoo.meta_models.retrieve(str(one.meta_model)) for one in (job, again))
    assert first.files["model.safetensors"] == second.files["model.safetensors"]
    assert second.score is None


def test_cancel_stops_a_job_within_a_step(up, metazoo: Metazoo) -> None:
    job = metazoo.jobs.create(
        {"apis": up.apis, "budget": {"queries": 400}, "method": {"name": "pqd", "steps": 100_000}}
    )
    for event in job.stream():
        if event.type == "phase" and event.data["phase"] == "meta_train":
            job.cancel()
    assert job.status is JobStatus.CANCELLED
    assert job.budget.reserved == 0
    assert job.budget.confirmed == 400  # what was paid for is kept
    with pytest.raises(Conflict):
        job.cancel()


def test_a_job_with_faults_is_refused_whole(up, metazoo: Metazoo) -> None:
    before = metazoo.zoo.usage().spent
    with pytest.raises(InvalidRequest) as caught:
        metazoo.jobs.create({"apis": [{"url": "nonsense"}], "budget": {"queries": 0}, "method": {"name": "magic"}})
    assert {fault.field for fault in caught.value.fields} == {"apis.0.url", "budget.queries", "method.name"}
    assert metazoo.zoo.usage().spent == before


def test_an_address_that_is_not_allowed_is_never_called(metazoo: Metazoo) -> None:
    job = metazoo.jobs.create({"apis": [{"url": "http://127.0.0.1:9/v2/models/m"}], "budget": {"queries": 10}})
    with pytest.raises(JobFailed) as caught:
        job.wait(timeout=60)
    assert caught.value.code == "too_few_apis"
    (api,) = job.progress.per_api.values()
    assert api.state == "dropped"
    assert "METAZOO_ALLOW" in str(api.reason)
    assert job.budget.confirmed == 0


def test_no_secret_is_seen_where_it_does_not_belong(up) -> None:
    import psutil

    assert stat.S_IMODE(up.ready_file.stat().st_mode) == 0o600
    secrets = [up.ready["api_key"], up.ready["zoo_admin_key"], up.ready["models"][0]["api_key"]]
    secrets.append(up.ready["redis_url"].split("@")[0].removeprefix("redis://:"))
    for process in psutil.Process(up.process.pid).children(recursive=True):
        arguments = " ".join(process.cmdline())
        assert not any(secret in arguments for secret in secrets)
    logs = up.ready_file.parent / "data" / "logs"
    text = "".join(path.read_text() for path in logs.iterdir())
    for url in (up.ready["server_url"], up.ready["zoo_url"]):
        measured = httpx.get(f"{url}/metrics").raise_for_status().text
        assert "metazoo_requests" in measured
        text += measured
    assert text
    assert not any(secret in text for secret in secrets)


def test_the_ready_file_says_what_is_promised(up) -> None:
    ready = json.loads(up.ready_file.read_text())
    assert set(ready) == {"server_url", "zoo_url", "redis_url", "api_key", "zoo_admin_key", "models", "pids"}
    assert all(set(model) == {"name", "url", "api_key"} for model in ready["models"])
    assert httpx.get(f"{ready['server_url']}/health/ready").status_code == 200


def test_a_probe_tells_what_the_zoo_charged(up, metazoo: Metazoo) -> None:
    before = metazoo.zoo.usage().spent
    told = metazoo.jobs.estimate({"apis": up.apis, "budget": {"queries": QUERIES}}, probe=True, probe_images=5)
    assert told.probe is not None
    seen = told.probe.per_api.values()
    assert [(one.reason, one.charged, one.deterministic, one.classes) for one in seen] == [(None, 5, True, 5)] * len(
        seen
    )
    assert (told.probe.charged, told.probe.unconfirmed) == (metazoo.zoo.usage().spent - before, 0)
    assert (told.seconds, "no rate" in (told.seconds_reason or "")) == (None, True)  # the rehearsal's keys have none
