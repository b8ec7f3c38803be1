"""Sessions: what the cookie lets its browser do, and nobody else."""

import time
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from contracts.problems import URN
from meta_server.session import COOKIE, SECONDS

pytestmark = [pytest.mark.anyio, pytest.mark.redis]

API_KEY = "server-key-of-the-tests"
OWN = {"Sec-Fetch-Site": "same-origin"}
HTML = {"Accept": "text/html"}


@pytest.fixture
async def browser(http: httpx.AsyncClient) -> AsyncIterator[httpx.AsyncClient]:
    """Sends no bearer key; keeps cookies."""
    transport = http._transport
    async with httpx.AsyncClient(transport=transport, base_url="http://server.test") as client:
        yield client


async def sign_in(browser: httpx.AsyncClient, **form: str) -> httpx.Response:
    return await browser.post("/sign-in", data={"key": API_KEY} | form, headers=HTML | OWN)


async def test_the_key_becomes_a_cookie_that_no_script_and_no_site_can_use(browser: httpx.AsyncClient) -> None:
    response = await sign_in(browser, to="/jobs/new")
    assert (response.status_code, response.headers["location"]) == (303, "/jobs/new")
    cookie = response.headers["set-cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert {"HttpOnly", "SameSite=strict", f"Max-Age={SECONDS}"} <= set(cookie.split("; "))
    assert API_KEY not in cookie
    assert (await browser.get("/v1/jobs")).status_code == 200
    assert "Sign out" in (await browser.get("/", headers=HTML)).text


@pytest.mark.parametrize(
    ("key", "told"), [("wrong-key-of-the-tests", "not a key of this server"), (" ", "Enter the server")]
)
async def test_a_wrong_key_is_told_beside_the_field(browser: httpx.AsyncClient, key: str, told: str) -> None:
    response = await sign_in(browser, key=key)
    assert response.status_code == 401
    assert told in response.text
    assert 'aria-invalid="true"' in response.text
    assert COOKIE not in response.cookies


async def test_nobody_is_led_elsewhere(browser: httpx.AsyncClient) -> None:
    for to in ("https://evil.test/", "//evil.test/", "/\\evil.test", "evil", "/x\r\nSet-Cookie: a=b"):
        assert (await sign_in(browser, to=to)).headers["location"] == "/"


async def test_pages_without_a_session_lead_to_sign_in_and_back(browser: httpx.AsyncClient) -> None:
    response = await browser.get("/?status=failed", headers=HTML)
    assert response.status_code == 303
    assert response.headers["location"].endswith("/sign-in?to=%2F%3Fstatus%3Dfailed")


async def test_other_sites_change_nothing(browser: httpx.AsyncClient, request_body: Any) -> None:
    await sign_in(browser)
    for headers in (
        {"Sec-Fetch-Site": "cross-site", "Origin": "http://server.test"},
        {"Sec-Fetch-Site": "same-site"},  # another port of this host sends the cookie too
        {"Origin": "http://server.test:8080"},
        {"Origin": "null"},
        {},
    ):
        response = await browser.post("/v1/jobs", json=request_body, headers=headers)
        assert (response.status_code, response.json()["type"]) == (403, f"{URN}forbidden")
        assert (await browser.get("/v1/jobs")).json()["items"] == []
        assert (await browser.post("/sign-out", headers=headers | HTML)).status_code == 403
        assert (await browser.post("/sign-in", data={"key": API_KEY}, headers=headers | HTML)).status_code == 403
    for headers in (OWN, {"Origin": "http://server.test"}):
        assert (await browser.post("/v1/jobs", json=request_body, headers=headers)).status_code == 202


async def test_a_bearer_key_needs_no_origin(http: httpx.AsyncClient, request_body: Any) -> None:
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert (await http.post("/v1/jobs", json=request_body, headers=headers)).status_code == 202


async def test_a_session_ends_by_signing_out_by_age_and_by_tampering(
    browser: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    await sign_in(browser)
    sealed = browser.cookies[COOKIE]
    then = time.time() + SECONDS + 1
    with monkeypatch.context() as later:
        later.setattr("cryptography.fernet.time.time", lambda: then)
        assert (await browser.get("/v1/jobs")).status_code == 401
    browser.cookies.clear()
    tampered = {"Cookie": f"{COOKIE}={sealed[:40]}{'x' if sealed[40] != 'x' else 'y'}{sealed[41:]}"}
    assert (await browser.get("/v1/jobs", headers=tampered)).status_code == 401
    assert (await browser.get("/v1/jobs", headers={"Cookie": f"{COOKIE}={sealed}"})).status_code == 200
    await sign_in(browser)
    assert (await browser.post("/sign-out", headers=HTML | OWN)).status_code == 303
    assert (await browser.get("/v1/jobs")).status_code == 401
