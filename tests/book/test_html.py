"""The built book, as files: pages, figures and their alt text, API names, links, nothing fetched from elsewhere."""

import functools
import importlib
import importlib.util
import json
import pkgutil
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup, Tag
from contents import BOOK, chapters, toc_pages

import iidlib
from iidlib import config

pytestmark = pytest.mark.book

# Elements that make a browser fetch something, and the attribute that names it; links in <a> wait for the reader.
FETCHED = {
    "script": "src",
    "link": "href",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "embed": "src",
}
REMOVED = {"remove-output", "remove_output", "remove-cell", "remove_cell", "remove-input-output"}


@functools.cache
def extension() -> Any:
    """The book's own extension of Sphinx."""
    spec = importlib.util.spec_from_file_location("iid_book", BOOK / "_ext" / "iid_book.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rooms() -> list[str]:
    """The rooms of the library that the API page shows, in its order."""
    found: list[str] = extension().ROOM.findall((BOOK / "api.rst").read_text(encoding="utf8"))
    return found


def modules() -> list[str]:
    return ["iidlib." + found.name for found in pkgutil.iter_modules(iidlib.__path__) if found.name[0] != "_"]


@functools.cache  # the API page takes seconds to parse
def page(html: Path, name: str) -> BeautifulSoup:
    return BeautifulSoup((html / f"{name}.html").read_text(encoding="utf8"), "html.parser")


def article(html: Path, name: str) -> Tag:
    found = page(html, name).find("article")
    assert isinstance(found, Tag), f"{name}.html has no article"
    return found


def test_book_builds_without_a_warning(build: Path) -> None:
    errors = (build / "errors.txt").read_text()
    assert not errors, errors


@pytest.mark.parametrize("name", toc_pages())
def test_page_exists_with_its_title(html: Path, name: str) -> None:
    body = article(html, name)
    title = body.find("h1")
    assert title is not None and len(title.get_text(strip=True)) > 2
    assert len(body.get_text().split()) > 30, f"{name}.html is almost empty"


def test_front_page_leads_to_the_book(html: Path) -> None:
    assert f"url={toc_pages()[0]}.html" in (html / "index.html").read_text().replace(" ", "")


def test_nothing_is_fetched_from_elsewhere(html: Path) -> None:
    outside = []
    for path in html.rglob("*.html"):
        for element in BeautifulSoup(path.read_text(encoding="utf8"), "html.parser").find_all(list(FETCHED)):
            target = str(element.get(FETCHED[element.name]) or "")
            if urlsplit(target).netloc and element.get("rel") != ["canonical"]:
                outside.append(f"{path.name}: {target}")
    for path in html.rglob("*.css"):
        for target in re.findall(r"url\(['\"]?((?:https?:)?//[^)'\"]+)", path.read_text(encoding="utf8")):
            outside.append(f"{path.name}: {target}")
    assert not outside, "the book must read offline:\n" + "\n".join(outside)


def test_links_inside_the_book_lead_somewhere(html: Path) -> None:
    anchors: dict[Path, set[str]] = {}
    for path in html.rglob("*.html"):
        soup = BeautifulSoup(path.read_text(encoding="utf8"), "html.parser")
        anchors[path.resolve()] = {str(tag["id"]) for tag in soup.find_all(id=True)}
    broken = []
    for path in anchors:
        for link in BeautifulSoup(path.read_text(encoding="utf8"), "html.parser").find_all("a", href=True):
            target = urlsplit(str(link["href"]))
            if target.scheme or target.netloc:
                continue
            file = (path.parent / unquote(target.path)).resolve() if target.path else path
            if not file.exists() or (
                target.fragment and file in anchors and unquote(target.fragment) not in anchors[file]
            ):
                broken.append(f"{path.name}: {link['href']}")
    assert not broken, "\n".join(broken)


def test_every_figure_says_what_it_shows(html: Path) -> None:
    seen: dict[str, str] = {}
    for name in toc_pages():
        for image in article(html, name).find_all("img"):
            alt = str(image.get("alt") or "").strip()
            where = f"{name}: {image['src']}"
            assert len(alt) >= 15 and " " in alt, f"{where} has no alt text that says the finding (got {alt!r})"
            assert not re.search(r"\.(png|svg|gif|webp|jpe?g)$", alt), f"{where}: a file name is no alt text"
            assert alt not in seen, f"{where} repeats the alt text of {seen[alt]}: {alt!r}"
            assert (html / str(image["src"])).exists(), where
            seen[alt] = where
    assert seen, "the book shows no figure"


@pytest.mark.parametrize("name", chapters())
def test_chapter_shows_its_committed_outputs(html: Path, name: str) -> None:
    notebook = nbformat.read(BOOK / f"{name}.ipynb", as_version=4)
    expected = [
        cell
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.outputs and not REMOVED & set(cell.metadata.get("tags", ()))
    ]
    assert expected
    assert len(article(html, name).select("div.cell_output")) == len(expected)


@pytest.mark.parametrize("name", chapters())
def test_names_in_code_link_to_the_api(html: Path, name: str) -> None:
    links = [str(link["href"]) for link in article(html, name).select("div.highlight a[href]")]
    assert any(link.startswith("api.html#iidlib.") for link in links), f"no name in the code of {name} links to the API"


@pytest.mark.parametrize("name", chapters())
def test_every_name_that_a_chapter_imports_links_to_the_api(html: Path, name: str) -> None:
    ids = {str(tag["id"]) for tag in article(html, "api").select("[id]")}
    linked = {
        str(link["href"]).removeprefix("api.html#") for link in article(html, name).select("div.highlight a[href]")
    }
    assert {link for link in linked if link.startswith("iidlib.")} <= ids
    code = "\n".join(cell.source for cell in nbformat.read(BOOK / f"{name}.ipynb", as_version=4).cells)
    led = extension().documented_names(rooms())
    wanted = set()
    for room, names in re.findall(r"^from (iidlib\.\w+) import (.+)$", code, re.MULTILINE):
        for one in names.split(", "):
            wanted.add(led.get(f"{room}.{one}", f"{room}.{one}"))
    assert wanted <= linked, f"without a link to the API: {sorted(wanted - linked)}"


def test_methods_of_a_class_link_to_the_api(html: Path) -> None:
    links = {str(link["href"]) for name in chapters() for link in article(html, name).select("div.highlight a[href]")}
    assert "api.html#iidlib.distillation.ImageOptimiser.step" in links
    assert "api.html#iidlib.features.RandomNetworks.draw" in links


def test_api_page_has_every_room() -> None:
    assert sorted(rooms()) == modules()


def test_api_page_covers_every_file(html: Path) -> None:
    documented = {str(tag["id"])[len("module-") :] for tag in article(html, "api").select("[id^='module-iidlib.']")}
    assert documented == {module for room in rooms() for module in extension().entries(room)}


@pytest.mark.parametrize("name", modules())
def test_api_page_covers_every_public_name(html: Path, name: str) -> None:
    room, page = importlib.import_module(name), article(html, "api")
    files = [] if name == "iidlib.cli" else extension().files_of(room)
    shown = extension().entries(name)
    unseen = {public for module in [room, *files] for public in module.__all__} - {
        entry for names in shown.values() for entry in names
    }
    assert not unseen, f"{name}: not on the API page: {sorted(unseen)}"
    for module, public in shown.items():
        entries = {}
        for tag in page.select(f"dt[id^='{module}.']"):
            description = tag.find_next_sibling("dd")
            entries[str(tag["id"])[len(module) + 1 :]] = description.get_text(strip=True) if description else ""
        missing = sorted(set(public) - set(entries))
        assert not missing, f"{module}: not on the API page: {missing}"
        silent = sorted(entry for entry in public if not entries[entry])
        assert not silent, f"{module}: on the API page without a description: {silent}"
        parts = {file.__name__.removeprefix(f"{module}.") for file in files}
        others = sorted({entry.split(".")[0] for entry in entries} - set(public) - parts)
        assert not others, f"{module}: on the API page but not public there: {others}"


def test_docstrings_lead_to_the_chapters_that_explain_them(html: Path) -> None:
    for name, chapter in {
        "losses.class_centralization": "04_class_centralization",
        "synthetic.expand": "06_idm",
    }.items():
        entry = article(html, "api").find(id=f"iidlib.{name}")
        assert isinstance(entry, Tag) and isinstance(text := entry.find_next_sibling("dd"), Tag)
        assert [link.get_text() for link in text.select(f"a[href='{chapter}.html']")] == [f"chapter {chapter[:2]}"]


def test_names_of_the_package_are_documented_at_their_rooms(html: Path) -> None:
    ids = {str(tag["id"]) for tag in article(html, "api").select("dt[id]")}
    for name, home in iidlib._HOMES.items():
        assert f"iidlib.{home}.{name}" in ids, f"iidlib.{name} is not on the API page"


@pytest.mark.parametrize("name", ["intro", "notation"])
def test_settings_named_in_the_text_exist(html: Path, name: str) -> None:
    known = set(config.settings())
    groups = {key.split(".")[0] for key in known if "." in key}
    for code in article(html, name).select("code"):
        text = code.get_text()
        if re.fullmatch(r"\w+\.\w+", text) and text.split(".")[0] in groups:
            assert text in known, f"{name} names a setting {text!r} that does not exist"


@pytest.mark.parametrize("name", ["covariance", "distribut", "central"])
def test_search_index_knows_the_subject(html: Path, name: str) -> None:
    text = (html / "searchindex.js").read_text(encoding="utf8")
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    assert any(term.startswith(name) for term in index["terms"])


def test_buttons_lead_to_the_repository_once_it_has_an_address() -> None:
    def options(**given: Any) -> dict[str, Any]:
        config = SimpleNamespace(html_theme_options=given)
        extension().buttons_where_there_is_an_address(None, config)
        return config.html_theme_options

    assert options(repository_url="", path_to_docs="book") == {"repository_url": "", "path_to_docs": "book"}
    found = options(repository_url="https://github.com/someone/iid-book")
    assert found["use_repository_button"]
    assert found["launch_buttons"]["notebook_interface"] == "jupyterlab"
    assert {"binderhub_url", "colab_url"} <= found["launch_buttons"].keys()
