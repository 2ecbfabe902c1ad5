"""Matplotlib's SVG, written so that a diff of two pictures can be read."""

from __future__ import annotations

import hashlib
import re
from xml.dom.minidom import Comment, Element, parseString


def compact(text: str) -> str:
    """The same picture: one line for each thing that is drawn or defined, one class for each style."""
    root = parseString(re.sub(r">\s+<", "><", text)).documentElement
    assert root is not None
    styles: dict[str, str] = {}
    for element in root.getElementsByTagName("*"):
        _tidy(element, styles)
    defined: list[str] = []
    for defs in root.getElementsByTagName("defs"):
        assert defs.parentNode is not None
        defined += _lines(defs.parentNode.removeChild(defs))
    rules = [f"<style>.{name} {{{style}}}</style>" for name, style in styles.items()]
    opening, drawn = root.toxml().split(">")[0] + ">", _lines(root)
    return "\n".join(['<?xml version="1.0"?>', opening, "<defs>", *rules, *defined, "</defs>", *drawn, "</svg>", ""])


def _tidy(element: Element, styles: dict[str, str]) -> None:
    """No line breaks within, no name that nothing refers to, and a class in place of a style."""
    for name, value in element.attributes.items():
        element.setAttribute(name, value.replace(" ", "") if value.startswith("data:") else " ".join(value.split()))
    if element.tagName == "g" and element.hasAttribute("id"):
        element.removeAttribute("id")
    if style := element.getAttribute("style"):
        # Named after what it says, so that it keeps its name when others come and go, and when pictures share a page.
        name = f"s{hashlib.sha256(style.encode()).hexdigest()[:6]}"
        styles[name] = style
        element.removeAttribute("style")
        element.setAttribute("class", name)


def _lines(parent: Element) -> list[str]:
    """What is inside, each behind its comment; a group that says nothing is what is inside it."""
    lines, said = [], ""
    for child in parent.childNodes:
        if isinstance(child, Comment):
            said = child.toxml()
        elif isinstance(child, Element):
            lines += _lines(child) if child.tagName == "g" and not child.attributes else [said + child.toxml()]
            said = ""
    return lines
