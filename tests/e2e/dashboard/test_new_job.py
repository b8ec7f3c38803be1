"""The form that builds a job."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.e2e.dashboard.conftest import SLOW, Visit

# Not by a signal: it would end Playwright's loop under the test, and whatever asks the page next would spin for ever.
pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(300, method="thread")]

# As a person's Ctrl+V would; the machine's own clipboard may be missing, and is everybody's.
PASTE = """(text) => {
  const clipboardData = new DataTransfer();
  clipboardData.setData("text/plain", text);
  document.activeElement.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true}));
}"""


def test_apis_are_probed_before_a_job_is_made(visit: Callable[..., Visit], up: Any) -> None:
    person = visit("narrow-dark")
    person.sign_in("/jobs/new")
    page = person.page
    page.get_by_label("URL").first.fill(up.apis[0]["url"])
    page.get_by_label("Key", exact=True).first.fill(up.apis[0]["api_key"])
    page.get_by_label("Images in all").fill("50")
    page.get_by_role("button", name="Probe the APIs first").click()
    shown = page.locator(".probed")
    shown.get_by_text("5 classes").wait_for(timeout=SLOW)
    assert {"32 × 32", "answers the same again"} <= set(shown.inner_text().split(" · "))
    assert "Charged for the probe" in page.locator("#summary").inner_text()


def test_the_form_says_what_a_job_may_say(visit: Callable[..., Visit]) -> None:
    person = visit("wide-dark")
    person.sign_in("/jobs/new")
    page = person.page
    page.get_by_label("URL").first.fill("https://api.test/classify")
    page.get_by_role("button", name="More").click()
    page.get_by_label("Speaks").select_option("classify")
    described = page.get_by_role("group", name="What it takes and tells")
    described.get_by_label("Labels", exact=True).fill("a\na")
    described.get_by_label("Pixels a side").fill("64")
    page.get_by_label("Images in all").fill("50")
    page.get_by_label("Images for each API").fill("40")
    page.get_by_text("Limits in money and time").click()
    page.get_by_label("Money in all").fill("1.50")
    page.get_by_label("Seconds of asking").fill("60")
    page.get_by_label("Per 1,000").fill("2.00")
    page.get_by_label("Method").select_option("free")
    page.get_by_text("Learns from weights").wait_for()
    page.get_by_text("Options of free").click()
    page.locator("details[open]").get_by_label("Gradients: source").select_option("zeroth-order")
    page.locator("details[open]").get_by_label("Gradients: frequencies").fill("")
    page.get_by_text("How it runs").click()
    page.get_by_label("Least APIs").fill("1")
    webhook = page.get_by_role("group", name="Webhook")
    webhook.get_by_label("Address").fill("https://hook.test/")
    webhook.get_by_label("Secret").fill("whsec_short")
    person.check()
    page.get_by_role("button", name="Start the job").click()
    page.get_by_role("alert").get_by_text("nothing was done").wait_for()
    faults = {each.get_attribute("name") for each in page.locator("[aria-invalid=true]").all()}
    assert faults == {"apis.0.classify.labels", "webhook.secret"}
    webhook.get_by_label("Secret").fill(f"whsec_{'A' * 32}")
    with page.expect_response(lambda response: response.url.endswith("/estimate") and response.ok) as told:
        described.get_by_label("Labels", exact=True).fill("a\nb, or c")
    said = told.value.request.post_data_json
    assert said["apis"] == [
        {
            "url": "https://api.test/classify",
            "adapter": "classify",
            "classify": {"labels": ["a", "b, or c"], "size": 64, "field": "files", "max_images": 1},
            "price_per_1k": "2.00",
        }
    ]
    assert said["budget"] == {"queries": 50, "queries_per_api": 40, "cost": "1.50", "currency": "USD", "seconds": 60}
    assert said["min_apis"] == 1
    assert said["webhook"] == {"url": "https://hook.test/", "secret": f"whsec_{'A' * 32}"}
    gradients = {"source": "zeroth-order", "directions": 9, "frequencies": None}
    assert (said["method"]["name"], said["method"]["gradients"]) == ("free", gradients)


def test_faults_are_told_beside_their_fields(visit: Callable[..., Visit]) -> None:
    person = visit("narrow-light")
    person.sign_in("/jobs/new")
    page = person.page
    page.get_by_label("URL").fill("ftp://somewhere/model")
    page.get_by_label("Images for each API").fill("0")
    page.get_by_role("button", name="Start the job").click()
    page.get_by_role("alert").get_by_text("nothing was done").wait_for()
    url = page.get_by_label("URL")
    assert url.get_attribute("aria-invalid") == "true"
    assert (
        "Must be an http or https URL"
        in page.locator(f"#{str(url.get_attribute('aria-describedby')).split()[0]}").inner_text()
    )
    assert page.evaluate("document.activeElement.name") == "apis.0.url"
    assert "Is required" in page.locator(".field", has=page.get_by_label("Images in all")).inner_text()
    assert (
        "greater than or equal to 1"
        in page.locator(".field", has=page.get_by_label("Images for each API")).inner_text()
    )
    page.get_by_label("URL").fill("")
    assert page.url.endswith("/jobs/new")


def test_a_list_of_urls_becomes_a_list_of_apis(visit: Callable[..., Visit]) -> None:
    person = visit()
    person.sign_in("/jobs/new")
    page = person.page
    urls = [f"https://host{at % 2}.test/v2/models/m{at}" for at in range(4)]
    page.get_by_label("URL").focus()
    page.evaluate(PASTE, "\n".join(urls))
    page.get_by_label("URL").nth(3).wait_for()
    assert [field.input_value() for field in page.get_by_label("URL").all()] == urls
    page.get_by_label("Key", exact=True).first.fill("for host0")
    page.keyboard.press("Tab")
    assert [field.input_value() for field in page.get_by_label("Key", exact=True).all()] == [
        "for host0",
        "",
        "for host0",
        "",
    ]


def test_an_api_of_any_make_is_described_by_keyboard_in_fields(visit: Callable[..., Visit]) -> None:
    person = visit("narrow-light")
    person.sign_in("/jobs/new")
    page = person.page
    page.get_by_label("Images in all").fill("50")
    page.get_by_label("URL").focus()
    page.keyboard.type("https://api.test/models/flowers")
    page.get_by_role("button", name="More").press("Enter")
    page.get_by_label("Speaks").press("j")  # JSON of its own
    described = page.get_by_role("group", name="How it is asked")
    body = described.get_by_label("Body of a request")
    body.press_sequentially('{"inputs": "{{image}}"')
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.name") == "apis.0.custom.encoding"
    page.locator(".field", has=page.get_by_label("Body of a request")).get_by_text(
        "Is no JSON"
    ).wait_for()  # without a word to the server
    described.get_by_label("Pixels a side").fill("3")
    described.get_by_label("Where the scores are").fill("scores")
    described.get_by_label("Labels", exact=True).fill("daisy\nrose")
    described.get_by_text("More about its requests").press("Enter")
    described.get_by_label("Headers").fill("X-Model: flowers")
    described.locator(".field", has=page.get_by_label("Pixels a side")).get_by_text(
        "greater than or equal to 4"
    ).wait_for()
    page.get_by_role("button", name="Start the job").press("Enter")
    page.get_by_role("alert").get_by_text("Nothing was sent").wait_for()
    assert page.evaluate("document.activeElement.name") == "apis.0.custom.template"
    body.fill('{"inputs": "{{image}}"}')
    page.get_by_role("button", name="Start the job").press("Enter")
    page.get_by_role("alert").get_by_text("nothing was done").wait_for()
    faults = {each.get_attribute("name") for each in page.locator("[aria-invalid=true]").all()}
    assert faults == {"apis.0.custom.size"}
    described.get_by_label("Pixels a side").fill("32")  # what goes together is looked at once each field is right
    described.locator(".field", has=page.get_by_label("Where the scores are")).locator(".fault").wait_for()
    with page.expect_response(lambda response: response.url.endswith("/estimate") and response.ok) as told:
        described.get_by_label("Where the scores are").fill("/scores")
    (said,) = told.value.request.post_data_json["apis"]
    assert said["custom"] == {
        "template": {"inputs": "{{image}}"},
        "item": "{{image}}",
        "encoding": "png",
        "layout": "hwc",
        "size": 32,
        "scores": "/scores",
        "labels": ["daisy", "rose"],
        "max_images": 1,
        "headers": {"X-Model": "flowers"},
    }
    page.locator("[aria-invalid]").first.wait_for(state="detached")
