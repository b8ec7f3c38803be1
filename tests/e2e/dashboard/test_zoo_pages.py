"""Keys of a zoo."""

import re
from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from client import Metazoo
from tests.e2e.dashboard.conftest import Visit

# Not by a signal: it would end Playwright's loop under the test, and whatever asks the page next would spin for ever.
pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(300, method="thread")]


def test_a_zoo_key_is_made_topped_up_and_revoked(visit: Callable[..., Visit], up: Any) -> None:
    person = visit("narrow-light")
    person.sign_in("/zoo")
    page = person.page
    page.get_by_role("button", name="Make a key").click()
    page.get_by_label("Name").fill("By hand")
    page.get_by_label("Images in all").fill("20")
    page.get_by_label("Models").fill("unicorns")
    page.get_by_role("button", name="Make the key").click()
    page.locator(".field", has=page.get_by_label("Models")).get_by_text("There is no model unicorns").wait_for()
    model = up.ready["models"][0]["name"]
    page.get_by_label("Models").fill(model)
    page.get_by_text("Rates, end and notes").click()
    page.get_by_label("Ends").fill("2100-01-01T00:00")
    page.get_by_role("button", name="Make the key").click()
    page.get_by_role("region", name="The new key").wait_for()
    secret = page.locator("#secret").inner_text()
    assert re.fullmatch(r"mz_[0-9A-Za-z]+_[0-9A-Za-z]{43}", secret)
    with Metazoo(zoo_url=up.ready["zoo_url"], zoo_api_key=secret) as client:
        client.zoo.predict(model, [Image.new("RGB", (32, 32))] * 5)
    page.get_by_role("link", name="By hand").click()
    page.locator("#chart .barlayer .trace").first.wait_for()
    assert page.locator("#budget .big").inner_text().split() == ["5", "of", "20"]
    assert secret not in page.content()
    page.get_by_label("Images to add").fill("0")
    page.get_by_role("button", name="Top up").click()
    page.locator("#budget .fault").wait_for()
    page.get_by_label("Images to add").fill("30")
    page.get_by_role("button", name="Top up").click()
    page.locator("#budget .big").get_by_text("of 50").wait_for()
    page.get_by_role("button", name="Revoke").click()
    page.get_by_role("button", name="Really revoke?").click()
    page.locator("#head .state").get_by_text("Revoked").wait_for()
    kept = page.evaluate("document.documentElement.outerHTML + JSON.stringify([localStorage, document.cookie])")
    assert up.ready["zoo_admin_key"] not in kept
