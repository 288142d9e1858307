"""The built book in a browser without a network: no request leaves a page, equations, icons and search work."""

import functools
import importlib.util
import os
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from contents import toc_pages

pytestmark = pytest.mark.book

SETTLED = """async () => {
    if (window.MathJax?.startup) await MathJax.startup.promise;
    await document.fonts.ready;
}"""


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and keeps the terminal clean."""

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture(scope="session")
def site(html: Path) -> Iterator[str]:
    """The address of the book, served from this machine."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(html))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Headless Chromium; without one the tests are skipped, or fail where IID_REQUIRE_BROWSER is set."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    missing = []
    if chromium is None:
        missing.append("no chromium on the PATH (Debian: apt-get install chromium)")
    if importlib.util.find_spec("playwright") is None:
        missing.append("no package playwright (pip install -e '.[dev]')")
    if missing and os.environ.get("IID_REQUIRE_BROWSER") == "1":
        pytest.fail(f"IID_REQUIRE_BROWSER=1, but {' and '.join(missing)}", pytrace=False)
    if missing:
        pytest.skip(" and ".join(missing))
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # nothing but this machine has an address: what a page asks for elsewhere fails, as it would offline
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        running = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any, site: str) -> Iterator[Any]:
    """Opens a page and waits until it is drawn; at the end checks what it asked for and complained of."""
    context = browser.new_context()
    page = context.new_page()
    elsewhere: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: None if _local(request.url, site) else elsewhere.append(request.url))
    page.on(
        "response", lambda answer: complaints.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
    )
    page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def opened(path: str, width: int = 1280) -> Any:
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(f"{site}/{path}")
        page.evaluate(SETTLED)
        return page

    yield opened
    context.close()
    assert not elsewhere, f"requests that leave the page: {elsewhere}"
    assert not complaints, f"the browser complains: {complaints}"


def _local(url: str, site: str) -> bool:
    return url.startswith((f"{site}/", "data:", "blob:"))


@pytest.fixture(scope="session")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pictures of the pages go: IID_SCREENSHOTS, or a folder of this session."""
    folder = Path(os.environ.get("IID_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("name", toc_pages())
def test_page_is_drawn(visit: Any, screenshots: Path, name: str) -> None:
    page = visit(f"{name}.html")
    page.wait_for_load_state("networkidle")  # scripts have had the time to ask for more
    page.screenshot(path=screenshots / f"{name}.png", full_page=True, animations="disabled")
    assert page.locator("article h1").is_visible()
    broken = page.evaluate("() => [...document.images].filter(i => !i.naturalWidth).map(i => i.src)")
    assert not broken, f"images that do not show: {broken}"
    fonts = page.evaluate("() => [...document.fonts].map(f => [f.family, f.status])")
    assert not [family for family, status in fonts if status == "error"], f"fonts that do not load: {fonts}"
    icons = page.evaluate(
        "() => [...document.querySelectorAll('svg.svg-inline--fa')].filter(i => i.getBoundingClientRect().width).length"
    )
    assert icons > 0, "no icon is drawn"
    assert page.locator("i.fa-solid, i.fas, i.fa-brands, i.far").count() == 0, "icons without a picture"
    overflow = page.evaluate("() => document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert overflow <= 0, f"{name}.html is {overflow} pixels wider than the window"


@pytest.mark.parametrize("name", toc_pages())
def test_equations_are_set(visit: Any, name: str) -> None:
    page = visit(f"{name}.html")
    math = page.evaluate(
        """() => [...document.querySelectorAll("article .math")].filter(e => e.checkVisibility()).map(e => {
            const box = e.querySelector("mjx-container")?.getBoundingClientRect();
            return [e.textContent.trim().slice(0, 60), box ? Math.min(box.width, box.height) : 0];
        })"""
    )
    flat = [text for text, size in math if size < 1]
    assert not flat, f"equations that are not set: {flat}"
    wide = page.evaluate(
        """() => [...document.querySelectorAll("article mjx-container[display]")].filter(e => e.checkVisibility())
            .filter(e => e.scrollWidth > e.clientWidth + 1)
            .map(e => e.closest("dl.py")?.querySelector("dt").id || e.closest("section").id)"""
    )
    assert not wide, f"equations wider than the page, break the line in: {wide}"
    assert page.locator("article mjx-merror, article [data-mjx-error]").count() == 0
    prose = page.evaluate(
        """() => {
            const copy = document.querySelector("article").cloneNode(true);
            copy.querySelectorAll("pre, code, script, mjx-container").forEach(e => e.remove());
            return copy.textContent;
        }"""
    )
    assert not re.search(r"\$\$|\\[(\[a-zA-Z]", prose), "TeX that is shown as it was typed"


def test_pages_with_equations_have_them(visit: Any) -> None:
    assert visit("notation.html").locator("article mjx-container").count() > 30
    assert visit("api.html").locator("article mjx-container").count() > 0


def test_search_finds_a_word(visit: Any) -> None:
    page = visit("intro.html")
    page.locator("button.search-button__button:visible, button.search-button:visible").first.click()
    page.locator("input[type=search]:visible").first.fill("covariance")
    page.keyboard.press("Enter")
    page.wait_for_url("**/search.html?**")
    for found in ("notation.html", "api.html", "05_covariance_matching.html"):
        page.locator(f"#search-results a[href*='{found}']").first.wait_for(timeout=15_000)


def test_a_narrow_window_fits(visit: Any, screenshots: Path) -> None:
    page = visit("intro.html", width=400)
    page.screenshot(path=screenshots / "intro_narrow.png", full_page=True, animations="disabled")
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 400


def test_dark_theme_is_readable(visit: Any, screenshots: Path) -> None:
    page = visit("notation.html")
    page.evaluate("() => { document.documentElement.dataset.theme = 'dark' }")
    page.screenshot(path=screenshots / "notation_dark.png", animations="disabled")
    colours = page.evaluate(
        """() => [getComputedStyle(document.body).backgroundColor,
                 getComputedStyle(document.querySelector("article p")).color]"""
    )
    background, text = (sum(int(c) for c in re.findall(r"\d+", colour)[:3]) / 3 for colour in colours)
    assert text - background > 100, colours
