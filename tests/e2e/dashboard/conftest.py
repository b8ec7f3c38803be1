"""A person at the dashboard, in headless Chromium, wide and narrow, light and dark.

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

ROOT = Path(__file__).parents[3]
WIDE, NARROW = (1280, 900), (390, 844)
LOOKS = {
    f"{width}-{scheme}": (size, scheme)
    for width, size in {"wide": WIDE, "narrow": NARROW}.items()
    for scheme in ("light", "dark")
}
SLOW = 120_000  # milliseconds; what it waits for is usually there in a few seconds
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


def shoot(visit: Visit, name: str) -> None:
    """A picture for the documentation, where one was asked for."""
    if folder := os.environ.get("METAZOO_SCREENSHOTS"):
        visit.page.evaluate("scrollTo(0, 0)")
        visit.page.mouse.move(0, 0)
        visit.page.set_viewport_size({"width": WIDE[0], "height": 960})
        visit.page.wait_for_timeout(1000)  # transitions
        taken = io.BytesIO(visit.page.screenshot(animations="disabled"))
        Image.open(taken).convert("RGB").quantize(256).save(f"{folder}/dashboard-{name}.png", optimize=True)


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
