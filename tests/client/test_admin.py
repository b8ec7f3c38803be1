"""Administration through both clients and the command: what is sent, what is shown."""

import json
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

import client
from client import AsyncMetazoo, Metazoo
from metazoo.commands.server import app

KEY = {"id": "k1", "name": "Ada", "tenant": "vision", "role": "user", "created_at": "2026-01-01T00:00:00Z"}
KEY |= {"expires_at": None, "revoked": False}
USAGE = {"tenant": "vision", "quota": {"running_jobs": 2, "queries_a_day": None}, "queries_today": 7}
ENTRY = {"id": "2-0", "time": "2026-01-01T00:00:00Z", "tenant": "vision", "key": "k1", "action": "GET /", "status": 200}


def answer(request: httpx.Request) -> httpx.Response:
    """What a server with one key and one tenant answers."""
    path, method = request.url.path, request.method
    if path == "/admin/audit":
        following = None if "after" in request.url.params else "2-0"
        return httpx.Response(200, json={"items": [ENTRY], "next": following})
    if path.startswith("/admin/tenants/vision"):
        quota = json.loads(request.content) if method == "PUT" else USAGE["quota"]
        return httpx.Response(200, json=USAGE | {"quota": quota})
    if method == "POST":
        return httpx.Response(201, json=KEY | {"secret": "mzs_hush", **json.loads(request.content)})
    return httpx.Response(200, json={"items": [KEY]} if method == "GET" else KEY | {"revoked": True})


def test_administration() -> None:
    admin = Metazoo("http://server.test", "key", transport=httpx.MockTransport(answer)).admin
    made = admin.create_key({"name": "Ada", "tenant": "vision"})
    assert (made.secret, made.tenant) == ("mzs_hush", "vision")
    assert [key.id for key in admin.keys()] == ["k1"]  # noqa: SIM118 - it is no mapping
    assert admin.revoke_key("k1").revoked
    assert admin.usage("vision").queries_today == 7
    assert admin.set_quota("vision", {"queries_a_day": 5}).quota.queries_a_day == 5
    assert [entry.id for entry in admin.audit()] == ["2-0", "2-0"]


@pytest.mark.anyio
async def test_administration_on_the_event_loop() -> None:
    async with AsyncMetazoo("http://server.test", "key", transport=httpx.MockTransport(answer)) as metazoo:
        admin = metazoo.admin
        assert (await admin.create_key({"name": "Ada"})).secret == "mzs_hush"
        assert [key.id for key in await admin.keys()] == ["k1"]
        assert (await admin.revoke_key("k1")).revoked
        assert (await admin.usage("vision")).queries_today == 7
        assert (await admin.set_quota("vision", {"queries_a_day": 5})).quota.queries_a_day == 5
        assert [entry.id async for entry in admin.audit()] == ["2-0", "2-0"]


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (("keys", "create", "Ada", "--tenant", "vision"), "mzs_hush\n"),
        (("keys", "list"), "k1 vision user Ada\n"),
        (("keys", "revoke", "k1"), "k1 revoked\n"),
        (("quota", "vision"), "vision: 7 of unlimited queries today, 2 running jobs\n"),
        (("quota", "vision", "--queries-a-day", "9"), "vision: 7 of 9 queries today, 2 running jobs\n"),
        (("quota", "vision", "--unlimited"), "vision: 7 of unlimited queries today, unlimited running jobs\n"),
    ],
)
def test_the_command(arguments: tuple[str, ...], shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(*given: Any, **options: Any) -> Metazoo:
        return Metazoo(*given, **options, transport=httpx.MockTransport(answer))

    monkeypatch.setattr(client, "Metazoo", made)
    ran = CliRunner().invoke(app, [*arguments, "--url", "http://server.test"])
    assert (ran.exit_code, ran.stdout) == (0, shown), ran.output
