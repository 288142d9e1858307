"""What this book asks of Sphinx beyond its extensions.

- A figure's alt text is part of its output: ``metadata["image/png"]["alt"]``, set by the code that displays it.
- A string below an attribute is plain text; napoleon alone would read "kernels: compiled or not" as a type and its
  description.
- Pages have buttons that lead to the repository, JupyterLab on Binder and Colab, as soon as ``_config.yml`` says where
  the repository is; without an address there is nothing to lead to.
- Fields described under ``Attributes:`` in a class docstring are not listed a second time without a text.
- A docstring that says which chapter explains it leads there.
- A line ``.. room:: iidlib.data`` documents a room of the library: the names of its face as users write them,
  ``iidlib.data.RealSet``, then by file what the face does not pass on. A new public name so gets on the API page by
  itself. Code that comes upon the same thing under the name of its file is led to the face.
"""

import importlib
import inspect
import pkgutil
import re
import sys
from types import ModuleType
from typing import Any

from docutils import nodes
from myst_nb.core.render import MimeData, NbElementRenderer
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.ext.napoleon import GoogleDocstring

render_image = NbElementRenderer.render_image


def render_image_with_alt(renderer: NbElementRenderer, data: MimeData) -> list[nodes.Element]:
    """An image of a notebook; myst-nb alone takes its width and height from the output's metadata, but not its alt."""
    images: list[nodes.Element] = render_image(renderer, data)
    if alt := data.output_metadata.get(data.mime_type, {}).get("alt"):
        for image in images:
            image["alt"] = alt
    return images


