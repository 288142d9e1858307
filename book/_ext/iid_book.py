"""What this book asks of Sphinx beyond its extensions.

- A figure's alt text is part of its output: ``metadata["image/png"]["alt"]``, set by the code that displays it.
- A string below an attribute is plain text; napoleon alone would read "kernels: compiled or not" as a type and its
  description.
- Pages have buttons that lead to the repository, JupyterLab on Binder and Colab, as soon as ``_config.yml`` says where
  the repository is; without an address there is nothing to lead to.
- Fields described under ``Attributes:`` in a class docstring are not listed a second time without a text.
"""

import inspect
import sys
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


def setup(app: Sphinx) -> dict[str, Any]:
    """Connects the handlers; napoleon's own runs at priority 500."""
    NbElementRenderer.render_image = render_image_with_alt
    app.connect("config-inited", buttons_where_there_is_an_address)
    app.connect("autodoc-process-docstring", hide_from_napoleon, priority=400)
    app.connect("autodoc-process-docstring", give_back, priority=600)
    app.connect("autodoc-skip-member", skip_described)
    return {"version": "1", "parallel_read_safe": True}
