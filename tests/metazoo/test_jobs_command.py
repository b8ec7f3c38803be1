"""`metazoo jobs`: what is sent, what is shown, and the exit codes that scripts rely on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from contracts.job_records import Event
from contracts.jobs import Job
from contracts.meta_models import Score
from contracts.problems import MEDIA_TYPE, Fault, ProblemError
from metazoo import watch
from metazoo.cli import jobs

MakeJob = Callable[..., Job]
app = jobs.app
HERE = ("--url", "http://server.test")


class Server:
    """Answers with one job and remembers what it was asked."""

    def __init__(self, job: Job, events: list[Event] | None = None) -> None:
        self.job = job
        self.events = events or []
        self.requests: list[httpx.Request] = []

    @property
    def sent(self) -> Any:
        return json.loads(self.requests[0].content)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.path.endswith("/events"):
            text = "".join(f"id: {event.id}\ndata: {event.model_dump_json()}\n\n" for event in self.events)
            return httpx.Response(200, text=text, headers={"Content-Type": "text/event-stream"})
        if request.method == "GET" and request.url.path == "/v1/jobs":
            body = {"items": [self.job.model_dump(mode="json")], "next": "job_0"}
            return httpx.Response(200, json=body)
        return httpx.Response(202 if request.method == "POST" else 200, json=self.job.model_dump(mode="json"))


def event(number: int, kind: str, **data: Any) -> Event:
    return Event(id=f"{number}-0", time=f"2026-01-01T00:00:{number:02}Z", type=kind, data=data)


EVENTS = [
    event(1, "status", status="running", reason=None),
    event(2, "phase", phase="probe"),
    event(3, "api", api="a1", state="dropped", planned=0, reason="it answers nothing"),
    event(4, "budget", api="a0", chunk="c", outcome="confirmed", images=20),
    event(5, "warning", message="slow", api="a0"),
    event(6, "metrics", step=10, steps=100, loss=0.5),
    event(7, "metrics", step=11, steps=100, loss=0.4),
    event(8, "published", meta_model="mm_1"),
    event(9, "status", status="succeeded", reason=None),
]


@pytest.fixture
def ready_file(tmp_path: Path) -> Path:
    path = tmp_path / "ready.json"
    models = [{"name": name, "url": f"http://zoo/v2/models/{name}", "api_key": f"key-{name}"} for name in "ab"]
    path.write_text(json.dumps({"server_url": "http://ready.test", "api_key": "ready-key", "models": models}))
    return path


def test_submit_from_flags(command: Any, job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEACHERS", "hush")
    server = Server(job())
    flags = "--api http://a/v2/models/x --api http://a/v2/models/y --teacher-key-env TEACHERS --queries 100 --seed 3"
    options = "--method pqd --option steps=20 --option flip=false --backbone resnet10 --dataset glyphs --name n --tag t"
    options += " --image-size 48 --access predict"
    ran = command(app, server, "submit", *flags.split(), *options.split(), *HERE)
    assert (ran.exit_code, ran.stdout.split()[0]) == (0, "job_1")
    assert server.sent == {
        "apis": [{"url": f"http://a/v2/models/{name}", "api_key": "hush", "access": "predict"} for name in "xy"],
        "budget": {"queries": 100},
        "method": {"name": "pqd", "steps": 20, "flip": False},
        "meta_model": {"backbone": "resnet10"},
        "evaluation": {"dataset": "glyphs"},
        "name": "n",
        "tags": ["t"],
        "seed": 3,
        "image_size": 48,
    }


def test_submit_every_model_of_a_ready_file(command: Any, job: MakeJob, ready_file: Path) -> None:
    server = Server(job())
    ran = command(app, server, "submit", "--all-models", "--queries", "9", "--ready-file", ready_file, "--json")
    assert Job.model_validate_json(ran.stdout).id == "job_1"
    assert server.sent["apis"] == [{"url": f"http://zoo/v2/models/{name}", "api_key": f"key-{name}"} for name in "ab"]
    assert server.requests[0].url.host == "ready.test"
    assert server.requests[0].headers["authorization"] == "Bearer ready-key"


def test_submit_from_a_file_or_standard_input_with_flags_on_top(command: Any, job: MakeJob, tmp_path: Path) -> None:
    document = {"apis": [{"url": "http://a/v2/models/x"}], "budget": {"queries": 5, "queries_per_api": 2}}
    path = tmp_path / "job.json"
    path.write_text(json.dumps(document))
    for arguments in ((str(path),), ("-",)):
        server = Server(job())
        ran = command(app, server, "submit", *arguments, "--queries", "7", *HERE, input=json.dumps(document))
        assert ran.exit_code == 0
        assert server.sent == document | {"budget": {"queries": 7, "queries_per_api": 2}}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("submit", "nowhere.json", *HERE), "nowhere.json: No such file"),
        (("submit", "-", *HERE), "is no JSON"),
        (("submit", "--option", "steps", *HERE), "NAME=VALUE"),
        (("submit", "--all-models", *HERE), "needs --ready-file"),
        (
            ("submit", "--api", "http://a", "--teacher-key-env", "NOT_SET_ANYWHERE", *HERE),
            "NOT_SET_ANYWHERE is not set",
        ),
        (("list", "--ready-file", "nowhere.json"), "metazoo up --ready-file"),
        (("list", "--ready-file", __file__), "is no ready file"),
        (("list", "--api-key-env", "NOT_SET_ANYWHERE", *HERE), "NOT_SET_ANYWHERE is not set"),
        (("list",), "METAZOO_URL"),
        (("list", "--url", "server"), "http://127.0.0.1:8000"),
        (("list", "--status", "asleep"), "asleep"),
    ],
)
def test_calls_at_fault_leave_with_2_and_send_nothing(
    arguments: tuple[str, ...], says: str, command: Any, job: MakeJob
) -> None:
    server = Server(job())
    ran = command(app, server, *arguments, input="{")
    assert ran.exit_code == 2
    assert says in ran.stderr
    assert server.requests == []


@pytest.mark.parametrize(
    ("problem", "code", "says"),
    [
        ("unauthorized", 3, "No valid key"),
        ("unavailable", 3, "not reachable"),
        ("rate-limited", 3, "Too fast"),
        ("not-found", 2, "no such thing"),
        ("conflict", 2, "state"),
        ("invalid-request", 2, "budget.queries: too small"),
    ],
)
def test_refusals_are_one_line_and_an_exit_code(problem: str, code: int, says: str, command: Any) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        told = ProblemError(problem, "detail", errors=[Fault(field="budget.queries", message="too small")]).problem
        return httpx.Response(told.status, content=told.model_dump_json(), headers={"Content-Type": MEDIA_TYPE})

    ran = command(app, refuse, "show", "job_1", *HERE)
    assert ran.exit_code == code
    assert says in ran.stderr
    assert len(ran.stderr.strip().splitlines()) == 1


def test_a_server_that_is_not_there(command: Any) -> None:
    def refuse(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("connection refused")

    ran = command(app, refuse, "list", *HERE)
    assert (ran.exit_code, len(ran.stderr.splitlines())) == (3, 1)
    assert "is it running" in ran.stderr


def test_list_show_and_cancel(command: Any, job: MakeJob) -> None:
    server = Server(job("running"))
    assert "job_1" in command(app, server, "list", *HERE).stdout
    assert json.loads(command(app, server, "list", "--json", *HERE).stdout)["next"] == "job_0"
    shown = command(app, server, "show", "job_1", *HERE).stdout
    assert "21 of 100 images" in shown
    assert "a1 http://zoo/v2/models/second: it answers nothing" in shown
    assert Job.model_validate_json(command(app, server, "show", "job_1", "--json", *HERE).stdout) == server.job
    assert command(app, server, "cancel", "job_1", *HERE).stdout == "job_1 running\n"
    assert server.requests[-1].url.path == "/v1/jobs/job_1/cancel"


def test_latest_stands_for_the_newest_job(command: Any, job: MakeJob) -> None:
    server = Server(job("running"))
    assert command(app, server, "cancel", "latest", *HERE).stdout == "job_1 running\n"
    assert [request.url.path for request in server.requests][0::2] == ["/v1/jobs", "/v1/jobs/job_1/cancel"]

    def nothing(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json={"items": [], "next": None})

    ran = command(app, nothing, "show", "latest", *HERE)
    assert (ran.exit_code, ran.stderr) == (2, "metazoo: there is none yet: `latest` stands for the newest\n")


def test_watch_tells_in_lines_what_a_person_wants_to_know(command: Any, job: MakeJob) -> None:
    score = Score(accuracy={"1": 40.9}, interval={"1": 0.8})
    done = job(
        "succeeded", meta_model="mm_1", score=score, random_score=Score(accuracy={"1": 29.3}, interval={"1": 0.7})
    )
    ran = command(app, Server(done, EVENTS), "watch", "job_1", *HERE)
    assert ran.exit_code == 0
    assert ran.stdout.splitlines() == [
        "00:00:01 running",
        "00:00:02 phase probe",
        "00:00:03 a1 dropped: it answers nothing",
        "00:00:05 warning: a0: slow",
        "00:00:06 step 10 of 100: loss 0.5",
        "00:00:08 meta-model mm_1",
        "00:00:09 succeeded",
        "job_1 succeeded: meta-model mm_1; 21 of 100 images spent",
        "1-shot accuracy 40.9 ± 0.8 % (untrained: 29.3 %)",
        "next: metazoo models predict mm_1 IMAGE… --support FOLDER (a folder of images a class)",
    ]


def test_watch_as_json_is_one_event_a_line(command: Any, job: MakeJob) -> None:
    ran = command(app, Server(job("succeeded"), EVENTS), "watch", "job_1", "--json", *HERE)
    assert [Event.model_validate_json(line) for line in ran.stdout.splitlines()] == EVENTS


@pytest.mark.parametrize(
    ("status", "fields", "says"),
    [
        ("failed", {"error": {"code": "too_few_apis", "message": "all are down"}}, "all are down (too_few_apis)"),
        ("cancelled", {}, "cancelled"),
    ],
)
def test_watch_of_a_job_that_did_not_succeed_leaves_with_1(
    status: str, fields: Any, says: str, command: Any, job: MakeJob
) -> None:
    events = [event(1, "status", status=status)]
    for arguments in (("watch", "job_1"), ("submit", "--watch", "--api", "http://a/v2/models/x", "--queries", "1")):
        ran = command(app, Server(job(status, **fields), events), *arguments, *HERE)
        assert ran.exit_code == 1
        assert says in ran.stdout


def test_bars_fit_a_terminal(job: MakeJob) -> None:
    console = Console(width=100, height=40, record=True, force_terminal=True)
    console.print(watch.bars(job("running", metrics={"loss": 0.25}), most_apis=1))
    text = console.export_text()
    assert all(
        word in text
        for word in (
            "job_1",
            "running",
            "loss 0.25",
            "100%",
            "40%",
            "1.5 s",
            "a0",
            "20/50",
            "first in the place of second",
        )
    )
    assert "and 1 more APIs" in text
    assert max(map(len, text.splitlines())) <= 100


def test_watch_shows_bars_in_a_terminal(command: Any, job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    ran = command(app, Server(job("succeeded", meta_model="mm_1"), EVENTS), "watch", "job_1", *HERE)
    assert ran.exit_code == 0
    assert "warning: a0: slow" in ran.stdout
    assert "21 of 100 images" in ran.stdout


@pytest.mark.parametrize(
    ("arguments", "method", "path", "body"),
    [
        (("pause", "job_1"), "POST", "/v1/jobs/job_1/pause", None),
        (("resume", "job_1"), "POST", "/v1/jobs/job_1/resume", None),
        (("retry", "job_1"), "POST", "/v1/jobs/job_1/retry", None),
        (
            ("change", "job_1", "--notes", "n", "--queries", "9"),
            "PATCH",
            "/v1/jobs/job_1",
            {"notes": "n", "budget": {"queries": 9}},
        ),
    ],
)
def test_what_is_asked_of_a_job(arguments: Any, method: str, path: str, body: Any, command: Any, job: MakeJob) -> None:
    server = Server(job("paused", reason="night"))
    ran = command(app, server, *arguments, *HERE)
    assert (ran.exit_code, ran.stdout) == (0, "job_1 paused: night\n")
    sent = server.requests[-1]
    assert (sent.method, sent.url.path, json.loads(sent.content or "null")) == (method, path, body)


def test_an_estimate_with_a_probe_tells_what_was_charged(command: Any, tmp_path: Path) -> None:
    seen = {"charged": 4, "unconfirmed": 2, "classes": 5, "deterministic": True, "reason": "status 500"}
    told = {"queries": 300, "cost": None, "currency": "USD", "per_api": {}, "accuracy": None, "seconds": 30.0}
    told["probe"] = {"charged": 4, "unconfirmed": 2, "per_api": {"a0": seen}}
    asked: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(json.loads(request.content))
        return httpx.Response(200, json=told)

    file = tmp_path / "job.json"
    file.write_text('{"apis": []}')
    ran = command(app, answer, "estimate", file, "--probe", "--probe-images", 6, *HERE)
    assert (ran.exit_code, asked) == (0, [{"apis": [], "probe": True, "probe_images": 6}])
    assert "asking  30 s at the stated rates\nprobe   4 images charged, 2 unconfirmed\n" in ran.stdout
    assert "status 500" in ran.stdout
    assert command(app, answer, "estimate", file, "--json", *HERE).exit_code == 0
    assert asked[1] == {"apis": []}


def test_an_estimate_tells_what_a_gain_needs(command: Any, tmp_path: Path) -> None:
    needed = {"likely": 12_345, "safe": None, "reason": "the most that was measured is 9 points"}
    told = {"queries": 300, "cost": None, "currency": "USD", "per_api": {}, "accuracy": None, "needed": needed}

    def answer(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content) == {"apis": [], "aim": {"shots": 5, "gain": 9.5}}
        return httpx.Response(200, json=told)

    file = tmp_path / "job.json"
    file.write_text('{"apis": []}')
    ran = command(app, answer, "estimate", file, "--gain", 9.5, "--shots", 5, *HERE)
    assert ran.exit_code == 0, ran.output
    assert "for 9.5 points at 5 shots 12,345 images likely, unknown to be safe (the most that was" in ran.stdout
