"""The dashboard in headless Chromium: a whole job from its form to a prediction, wide and narrow, light and dark.

Every page that a test opens is watched: no violation of the content policy, no word on the console, no request elsewhere.
With METAZOO_SCREENSHOTS=FOLDER the pictures of the documentation are written there.
"""

import importlib.util
import io
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from client import Metazoo

# Not by a signal: it would end Playwright's loop under the test, and whatever asks the page next would spin for ever.
pytestmark = [pytest.mark.browser, pytest.mark.e2e, pytest.mark.timeout(300, method="thread")]

ROOT = Path(__file__).parents[2]
WIDE, NARROW = (1280, 900), (390, 844)
LOOKS = {
    f"{width}-{scheme}": (size, scheme)
    for width, size in {"wide": WIDE, "narrow": NARROW}.items()
    for scheme in ("light", "dark")
}
PICTURES = {"job": "job", "meta-model": "playground", "zoo-key": "zoo-key"}
SLOW = 120_000  # milliseconds; what it waits for is usually there in a few seconds
# As a person's Ctrl+V would; the machine's own clipboard may be missing, and is everybody's.
PASTE = """(text) => {
  const clipboardData = new DataTransfer();
  clipboardData.setData("text/plain", text);
  document.activeElement.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true, cancelable: true}));
}"""
AXE = ("axe-core", "4.14.1", "axe.min.js", "29348999450cdf2849a8e70b7912fc2da85a849da39c0d0d5394f51d4a9ed95c")
WATCH = """
window.violations = [];
addEventListener("securitypolicyviolation", (event) =>
  violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));
"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    playwright = pytest.importorskip("playwright.sync_api")
    quiet = [
        "--no-sandbox",
        "--disable-gpu",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
    ]
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=executable, args=quiet)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def axe(request: pytest.FixtureRequest) -> str:
    """The accessibility checker, from npm, once."""
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None
    assert spec.loader is not None
    hook = importlib.util.module_from_spec(spec)
    sys.modules["hatch_build"] = hook  # dataclasses look their module up
    spec.loader.exec_module(hook)
    library = hook.Library(*AXE)
    kept = Path(request.config.cache.mkdir("axe")) / f"{library.version}.js"
    if not kept.exists() or not library.right(kept.read_bytes()):
        try:
            kept.write_bytes(library.fetch())
        except OSError as error:
            pytest.skip(f"npm is not reachable, and accessibility is not checked without axe-core: {error}")
    return kept.read_text()


_STICKING_OUT = """[...document.querySelectorAll("main *")]
  .filter(each => each.getBoundingClientRect().right > document.documentElement.clientWidth && !each.closest(".scroll"))
  .slice(-5).map(each => each.outerHTML.slice(0, 120))"""


class Visit:
    """A person at the dashboard: one page of a browser with nothing in it, and what it complained about."""

    def __init__(self, chromium: Any, up: Any, size: tuple[int, int], scheme: str) -> None:
        self.up = up
        self.url = up.ready["server_url"]
        self.complaints: list[str] = []
        width, height = size
        touch = size == NARROW
        self.context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme=scheme, has_touch=touch
        )
        self.context.add_init_script(WATCH)
        self.context.set_default_timeout(30_000)
        self.page = self.context.new_page()
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        self.page.on("request", self._request)

    def _console(self, message: Any) -> None:
        refused = "Failed to load resource" in message.text and re.search(r" 4\d\d ", message.text)
        if message.type in ("error", "warning") and not refused:  # what the server refuses is told on the page
            self.complaints.append(f"console: {message.text}")

    def _request(self, request: Any) -> None:
        if not request.url.startswith((self.url, "blob:", "data:")):
            self.complaints.append(f"elsewhere: {request.url}")

    def sign_in(self, to: str = "/") -> None:
        self.page.goto(f"{self.url}{to}")
        self.page.get_by_label("Key").fill(self.up.ready["api_key"])
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(f"{self.url}{to}")

    def go(self, path: str) -> None:
        self.check()
        self.page.goto(f"{self.url}{path}")

    def check(self) -> None:
        """Nothing was blocked, nothing was complained about, nothing sticks out at the side."""
        assert self.page.evaluate("window.violations") == []
        assert self.complaints == []
        whole, seen = self.page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
        assert whole <= seen, (
            f"{self.page.url} is {whole} wide on a screen of {seen}: {self.page.evaluate(_STICKING_OUT)}"
        )


@pytest.fixture
def visit(chromium: Any, up: Any) -> Iterator[Callable[..., Visit]]:
    made: list[Visit] = []

    def do(look: str = "wide-light") -> Visit:
        made.append(Visit(chromium, up, *LOOKS[look]))
        return made[-1]

    yield do
    for each in made:
        each.check()
        each.context.close()


@pytest.fixture(scope="module")
def metazoo(up: Any) -> Iterator[Metazoo]:
    with Metazoo(up.ready["server_url"], up.ready["api_key"]) as client:
        yield client


@pytest.fixture(scope="module")
def glyphs(tmp_path_factory: pytest.TempPathFactory) -> list[list[Path]]:
    """Ten pictures of each of three classes that no API knows."""
    from dfml.datasets import open_dataset

    folder = tmp_path_factory.mktemp("glyphs")
    images = open_dataset("glyphs", None).images("val").permute(0, 1, 3, 4, 2).numpy()
    files = [[folder / f"class-{k}-{at}.png" for at in range(10)] for k in range(3)]
    for k, paths in enumerate(files):
        for at, path in enumerate(paths):
            Image.fromarray(images[k, at]).save(path)
    return files


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


def shoot(visit: Visit, name: str) -> None:
    """A picture for the documentation, where one was asked for."""
    if folder := os.environ.get("METAZOO_SCREENSHOTS"):
        visit.page.evaluate("scrollTo(0, 0)")
        visit.page.mouse.move(0, 0)
        visit.page.set_viewport_size({"width": WIDE[0], "height": 960})
        visit.page.wait_for_timeout(1000)  # transitions
        taken = io.BytesIO(visit.page.screenshot(animations="disabled"))
        Image.open(taken).convert("RGB").quantize(256).save(f"{folder}/dashboard-{name}.png", optimize=True)


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
    page.get_by_label("Key").fill(apis[0]["api_key"])
    for at, api in enumerate(apis[1:], 1):
        page.get_by_role("button", name="Add an API").click()
        page.get_by_label("URL").nth(at).fill(api["url"])
        page.get_by_label("Key").nth(at).fill(api["api_key"])
    page.get_by_label("Images in all").fill("240")
    page.get_by_text("Options of pqd").click()
    page.locator("details[open]").get_by_label("Steps", exact=True).fill("40")
    page.get_by_text("More of the evaluation").click()
    page.locator("#evaluation").get_by_label("Episodes", exact=True).fill("20")
    page.get_by_label("Name").fill(f"By hand, {look}")
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
    assert page.locator("#accuracy-card").get_by_role("row").count() == 3  # a head, 1 shot, 5 shots

    page.get_by_role("link", name="Open the meta-model").click()
    play(page, glyphs)


def play(page: Any, glyphs: list[list[Path]], *, right: int = 0) -> None:
    """Show three classes, ask about fifteen pictures: at least `right` are labelled as they should be."""
    page.get_by_role("button", name="Add a class").click()
    for k, files in enumerate(glyphs):
        area = page.locator("#classes .class").nth(k)
        area.get_by_role("textbox").fill(f"Letter {k + 1}")
        area.locator("input[type=file]").set_input_files(files[:5])
    page.get_by_role("button", name="Adapt").click()
    page.get_by_text("Learned 3 classes from 15 images").wait_for(timeout=SLOW)
    page.locator("#query-files").set_input_files([file for files in glyphs for file in files[5:]])
    page.locator(".prediction").nth(14).wait_for(timeout=SLOW)
    cards = page.locator(".prediction")
    labels = cards.locator("strong").all_inner_texts()
    assert len(labels) == 15
    truth = [f"Letter {k + 1}" for k in range(3) for _ in range(5)]
    assert sum(one == other for one, other in zip(labels, truth, strict=True)) >= right
    shares = [float(text.rstrip(" %")) for text in cards.first.locator(".n").all_inner_texts()]
    assert abs(sum(shares) - 100) < 0.5
    assert shares == sorted(shares, reverse=True)
    assert "Letter 1, Letter 2, Letter 3" in page.locator("#adapted").inner_text()


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


def test_apis_are_probed_before_a_job_is_made(visit: Callable[..., Visit], up: Any) -> None:
    person = visit("narrow-dark")
    person.sign_in("/jobs/new")
    page = person.page
    page.get_by_label("URL").first.fill(up.apis[0]["url"])
    page.get_by_label("Key").first.fill(up.apis[0]["api_key"])
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
    page.get_by_label("Described as JSON").fill('{"labels": ["a", "b"], "size": 64')
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
    assert faults == {"apis.0.classify", "webhook.secret"}
    webhook.get_by_label("Secret").fill(f"whsec_{'A' * 32}")
    with page.expect_response(lambda response: response.url.endswith("/estimate") and response.ok) as told:
        page.get_by_label("Described as JSON").fill('{"labels": ["a", "b"], "size": 64}')
    said = told.value.request.post_data_json
    assert said["apis"] == [
        {
            "url": "https://api.test/classify",
            "adapter": "classify",
            "classify": {"labels": ["a", "b"], "size": 64},
            "price_per_1k": "2.00",
        }
    ]
    assert said["budget"] == {"queries": 50, "queries_per_api": 40, "cost": "1.50", "currency": "USD", "seconds": 60}
    assert said["min_apis"] == 1
    assert said["webhook"] == {"url": "https://hook.test/", "secret": f"whsec_{'A' * 32}"}
    gradients = {"source": "zeroth-order", "directions": 9, "frequencies": None}
    assert (said["method"]["name"], said["method"]["gradients"]) == ("free", gradients)


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
    page.get_by_label("Key").first.fill("for host0")
    page.keyboard.press("Tab")
    assert [field.input_value() for field in page.get_by_label("Key").all()] == ["for host0", "", "for host0", ""]


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
