"""`metazoo server keys|quota|audit` and the zoo as its user sees it: what is sent, what is shown."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from metazoo.commands import server, zoo

HERE = ("--url", "http://server.test")
KEY = {
    "id": "k1", "name": "Ada", "tenant": "vision", "role": "user",
    "created_at": "2026-01-01T00:00:00Z", "expires_at": None, "revoked": False,
}  # fmt: skip


class Service:
    """Gives prepared answers by method and path, and remembers what it was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        self.answers = answers
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(200, json=self.answers[f"{request.method} {request.url.path}"])


def test_keys_of_the_server(command: Any) -> None:
    made = Service({"POST /admin/keys": KEY | {"secret": "hush"}, "GET /admin/keys": {"items": [KEY]}})
    create = ("keys", "create", "Ada", "--tenant", "vision", "--expires", "2100-01-01")
    assert command(server.app, made, *create, *HERE).stdout == "hush\n"
    sent = {"name": "Ada", "tenant": "vision", "role": "user", "expires_at": "2100-01-01T00:00:00+00:00"}
    assert json.loads(made.requests[0].content) == sent
    assert command(server.app, made, "keys", "list", *HERE).stdout == "k1 vision user Ada\n"
    revoked = Service({"DELETE /admin/keys/k1": KEY | {"revoked": True}})
    assert command(server.app, revoked, "keys", "revoke", "k1", *HERE).stdout == "k1 revoked\n"


def test_the_audit_log_is_told_to_its_limit(command: Any) -> None:
    entry = {
        "id": "1-0", "time": "2026-01-01T00:00:00Z", "tenant": "vision", "key": "k1",
        "action": "POST /v1/jobs", "status": 202,
    }  # fmt: skip
    log = Service({"GET /admin/audit": {"items": [entry] * 3, "next": "more"}})
    told = command(server.app, log, "audit", "--limit", "4", *HERE).stdout.splitlines()
    assert len(told) == 4
    assert told[0].endswith("vision  k1  202  POST /v1/jobs")
    assert json.loads(command(server.app, log, "audit", "--limit", "1", "--json", *HERE).stdout) == entry


def test_a_quota_is_shown_and_changed_in_part(command: Any) -> None:
    usage = {"tenant": "vision", "quota": {"running_jobs": 4, "queries_a_day": None}, "queries_today": 7}
    asked = Service({"GET /admin/tenants/vision": usage, "PUT /admin/tenants/vision/quota": usage})
    shown = command(server.app, asked, "quota", "vision", *HERE).stdout
    assert shown == "vision: 7 of unlimited queries today, 4 running jobs\n"
    assert command(server.app, asked, "quota", "vision", "--queries-a-day", "9", *HERE).exit_code == 0
    assert json.loads(asked.requests[-1].content) == {"running_jobs": 4, "queries_a_day": 9}


def test_a_zoo_as_its_user_sees_it(command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METAZOO_ZOO_API_KEY", "mz_1_secret")
    usage = {"key": "1", "spent": 3, "budget": None, "left": None, "per_model": {"cats": 3}, "per_day": {}}
    hosted = Service({"POST /v2/repository/index": [{"name": "cats", "state": "READY"}], "GET /v1/usage": usage})
    zoo_url = ("--url", "http://zoo.test")
    listed = command(zoo.app, hosted, "models", *zoo_url)
    assert listed.stdout == "cats\thttp://zoo.test/v2/models/cats\tready\n"
    assert command(zoo.app, hosted, "usage", *zoo_url).stdout == "3 of unlimited images\n  cats  3\n"
    assert {request.headers["authorization"] for request in hosted.requests} == {"Bearer mz_1_secret"}
    Image.new("RGB", (8, 8)).save(tmp_path / "x.png")

    def spent(request: httpx.Request) -> httpx.Response:
        return httpx.Response(402, json={"error": "spent"})

    ran = command(zoo.app, spent, "predict", "cats", tmp_path, *zoo_url)
    assert (ran.exit_code, len(ran.stderr.splitlines())) == (2, 1)
