"""Matplotlib plots as inline SVG with the text, fonts and colors of the page."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable
from typing import Any
from xml.etree import ElementTree

from markupsafe import Markup

_CSS_COLORS = {
    "#000000": "var(--ink)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--orange)",
    "#999999": "var(--soft)",
    "#b0b0b0": "var(--rule)",
}
"""Colors of plots and the CSS variables that replace them; these differ in dark mode."""

_RC_PARAMS: dict[Any, Any] = {
    "svg.fonttype": "none",  # selectable text in any script that the browser supports
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "font.size": 10,
    "axes.labelsize": 10,
}
_ID_REFERENCE = re.compile(r"url\(#([^)]+)\)|^#(.+)$")


def draw_svg(name: str, size: tuple[float, float], title: str, description: str, draw: Callable[[Any], None]) -> Markup:
    """Return an <svg> of `size` pixels of the figure that `draw` fills, with title and description for screen readers.

    Ids begin with `name`, there is no style sheet, and the same figure gives the same text. Text must not contain
    characters that XML forbids. Raises KeyError for a color that is not in _CSS_COLORS.
    """
    from matplotlib import rc_context  # slow to import
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with rc_context(_RC_PARAMS), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)  # the browser chooses fonts
        figure = Figure(figsize=(size[0] / 72, size[1] / 72), dpi=72)
        FigureCanvasSVG(figure)
        draw(figure)
        figure.savefig(buffer, format="svg")
    root = ElementTree.fromstring(buffer.getvalue())
    _drop_namespaces(root)
    _renumber_ids(root, name)
    for element in root.iter():
        if style := element.get("style"):
            element.set("style", _apply_page_style(style))
    return Markup(_serialize(root, name, title, description))


def _drop_namespaces(root: ElementTree.Element) -> None:
    """Use the plain element names of inline SVG; remove metadata, and style sheets, which would affect the page."""
    for element in root.iter():
        element.tag = _local_name(element.tag)
        element.attrib = {_local_name(key): value for key, value in element.attrib.items()}
    for element in list(root.iter()):
        for child in list(element):
            if child.tag in ("style", "metadata"):
                element.remove(child)


def _local_name(name: str) -> str:
    return name.rpartition("}")[2]


def _renumber_ids(root: ElementTree.Element, name: str) -> None:
    """Number the referenced ids and remove the others: those of matplotlib are random and may collide."""
    new_ids: dict[str, str] = {}
    for element in root.iter():
        for key, value in element.attrib.items():
            if match := _ID_REFERENCE.search(value):
                old_id = match[1] or match[2]
                new_id = new_ids.setdefault(old_id, f"{name}-{len(new_ids)}")
                element.set(key, value.replace(f"#{old_id}", f"#{new_id}"))
    for element in root.iter():
        old_id = element.attrib.pop("id", "")
        if old_id in new_ids:
            element.set("id", new_ids[old_id])


def _apply_page_style(style: str) -> str:
    """Replace the colors of a style by CSS variables and remove its font."""
    declarations = []
    for declaration in style.split(";"):
        key, _, value = declaration.partition(":")
        value = value.strip()
        if key.strip() != "font-family":
            declarations.append(f"{key.strip()}:{_CSS_COLORS[value] if value.startswith('#') else value}")
    return ";".join(declarations)


def _serialize(root: ElementTree.Element, name: str, title: str, description: str) -> str:
    width, height = (float(number) for number in root.attrib["viewBox"].split()[2:])
    root.attrib = {
        "viewBox": root.attrib["viewBox"],
        "width": f"{width:g}",
        "height": f"{height:g}",
        "role": "img",
        "aria-labelledby": f"{name}-title {name}-description",
    }
    for index, (tag, text) in enumerate((("title", title), ("desc", description))):
        element = ElementTree.Element(tag, {"id": f"{name}-{'description' if tag == 'desc' else tag}"})
        element.text = text
        root.insert(index, element)
    return ElementTree.tostring(root, encoding="unicode")
