"""Every page can be used by everyone, and keeps to itself what it should."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import Metazoo
from tests.e2e.dashboard.conftest import LOOKS, Visit, play, shoot

# Not by a signal: it would end Playwright's loop under the test, and whatever asks the page next would spin for ever.
pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(300, method="thread")]

PICTURES = {"job": "job", "meta-model": "playground", "zoo-key": "zoo-key"}


@pytest.fixture(scope="module")
def finished(up: Any, metazoo: Metazoo) -> Any:
    """A job that succeeded, for pages that show one."""
    job = metazoo.jobs.create(
        {
            "name": "Glyph readers",
            "tags": ["demo"],
            "apis": up.apis,
            "budget": {"queries": 800},
            "method": {"name": "pqd", "steps": 150},
            "evaluation": {"episodes": 20},
        }
    )
    return job.wait(timeout=240)


def test_the_reference_lists_the_routes(visit: Callable[..., Visit]) -> None:
    person = visit("wide-light")
    person.page.goto(f"{person.url}/docs")
    person.page.locator(".opblock-summary-path", has_text="/v1/jobs/estimate").first.wait_for()


@pytest.mark.parametrize("look", LOOKS)
def test_every_page_can_be_used_by_everyone(
    visit: Callable[..., Visit], up: Any, finished: Any, axe: str, glyphs: list[list[Path]], look: str
) -> None:
    person = visit(look)
    person.page.goto(f"{person.url}/sign-in")
    pages = {
        "sign-in": None,
        "jobs": "/",
        "new-job": "/jobs/new",
        "job": f"/jobs/{finished.id}",
        "meta-models": "/meta-models",
        "meta-model": f"/meta-models/{finished.meta_model}",
        "zoo": "/zoo",
        "zoo-key": f"/zoo/keys/{up.apis[0]['api_key'].split('_')[1]}",
        "missing": "/jobs/none",
    }
    for name, path in pages.items():
        if name == "jobs":
            person.sign_in()
        if path is not None:
            person.go(path)
        if name == "new-job":
            person.page.get_by_role("button", name="More").click()
            person.page.get_by_label("Speaks").select_option("custom")
            person.page.get_by_text("More about its requests and answers").last.click()
        if name == "job":
            person.page.locator("#loss .scatterlayer .trace").first.wait_for()
        if name == "meta-model" and look == "wide-light":
            play(person.page, glyphs, right=7)  # five by chance
        if name.startswith("zoo"):
            person.page.locator("#chart .barlayer .trace").first.wait_for()
        if name == "zoo":
            person.page.get_by_role("button", name="Make a key").click()
        person.page.evaluate(axe)
        found = person.page.evaluate("axe.run().then(({ violations }) => violations)")
        wrong = [f"{each['id']}: {each['nodes'][0]['html']}" for each in found]
        assert wrong == [], name
        if look == "wide-light" and name in PICTURES:
            shoot(person, PICTURES[name])


def test_the_keyboard_is_enough_and_the_key_is_kept_nowhere(visit: Callable[..., Visit], finished: Any) -> None:
    person = visit()
    page = person.page
    person.sign_in(f"/jobs/{finished.id}")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    assert page.evaluate("document.querySelector('main').contains(document.activeElement)")
    key = person.up.ready["api_key"]
    kept = page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie, location.href])")
    assert key not in kept
    assert "metazoo" not in kept
    (cookie,) = person.context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert key not in cookie["value"]
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()
    person.go("/")
    page.wait_for_url(re.compile("/sign-in"))


def test_a_page_of_another_origin_can_do_nothing(visit: Callable[..., Visit], up: Any, metazoo: Metazoo) -> None:
    """The zoo's own pages have the same host, so its cookies are sent: only the origin tells them apart."""
    job = metazoo.jobs.create({"apis": up.apis, "budget": {"queries": 80}, "method": {"name": "pqd", "steps": 100_000}})
    options = '{method: "POST", credentials: "include", mode: "no-cors"}'
    post = f"(url) => fetch(url, {options}).then(() => 'sent', () => 'stopped')"
    cancel = f"{up.ready['server_url']}/v1/jobs/{job.id}/cancel"
    person = visit()
    person.sign_in()
    with person.page.expect_navigation():
        person.page.goto(f"{up.ready['zoo_url']}/v2")
    assert person.page.evaluate(post, cancel) == "sent"
    assert job.refresh().status in ("queued", "running")
    person.complaints.clear()  # those of the other origin's page
    person.page.goto(person.url)
    assert person.page.evaluate(post, cancel) == "sent"
    assert job.refresh().status in ("cancelling", "cancelled")
