"""The host's side: keys are made, topped up, ended and audited."""

from datetime import UTC, datetime, timedelta

import pytest

from tests.api_zoo.responses import Failing, problem

pytestmark = [pytest.mark.anyio, pytest.mark.redis]


async def test_the_admin_lists_and_shows_keys_but_no_secret(zoo, admin) -> None:
    made = (await zoo.http.post("/admin/keys", json={"name": "me", "budget": 5}, headers=admin)).json()
    assert made["secret"].startswith(f"mz_{made['id']}_")
    listed = (await zoo.http.get("/admin/keys", headers=admin)).json()
    shown = (await zoo.http.get(f"/admin/keys/{made['id']}", headers=admin)).json()
    assert listed == [shown]
    assert "secret" not in shown
    assert (shown["name"], shown["budget"], shown["spent"]) == ("me", 5, 0)


async def test_only_the_admin_key_opens_the_admin_routes(zoo) -> None:
    key = await zoo.key()
    for headers in ({}, key, {"Authorization": "Bearer "}, {"Authorization": "Bearer admin-key-of-the-test"}):
        for method, path in [("POST", ""), ("GET", ""), ("GET", "/x"), ("DELETE", "/x"), ("GET", "/x/usage")]:
            problem(await zoo.http.request(method, f"/admin/keys{path}", headers=headers), 401, "unauthorized")


async def test_keys_that_cannot_be_are_refused_with_every_fault(zoo, admin) -> None:
    wrong = {"budget": -1, "images_per_second": 0, "burst": 0, "colour": "red"}
    told = problem(await zoo.http.post("/admin/keys", json=wrong, headers=admin), 422, "invalid-request")
    assert {fault["field"] for fault in told["errors"]} == set(wrong)
    told = problem(await zoo.http.post("/admin/keys", json={"burst": 3}, headers=admin), 422, "invalid-request")
    assert [fault["field"] for fault in told["errors"]] == ["burst"]
    problem(await zoo.http.post("/admin/keys", json={"models": ["nothing"]}, headers=admin), 422, "invalid-request")
    problem(await zoo.http.get("/admin/keys/none", headers=admin), 404, "not-found")
    problem(await zoo.http.delete("/admin/keys/none", headers=admin), 404, "not-found")


def id_of(key: dict[str, str]) -> str:
    return key["Authorization"].split("_")[1]


async def test_a_top_up_lets_a_spent_key_go_on(zoo, colours, admin) -> None:
    key = await zoo.key(budget=2)
    assert (await zoo.infer(key, colours(2))).status_code == 200
    problem(await zoo.infer(key, colours(1)), 402, "budget-exhausted")
    path = f"/admin/keys/{id_of(key)}/top-up"
    raised = await zoo.http.post(path, json={"images": 3}, headers=admin)
    assert (raised.json()["budget"], raised.json()["spent"]) == (5, 2)
    assert (await zoo.infer(key, colours(3))).headers["ratelimit"] == '"budget";r=0'
    problem(await zoo.http.post(path, json={"images": 0}, headers=admin), 422, "invalid-request")
    problem(await zoo.http.post(path, json={"images": 10**12}, headers=admin), 409, "conflict")
    problem(await zoo.http.post(path, json={"images": 1}, headers=key), 401, "unauthorized")
    problem(await zoo.http.post("/admin/keys/none/top-up", json={"images": 1}, headers=admin), 404, "not-found")
    unlimited = f"/admin/keys/{id_of(await zoo.key())}/top-up"
    problem(await zoo.http.post(unlimited, json={"images": 1}, headers=admin), 409, "conflict")


async def test_a_key_ends_when_it_expires(zoo, colours, admin) -> None:
    later, past = (datetime.now(UTC) + timedelta(days=days) for days in (1, -1))
    lasting = await zoo.key(expires_at=later.isoformat(), notes="of the course")
    assert (await zoo.infer(lasting, colours(1))).status_code == 200
    told = (await zoo.http.get(f"/admin/keys/{id_of(lasting)}", headers=admin)).json()
    assert (datetime.fromisoformat(told["expires_at"]), told["notes"]) == (later, "of the course")
    ended = await zoo.key(expires_at=past.isoformat())
    problem(await zoo.infer(ended, colours(1)), 401, "unauthorized")
    problem(await zoo.http.get("/v1/usage", headers=ended), 401, "unauthorized")
    naive = await zoo.http.post("/admin/keys", json={"expires_at": "2030-01-01T00:00:00"}, headers=admin)
    problem(naive, 422, "invalid-request")


async def test_the_audit_tells_each_charge_and_refund(zoo, colours, admin) -> None:
    key = await zoo.key()
    path = f"/admin/keys/{id_of(key)}/audit"
    assert (await zoo.http.get(path, headers=admin)).json() == []
    await zoo.infer(key, colours(3))
    model = zoo.app.state.services.models["colours"]
    model.answer = Failing(model)
    await zoo.infer(key, colours(2))
    told = (await zoo.http.get(path, headers=admin)).json()
    assert [(each["kind"], each["images"]) for each in told] == [("charge", 3), ("charge", 2), ("refund", 2)]
    assert told[1]["charge"] == told[2]["charge"]
    page = await zoo.http.get(path, params={"after": told[0]["id"], "limit": 1}, headers=admin)
    assert page.json() == told[1:2]
    problem(await zoo.http.get(path, params={"after": "x"}, headers=admin), 422, "invalid-request")
    problem(await zoo.http.get("/admin/keys/none/audit", headers=admin), 404, "not-found")