def hide_from_napoleon(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Puts the text of an attribute aside; runs before napoleon."""
    if what in ("attribute", "data"):
        app.env.temp_data["attribute_docs"] = list(lines)
        lines.clear()


def give_back(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Restores what `hide_from_napoleon` put aside; runs after napoleon."""
    if what in ("attribute", "data"):
        lines[:] = app.env.temp_data.pop("attribute_docs")


def skip_described(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Skips a field that the ``Attributes:`` section of its class already describes."""
    path = app.env.temp_data.get("autodoc:class")
    if what != "class" or not path:
        return None
    owner: Any = sys.modules[app.env.temp_data["autodoc:module"]]
    for part in path.split("."):
        owner = getattr(owner, part)
    described = str(GoogleDocstring(inspect.getdoc(owner) or "", app.config, app, "class", path, owner))
    return True if f":ivar {name}:" in described else None


def buttons_where_there_is_an_address(app: Sphinx, config: Config) -> None:
    """Turns the theme's buttons on by the one setting ``repository.url`` of ``_config.yml``."""
    options = config.html_theme_options
    if options.get("repository_url"):
        options["use_repository_button"] = True
        options["launch_buttons"] = {
            "notebook_interface": "jupyterlab",
            "binderhub_url": "https://mybinder.org",
            "colab_url": "https://colab.research.google.com",
        }


EXPLAINED = re.compile(r"\bExplained in (chapter (\d\d))\.")


def link_chapters(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turns "Explained in chapter 04." of a docstring into a link to the chapter."""
    for number, line in enumerate(lines):
        for words, chapter in EXPLAINED.findall(line):
            page = next(app.srcdir.glob(f"{chapter}_*.ipynb")).stem
            lines[number] = line.replace(words, f":doc:`{words} </{page}>`")


ROOM = re.compile(r"^\.\. room:: (\S+)$", re.MULTILINE)


def is_constant(thing: Any) -> bool:
    """Whether a name holds a value, whose text is a string below it in its own file; a face has no such text."""
    return not (inspect.isclass(thing) or inspect.isroutine(thing))


def files_of(room: ModuleType) -> list[ModuleType]:
    """The files of a folder of the library."""
    names = [found.name for found in pkgutil.iter_modules(getattr(room, "__path__", ())) if found.name[0] != "_"]
    return [importlib.import_module(f"{room.__name__}.{name}") for name in names]


def entries(name: str) -> dict[str, list[str]]:
    """What is documented of a room: names by the module under which they stand, that of the face first.

    The files of the command line are commands; ``iid --help`` documents those.
    """
    room = importlib.import_module(name)
    passed_on = [own for own in room.__all__ if not (is_constant(getattr(room, own)) and hasattr(room, "__path__"))]
    if name == "iidlib.cli":
        return {name: list(room.__all__)}
    found = {name: passed_on}
    for file in files_of(room):
        if own := [public for public in file.__all__ if public not in passed_on]:
            found[file.__name__] = own
    return found


def room_text(name: str) -> str:
    """The reStructuredText that documents a room."""
    blocks = []
    for module, names in entries(name).items():
        title = module.removeprefix("iidlib.")
        others = [public for public in importlib.import_module(module).__all__ if public not in names]
        blocks += [title, ("^" if module == name else '"') * len(title), "", f".. automodule:: {module}"]
        blocks += [f"   :exclude-members: {', '.join(others)}"] if others else []
        blocks += [""]
    return "\n".join(blocks)


def write_rooms(app: Sphinx, docname: str, source: list[str]) -> None:
    """Puts the text of each room in the place of its line; runs before a page is parsed."""
    if docname == "api":
        source[0] = ROOM.sub(lambda line: room_text(line[1]), source[0])


def documented_names(rooms: list[str]) -> dict[str, str]:
    """Returns the name under which each thing is documented, by the name that Python knows: that of its file.

    Constants are the other way round: documented in their file, and imported by a chapter from the package.
    """
    led: dict[str, str] = {}
    for room in rooms:
        for module, names in entries(room).items():
            for name in names:
                thing, shown = getattr(sys.modules[module], name), f"{module}.{name}"
                if is_constant(thing):
                    led[f"{room}.{name}"] = shown
                else:
                    known = f"{thing.__module__}.{thing.__qualname__}"
                    inner = vars(thing) | getattr(thing, "__annotations__", {}) if inspect.isclass(thing) else {}
                    led |= {known: shown} | {f"{known}.{part}": f"{shown}.{part}" for part in inner if part[0] != "_"}
    return {known: shown for known, shown in led.items() if known != shown}


def rooms_of(app: Sphinx) -> list[str]:
    """The rooms of the library that the API page shows."""
    return ROOM.findall((app.srcdir / "api.rst").read_text(encoding="utf8"))


def lead_to_faces(app: Sphinx, config: Config) -> None:
    """Tells sphinx-codeautolink under which names things are documented."""
    config.codeautolink_inventory_map = documented_names(rooms_of(app)) | config.codeautolink_inventory_map


def file_of(app: Sphinx, module: str, name: str) -> str:
    """The file whose source viewcode shows for a name of a face; a value has no home but the module it is seen in."""
    thing: Any = sys.modules[module]
    for part in name.split("."):
        thing = getattr(thing, part, None)
    home = str(getattr(thing, "__module__", ""))
    return home if home.startswith("iidlib.") else module


def lead_back(app: Sphinx, pagename: str, templatename: str, context: dict[str, Any], doctree: Any) -> None:
    """Corrects links from source to the API page; viewcode takes all names of a file to be documented in one place."""
    if not pagename.startswith("_modules/iidlib/"):
        return
    file = pagename.removeprefix("_modules/").replace("/", ".")
    room = ".".join(file.split(".")[:2])
    led = documented_names(rooms_of(app))

    def link(found: re.Match[str]) -> str:
        known = f"{file}.{found[1].removeprefix(f'{file}.').removeprefix(f'{room}.')}"
        return f"api.html#{led.get(known, known)}"

    context["body"] = re.sub(r"api\.html#([\w.]+)", link, context["body"])


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the handlers; napoleon's own runs at priority 500."""
    NbElementRenderer.render_image = render_image_with_alt
    app.connect("config-inited", buttons_where_there_is_an_address)
    app.connect("config-inited", lead_to_faces)
    app.connect("source-read", write_rooms)
    app.connect("viewcode-follow-imported", file_of)
    app.connect("html-page-context", lead_back)
    app.connect("autodoc-process-docstring", link_chapters)
    app.connect("autodoc-process-docstring", hide_from_napoleon, priority=400)
    app.connect("autodoc-process-docstring", give_back, priority=600)
    app.connect("autodoc-skip-member", skip_described)
    return {"version": "1", "parallel_read_safe": True}
