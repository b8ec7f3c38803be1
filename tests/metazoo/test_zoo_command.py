"""`metazoo zoo`: what it prints, its exit codes, and what it refuses before it serves."""

import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner, Result

from metazoo.commands import zoo
from metazoo.redis_server import free_port

URL = "http://zoo.test"
KEY = {
    "id": "abc",
    "name": "me",
    "created_at": "2026-01-01T00:00:00Z",
    "budget": 10,
    "spent": 4,
    "images_per_second": None,
    "burst": None,
    "models": None,
    "revoked": False,
}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "METAZOO_ZOO_ADMIN_KEY", "METAZOO_ZOO_URL", "METAZOO_ZOO_FOLDER", "METAZOO_DATA"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: object, **environment: str) -> Result:
    return CliRunner().invoke(zoo.app, [str(argument) for argument in arguments], env=environment)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch):
    """`answers(status, body)` lets the zoo answer so; the requests it was sent."""
    sent: list[httpx.Request] = []

    def arrange(status: int, body: object) -> list[httpx.Request]:
        def answer(method: str, url: str, **options) -> httpx.Response:
            options.pop("timeout")
            sent.append(httpx.Request(method, url, **options))
            return httpx.Response(status, json=body, request=sent[-1])

        monkeypatch.setattr("httpx.request", answer)
        return sent

    return arrange


SETTINGS = {"REDIS_URL": "redis://:hidden@127.0.0.1:1/0", "METAZOO_ZOO_ADMIN_KEY": "hidden-hidden-hidden"}


def test_serve_names_missing_settings(tmp_path: Path) -> None:
    done = run("serve", tmp_path)
    assert done.exit_code == 1
    assert "REDIS_URL" in done.stderr
    assert "METAZOO_ZOO_ADMIN_KEY" in done.stderr
    short = run("serve", tmp_path, **{**SETTINGS, "METAZOO_ZOO_ADMIN_KEY": "hidden"})
    assert short.exit_code == 1
    assert "hidden" not in short.output


def test_serve_refuses_a_bad_folder_in_one_line(tmp_path: Path) -> None:
    done = run("serve", tmp_path, **SETTINGS)
    assert done.exit_code == 1
    assert done.stderr.count("\n") == 1
    assert "manifest.json" in done.stderr
    assert "metazoo zoo build" in done.stderr


def test_build_tells_a_line_a_teacher_and_what_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from contracts.zoo import Manifest, TeacherEntry
    from dfml.nets import STUDENT

    entry = TeacherEntry(file="00.safetensors", classes=["a", "b"], held_out_accuracy=0.875)
    asked = []

    def build(plan, folder, data, *, processes, on_teacher, **more):
        asked.append((plan, folder, data, processes, more))
        on_teacher(1, plan.teachers, entry)
        return Manifest(dataset=plan.datasets[0], normalise=STUDENT, teachers=[entry])

    monkeypatch.setattr("api_zoo.build.build", build)
    arguments = ["--dataset", "cifar-fs", "--teachers", 1, "--ways", 2, "--seed", 7, "--epochs", 3, "--processes", 4]
    done = run("build", "--out", tmp_path, *arguments, METAZOO_DATA="/data")
    assert done.exit_code == 0, done.output
    assert "teacher 1/1  00.safetensors  87.5% on held-out images" in done.stderr
    assert f"metazoo zoo serve {tmp_path}" in done.stdout
    ((plan, folder, data, processes, more),) = asked
    assert (plan.datasets, plan.teachers, plan.ways, plan.seed, plan.epochs) == (("cifar-fs",), 1, (2,), 7, 3)
    assert (plan.architectures, more) == (("conv4",), {"device": "cpu", "compiled": False})
    assert (folder, data, processes) == (tmp_path, Path("/data"), 4)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--dataset", "cifar-fs"], "cifar-fs"),
        (["--ways", 1000], "give 2 to 120"),
        (["--dataset", "nonsense"], "unknown"),
        (["--scenario", "mh"], "give --dataset twice"),
        (["--scenario", "sh", "--dataset", "folder:../x"], "plain name"),
    ],
)
def test_build_says_what_it_lacks_in_one_line(tmp_path: Path, arguments: list[object], told: str) -> None:
    done = run("build", "--out", tmp_path / "zoo", *arguments, METAZOO_DATA=str(tmp_path))
    assert done.exit_code == 1
    assert told in done.stderr
    assert not (tmp_path / "zoo").exists()


