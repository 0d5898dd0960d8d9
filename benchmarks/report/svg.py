"""matplotlib's SVG as a part of a page: the page's colours and font, ids of its own, words for those who cannot see it."""

from __future__ import annotations

import re
from xml.etree import ElementTree as ET

# What plots are painted with, and what the page has in its place: one picture for light and for dark.
COLORS = 8
INK, MUTED, GRID, SURFACE = "#a2000a", "#a2000b", "#a2000c", "#a2000d"
VARIABLES = {
    INK: "currentColor",
    MUTED: "var(--muted)",
    GRID: "var(--grid)",
    SURFACE: "var(--surface)",
    **{f"#a1000{number}": f"var(--c{number})" for number in range(COLORS)},
}
PAINT = re.compile("|".join(VARIABLES))
FONT = re.compile(r"font-family:[^;]*;?|'DejaVu Sans'[^;]*")
REFERENCE = re.compile(r"url\(#")
PRECISE = re.compile(r"-?\d+\.\d{3,}")  # a hundredth of a unit is less than any screen shows


def color(number: int) -> str:
    """What is painted in the page's colour of that number."""
    return f"#a1000{number}"


def embed(drawn: str, name: str, title: str, about: str) -> str:
    """An `<svg>` element out of a whole SVG file; every id begins with `name`."""
    root = ET.fromstring(drawn)  # noqa: S314  (matplotlib wrote it a moment ago)
    parents = {child: parent for parent in root.iter() for child in parent}
    for element in list(root.iter()):
        element.tag = element.tag.rpartition("}")[2]
        if element.tag in ("metadata", "style"):  # a style would reach all of the page
            parents[element].remove(element)
            continue
        _attributes(element, name)
    for attribute in ("width", "height", "version"):
        root.attrib.pop(attribute, None)
    heading = ET.Element("title", {"id": f"{name}-title"})
    heading.text = title
    words = ET.Element("desc", {"id": f"{name}-desc"})
    words.text = about
    root[:0] = [heading, words]
    _forget(root)
    root.attrib.update({"role": "img", "aria-labelledby": f"{name}-title {name}-desc"})
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _forget(root: ET.Element) -> None:
    """Drop ids that nothing refers to, and the spaces between elements."""
    used = set(re.findall(r"#([^)\s]+)", " ".join(value for element in root.iter() for value in element.attrib.values())))
    used |= {element.attrib["id"] for element in root if "id" in element.attrib}
    for element in root.iter():
        if element.attrib.get("id") not in used:
            element.attrib.pop("id", None)
        if element.tag not in ("text", "title", "desc", "tspan"):
            element.text = element.tail = None
        else:
            element.tail = None


def _attributes(element: ET.Element, name: str) -> None:
    for key, value in list(element.attrib.items()):
        if key.startswith("{"):  # xlink:href, which HTML and SVG 2 spell without
            del element.attrib[key]
            element.attrib["href"] = f"#{name}-{value.removeprefix('#')}"
        elif key == "id":
            element.attrib["id"] = f"{name}-{value}"
        else:
            if key in ("d", "x", "y", "transform"):
                value = " ".join(PRECISE.sub(lambda found: f"{float(found[0]):.2f}", value).split())
            painted = PAINT.sub(lambda found: VARIABLES[found[0]], value)
            element.attrib[key] = REFERENCE.sub(f"url(#{name}-", FONT.sub("", painted))
