"""The built book in a browser without a network: no request leaves a page, equations, icons and search work."""

import functools
import os
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from contents import toc_pages

pytestmark = pytest.mark.book

DESKTOP, PHONE = 1280, 400
"""Pixels across a window."""

SETTLED = """async () => {
    if (window.MathJax?.startup) await MathJax.startup.promise;
    await document.fonts.ready;
}"""


WIDER = """() => [...document.querySelectorAll("article *")].filter(e => !e.closest("mjx-container"))
    .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.tagName + " " + e.className + ": " + e.textContent.trim().slice(0, 40)).slice(0, 5)"""

# WCAG's contrast of text on the nearest opaque background; 4.5 is what it asks of small text, 3 of large
CONTRASTS = """() => {
    const parts = colour => colour.match(/[\\d.]+/g).map(Number);
    const channel = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b);
    const background = e => {
        for (; e; e = e.parentElement) {
            const colour = parts(getComputedStyle(e).backgroundColor);
            if (colour.length < 4 || colour[3] === 1) return colour;
        }
        return [255, 255, 255];
    };
    const pale = [];
    for (const e of document.querySelectorAll("article p, article li, article td, article th, article pre span")) {
        if (!e.checkVisibility() || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
        const [a, b] = [parts(getComputedStyle(e).color), background(e)].map(luminance).sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 3) pale.push(e.textContent.trim().slice(0, 30) + " " + ratio.toFixed(1));
    }
    return pale;
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


@pytest.fixture
def visit(browser: Any, site: str) -> Iterator[Any]:
    """Opens a page and waits until it is drawn; at the end checks what it asked for and complained of."""
    context = browser.new_context()
    page = context.new_page()
    page.set_default_timeout(120_000)  # milliseconds; the longest page is drawn slowly beside other tests
    elsewhere: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: None if _local(request.url, site) else elsewhere.append(request.url))
    page.on(
        "response", lambda answer: complaints.append(f"{answer.status} {answer.url}") if answer.status >= 400 else None
    )
    page.on("console", lambda line: complaints.append(line.text) if line.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))

    def opened(path: str, width: int = DESKTOP, theme: str = "light") -> Any:
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme="dark" if theme == "dark" else "light")
        page.goto(f"{site}/{path}")
        if theme == "dark":  # what the theme's button does after two clicks
            page.evaluate("() => { document.documentElement.dataset.theme = 'dark' }")
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


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("name", toc_pages())
def test_page_is_drawn(visit: Any, screenshots: Path, name: str, width: int, theme: str) -> None:
    page = visit(f"{name}.html", width, theme)
    page.wait_for_load_state("networkidle")  # scripts have had the time to ask for more
    picture = screenshots / f"{name}-{width}-{theme}.png"
    page.screenshot(path=picture, full_page=True, animations="disabled")
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
    assert overflow <= 0, f"{name}.html is {overflow} pixels wider than the window: {page.evaluate(WIDER)}"
    pale = page.evaluate(CONTRASTS)
    assert not pale, f"text that is hard to read on its background: {pale[:5]}"


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


def test_keyboard_alone_reaches_the_text_and_the_search(visit: Any) -> None:
    page = visit("intro.html")
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent.trim()") == "Skip to main content"
    page.keyboard.press("Enter")
    assert page.evaluate("() => location.hash") == "#main-content"
    page.keyboard.press("Control+k")
    assert page.evaluate("() => document.activeElement.type") == "search"


def test_code_can_be_copied_and_hidden_cells_opened(visit: Any) -> None:
    page = visit("04_class_centralization.html")
    cells = page.locator("div.cell_input div.highlight")
    assert page.locator("div.cell_input button.copybtn").count() == cells.count() > 10
    folded = page.locator("div.cell.tag_hide-cell details").first
    assert not folded.locator("pre").first.is_visible()
    folded.locator("summary").focus()
    page.keyboard.press("Enter")
    assert folded.locator("pre").first.is_visible()


def test_paper_shows_the_text_alone_with_solutions_open(visit: Any, screenshots: Path) -> None:
    page = visit("04_class_centralization.html")
    page.emulate_media(media="print")
    page.screenshot(path=screenshots / "print.png", full_page=True, animations="disabled")
    for gone in (".bd-sidebar-primary", ".bd-header-article", ".prev-next-footer", "button.copybtn"):
        assert not page.locator(gone).first.is_visible(), gone
    solution = page.locator("div.cell.tag_hide-cell details pre").first
    assert solution.bounding_box()["height"] > 10
    wide = page.evaluate(
        "() => [...document.querySelectorAll('article pre')].filter(e => e.scrollWidth > e.clientWidth + 1).length"
    )
    assert wide == 0, "code that paper would cut off"