def test_keys_are_made_shown_and_revoked(answers) -> None:
    environment = {"METAZOO_ZOO_URL": URL, "METAZOO_ZOO_ADMIN_KEY": "hidden"}
    sent = answers(201, {**KEY, "secret": "mz_abc_def"})
    made = run("keys", "create", "--name", "me", "--budget", 10, "--model", "a", "--model", "b", **environment)
    assert made.stdout.split() == ["abc", "mz_abc_def"]
    assert json.loads(sent[-1].content) == {"name": "me", "budget": 10, "models": ["a", "b"]}
    assert sent[-1].headers["authorization"] == "Bearer hidden"
    answers(200, [KEY])
    assert "abc" in run("keys", "list", **environment).stdout
    assert json.loads(run("keys", "list", "--json", **environment).stdout) == [KEY]
    answers(200, {"key": "abc", "budget": 10, "spent": 4, "left": 6, "per_model": {"a": 4}})
    assert run("keys", "usage", "abc", **environment).stdout.splitlines() == ["abc: 4 of 10 images", "  a  4"]
    answers(200, {**KEY, "revoked": True})
    assert run("keys", "revoke", "abc", **environment).stdout == "abc revoked\n"
    assert [(request.method, request.url.path) for request in sent] == [
        ("POST", "/admin/keys"),
        ("GET", "/admin/keys"),
        ("GET", "/admin/keys"),
        ("GET", "/admin/keys/abc/usage"),
        ("DELETE", "/admin/keys/abc"),
    ]


def test_keys_expire_and_are_topped_up(answers) -> None:
    environment = {"METAZOO_ZOO_URL": URL, "METAZOO_ZOO_ADMIN_KEY": "hidden"}
    sent = answers(201, {**KEY, "secret": "mz_abc_def"})
    run("keys", "create", "--expires", "2030-01-02", "--notes", "a course", **environment)
    told = json.loads(sent[-1].content)
    assert told == {"name": "key", "notes": "a course", "expires_at": "2030-01-02T00:00:00+00:00"}
    answers(200, {**KEY, "budget": 15, "spent": 4})
    assert run("keys", "top-up", "abc", "--images", 5, **environment).stdout == "abc: 4 of 15 images\n"
    assert (sent[-1].url.path, json.loads(sent[-1].content)) == ("/admin/keys/abc/top-up", {"images": 5})


def test_keys_are_shown_with_their_audit(answers) -> None:
    environment = {"METAZOO_ZOO_URL": URL, "METAZOO_ZOO_ADMIN_KEY": "hidden"}
    sent = answers(200, KEY)
    assert "budget: 10\n" in run("keys", "show", "abc", **environment).stdout
    entry = {"id": "1-0", "kind": "top-up", "images": 5, "time": "2030-01-02T00:00:00Z", "charge": None, "model": None}
    answers(200, [entry])
    told = run("keys", "audit", "abc", "--after", "0-1", **environment).stdout
    assert told == "1-0  2030-01-02T00:00:00Z  top-up  5\n"
    assert dict(sent[-1].url.params) == {"limit": "100", "after": "0-1"}


def test_keys_say_why_not(answers) -> None:
    assert run("keys", "list").exit_code == 2  # no URL
    unset = run("keys", "list", "--url", URL)
    assert (unset.exit_code, "METAZOO_ZOO_ADMIN_KEY" in unset.stderr) == (2, True)
    environment = {"METAZOO_ZOO_URL": URL, "METAZOO_ZOO_ADMIN_KEY": "hidden"}
    for status, code in [(401, 3), (404, 2), (422, 2)]:
        answers(status, {"error": "no: because"})
        refused = run("keys", "usage", "abc", **environment)
        assert (refused.exit_code, refused.stderr) == (code, "metazoo: no: because\n")


def test_a_zoo_that_is_away_is_told() -> None:
    url = f"http://127.0.0.1:{free_port()}"
    away = run("keys", "list", "--url", url, METAZOO_ZOO_ADMIN_KEY="hidden")
    assert away.exit_code == 3
    assert away.stderr.startswith(f"metazoo: {url} is not reachable or no zoo")
