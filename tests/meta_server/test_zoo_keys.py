"""The pages of a zoo's keys over a real zoo in this process: they show what it counts, and its admin key stays inside."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import date, timedelta
from typing import Any

import httpx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from api_zoo.app import create_app
from api_zoo.inference import Model
from api_zoo.settings import Settings as ZooSettings
from contracts.problems import URN
from meta_server.dashboard.zoo_pages import DAYS, daily
from meta_server.zoo_admin import ZooAdmin

ADMIN = "admin-key-of-the-zoo"
HTML = {"Accept": "text/html"}
IMAGES = {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [3, 3, 2, 2], "data": [7] * 36}]}


class Brightest(torch.nn.Module):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3))


@pytest.fixture
async def zoo(redis_url: str, http: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """A zoo of two models; the server knows it."""
    models = {name: Model(name, Brightest(), ["r", "g", "b"], (3, 2, 2)) for name in ("colours", "others")}
    app = create_app(ZooSettings(redis_url=redis_url, admin_key=ADMIN), registry=models)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://zoo.test") as client:
            headers = {"Authorization": f"Bearer {ADMIN}"}
            async with httpx.AsyncClient(transport=transport, base_url="http://zoo.test", headers=headers) as admin:
                know(http, admin)
                yield client


def know(http: httpx.AsyncClient, zoo: httpx.AsyncClient) -> None:
    state = http.app.state  # type: ignore[attr-defined]
    state.services = replace(state.services, zoo=ZooAdmin(zoo))


async def shown(http: httpx.AsyncClient, path: str, status: int = 200) -> str:
    response = await http.get(path, headers=HTML)
    assert response.status_code == status, response.text
    assert ADMIN not in response.text
    return response.text


pytestmark = [pytest.mark.anyio, pytest.mark.redis]


async def test_without_a_zoo_the_page_says_how_to_name_one(http: httpx.AsyncClient) -> None:
    text = await shown(http, "/zoo")
    assert "METAZOO_ZOO_URL" in text
    assert "METAZOO_ZOO_ADMIN_KEY" in text
    refused = await http.post("/admin/zoo/keys", json={"name": "k"})
    assert refused.json()["type"] == f"{URN}not-found"


async def test_the_settings_name_a_zoo_and_show_no_key(open_app: Any, make_settings: Any, redis_url: str) -> None:
    settings = make_settings(redis_url, zoo_url="http://127.0.0.1:1", zoo_admin_key=ADMIN)
    assert ADMIN not in repr(settings)
    http = await open_app(settings)
    assert "did not answer" in await shown(http, "/zoo", status=503)
    made = await http.post("/admin/zoo/keys", json={"name": "k"})
    assert made.status_code == 503
    assert "look before you do it again" in made.json()["detail"]


@pytest.mark.parametrize("role", ["user", "viewer"])
async def test_only_an_admin_sees_and_changes_keys(http: httpx.AsyncClient, zoo: httpx.AsyncClient, role: str) -> None:
    made = (await http.post("/admin/keys", json={"name": "k", "tenant": "default", "role": role})).json()
    key = (await http.post("/admin/zoo/keys", json={"budget": 5})).json()["id"]
    theirs = {"Authorization": f"Bearer {made['secret']}"}
    for path in ("/zoo", f"/zoo/keys/{key}"):
        assert (await http.get(path, headers=theirs | HTML)).status_code == 403
    assert "/zoo" not in (await http.get("/", headers=theirs | HTML)).text
    assert "/zoo" in await shown(http, "/")
    for method, path, body in (
        ("POST", "", {"budget": 9}),
        ("POST", f"/{key}/top-up", {"images": 5}),
        ("DELETE", f"/{key}", None),
    ):
        answer = await http.request(method, f"/admin/zoo/keys{path}", json=body, headers=theirs)
        assert answer.status_code == 403
    assert "of 5" in await shown(http, f"/zoo/keys/{key}")


async def test_a_key_is_made_used_topped_up_and_revoked(http: httpx.AsyncClient, zoo: httpx.AsyncClient) -> None:
    made = await http.post("/admin/zoo/keys", json={"name": "Ada", "budget": 10, "models": ["colours"]})
    assert made.status_code == 201
    key, secret = made.json()["id"], made.json()["secret"]
    for _ in range(2):
        asked = await zoo.post("/v2/models/colours/infer", json=IMAGES, headers={"Authorization": f"Bearer {secret}"})
        assert asked.status_code == 200, asked.text
    listed, own = await shown(http, "/zoo"), await shown(http, f"/zoo/keys/{key}")
    for text in (listed, own):
        assert secret not in text
        assert 'data-count="6"' in text
        assert "6 of 10 images spent" in text
        assert "colours" in text
    raised = await http.post(f"/admin/zoo/keys/{key}/top-up", json={"images": 5})
    assert raised.json()["budget"] == 15
    assert (await http.delete(f"/admin/zoo/keys/{key}")).json()["revoked"] is True
    assert "Revoke<" not in await shown(http, f"/zoo/keys/{key}")
    assert "Ada" in await shown(http, "/zoo?state=revoked")
    assert "No active keys" in await shown(http, "/zoo?state=active")
    audit = [entry["action"] for entry in (await http.get("/admin/audit")).json()["items"]]
    assert f"POST /admin/zoo/keys/{key}/top-up" in audit
    assert f"DELETE /admin/zoo/keys/{key}" in audit


async def test_what_the_zoo_refuses_is_told_by_field_and_what_it_cannot_do_is_its_fault(
    http: httpx.AsyncClient, zoo: httpx.AsyncClient
) -> None:
    wrong = (await http.post("/admin/zoo/keys", json={"models": ["colours", "unicorns"]})).json()
    assert [(fault["field"], fault["message"]) for fault in wrong["errors"]] == [
        ("models", "there is no model unicorns")
    ]
    limitless = (await http.post("/admin/zoo/keys", json={})).json()["id"]
    assert (await http.post(f"/admin/zoo/keys/{limitless}/top-up", json={"images": 5})).status_code == 409
    assert (await http.post("/admin/zoo/keys/none/top-up", json={"images": 5})).status_code == 404
    await shown(http, "/zoo/keys/none", status=404)

    answers: dict[str, Callable[[httpx.Request], httpx.Response]] = {
        "refuses its admin key": lambda _: httpx.Response(401, json={"detail": ADMIN}),
        "is no zoo": lambda _: httpx.Response(200, json={"hello": ADMIN}),
        "answered 500": lambda _: httpx.Response(500, text=ADMIN),
        "answered 302": lambda _: httpx.Response(302, headers={"Location": "http://elsewhere.test/"}),
    }
    for told, answer in answers.items():
        async with httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://zoo.test") as broken:
            know(http, broken)
            assert told in await shown(http, "/zoo", status=503)


async def test_older_keys_are_a_page_away(
    http: httpx.AsyncClient, zoo: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meta_server.dashboard.zoo_pages.PAGE", 2)
    made = [(await http.post("/admin/zoo/keys", json={"name": f"k{at}"})).json()["id"] for at in range(3)]
    first = await shown(http, "/zoo")
    assert [f"key-{key}" in first for key in made] == [False, True, True]
    second = await shown(http, f"/zoo?after={made[1]}")
    assert [f"key-{key}" in second for key in made] == [True, False, False]


CHARGES = st.lists(
    st.tuples(
        st.integers(0, 60).map(lambda back: date(2026, 3, 31) - timedelta(days=back)),
        st.sampled_from(["a", "b", "c"]),
        st.integers(1, 1000),
    ),
    max_size=40,
)


@given(CHARGES)
@settings(max_examples=50, deadline=None)
def test_days_hold_what_was_charged_and_no_day_is_left_out(charges: list[tuple[date, str, int]]) -> None:
    use = daily(charges)
    newest = max((day for day, _, _ in charges), default=None)
    held = [one for one in charges if newest is not None and (newest - one[0]).days < DAYS]
    assert use.total == sum(images for _, _, images in held)
    assert list(use.days) == sorted(set(use.days))
    assert all((later - day).days == 1 for day, later in zip(use.days, use.days[1:], strict=False))
    for name, counts in use.series:
        for day, count in zip(use.days, counts, strict=True):
            assert count == sum(images for when, who, images in held if (when, who) == (day, name))
    totals = [sum(counts) for _, counts in use.series]
    assert totals == sorted(totals, reverse=True)
