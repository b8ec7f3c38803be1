"""A whole job from its form to a prediction; what its page does with a job."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import Metazoo
from tests.e2e.dashboard.conftest import SLOW, Visit, play

# Not by a signal: it would end Playwright's loop under the test, and whatever asks the page next would spin for ever.
pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(300, method="thread")]


@pytest.mark.parametrize("look", ["wide-light", "narrow-dark"])
def test_a_whole_job_from_its_form_to_a_prediction(
    visit: Callable[..., Visit], glyphs: list[list[Path]], up: Any, look: str
) -> None:
    person = visit(look)
    page = person.page
    person.sign_in()
    page.get_by_role("link", name="New job").first.click()

    apis = up.apis
    page.get_by_label("URL").fill(apis[0]["url"])
    page.get_by_label("Key", exact=True).fill(apis[0]["api_key"])
    for at, api in enumerate(apis[1:], 1):
        page.get_by_role("button", name="Add an API").click()
        page.get_by_label("URL").nth(at).fill(api["url"])
        page.get_by_label("Key", exact=True).nth(at).fill(api["api_key"])
    page.get_by_label("Images in all").fill("240")
    page.get_by_text("Options of pqd").click()
    page.locator("details[open]").get_by_label("Steps", exact=True).fill("40")
    page.get_by_text("More of the evaluation").click()
    page.locator("#evaluation").get_by_label("Episodes", exact=True).fill("20")
    page.get_by_label("Name", exact=True).fill(f"By hand, {look}")
    estimate = page.get_by_role("complementary", name="Estimate")
    estimate.get_by_text("at most 240").wait_for()
    page.get_by_label("Images in all").fill("5000")
    estimate.get_by_text("5-shot accuracy").wait_for()  # measured for such budgets, and said to be that
    assert "our own measurements" in estimate.inner_text()
    page.get_by_label("Images in all").fill("240")
    person.check()
    page.get_by_role("button", name="Start the job").click()

    page.wait_for_url(re.compile(r"/jobs/job_"))
    page.get_by_role("heading", name=f"By hand, {look}").wait_for()
    page.get_by_role("link", name="Open the meta-model").wait_for(timeout=SLOW)  # it comes without a reload
    assert page.locator("#head .state").inner_text() == "Succeeded"
    assert page.locator("#budget .big").inner_text().split() == ["240", "of", "240"]
    log = page.get_by_role("log")
    for told in ("The job succeeded", "Training the meta-model", "images answered and stored"):
        log.get_by_text(told).first.wait_for()
    page.locator("#loss .scatterlayer .trace").first.wait_for()
    page.locator("#accuracy-curve .scatterlayer .trace").first.wait_for()
    assert page.locator("#accuracy-card").get_by_role("row").count() == 3  # a head, 1 shot, 5 shots

    page.get_by_role("link", name="Open the meta-model").click()
    play(page, glyphs)


def test_a_job_is_paused_resumed_and_cancelled(visit: Callable[..., Visit], up: Any, metazoo: Metazoo) -> None:
    long = {"apis": up.apis, "budget": {"queries": 80}, "method": {"name": "pqd", "steps": 100_000}, "name": "long"}
    job = metazoo.jobs.create(long)
    person = visit()
    person.sign_in(f"/jobs/{job.id}")
    page = person.page
    state = page.locator("#head .state")
    page.locator("#phases [aria-current]").get_by_text("Train").wait_for(timeout=SLOW)
    for button, then in (("Pause", "Paused"), ("Resume", "Running")):
        page.get_by_role("button", name=button).click()
        state.get_by_text(then).wait_for(timeout=SLOW)
    page.get_by_role("button", name="Cancel").click()
    assert state.inner_text() == "Running"  # it asks again first
    page.get_by_role("button", name="Really cancel?").click()
    state.get_by_text("Cancelled").wait_for(timeout=SLOW)
    assert page.locator("#head button").all_inner_texts() == ["Delete"]
    person.go("/")
    assert page.locator(f"#{job.id} .state").inner_text() == "Cancelled"
    person.go(f"/jobs/{job.id}")
    page.get_by_text("Change name, tags, notes or budget").click()
    page.get_by_label("Tags").fill("not a tag!")
    page.get_by_role("button", name="Save").click()
    page.locator(".field", has=page.get_by_label("Tags")).locator(".fault").wait_for()
    page.get_by_label("Tags").fill("short-lived")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("link", name="short-lived").click()  # every job with that tag
    page.locator(".jobs > li").first.wait_for()
    assert page.locator(".jobs > li").count() == 1
    page.get_by_role("link", name="long").click()
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("button", name="Really delete?").click()
    page.wait_for_url(f"{person.url}/")
    assert page.locator(f"#{job.id}").count() == 0
