"""What `explain(...).figure` draws: the library's numbers, the window where it lies, every file format."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib
import pytest

import jaxconv
from tests.instruments.test_explain import SMALL, explained
from tests.support.cases import CASES, FEW, Case


def words(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


@pytest.mark.parametrize("case", [SMALL, FEW[0], FEW[5], CASES[-2], Case((3, 40, 30, 5), (5, 5, 5, 2), {"stride": 2})])
def test_any_geometry_is_drawn(case: Case) -> None:
    figure = explained(case, rules="rotated").figure()
    assert len(words(figure)) > 3


def test_a_picture_shows_the_rules_numbers() -> None:
    e = jaxconv.explain((1, 5, 5, 1), (2, 2, 1, 1), stride=2, padding="VALID")
    shown = words(e.figure(maps=["dx"]))
    dx = [f"{value:g}".replace("-", "−") for value in e.example["dx"].ravel()]
    kernel = [f"{value:g}".replace("-", "−") for value in e.example["w"][::-1, ::-1].ravel()]
    assert shown[-27:-2] == dx or shown[-26:-1] == dx
    start = next(i for i in range(len(shown)) if shown[i : i + 4] == kernel)
    assert shown[start - 37 : start - 1].count("0") >= 36 - 4
    assert "dx: padded dilated δ ⋆ w rotated by 180°" in shown
    assert shown[-1].startswith("dx[0,2,2,0] = ") and shown[-1].endswith(
        f"= {e.example['dx'][0, 2, 2, 0]:g}".replace("-", "−")
    )


def test_the_window_lies_on_what_is_multiplied_and_what_no_window_reads_is_hatched() -> None:
    e = jaxconv.explain((1, 5, 5, 1), (2, 2, 1, 1), stride=2, padding="VALID")
    axes = e.figure(maps="y", frames=4).axes[0]
    x, w, y = (e.example[name][..., 0, 0] if name == "w" else e.example[name][0, ..., 0] for name in ("x", "w", "y"))
    _, *bold = [t.get_text() for t in axes.texts if t.get_weight() == "bold"][:10]
    assert bold == [f"{v:g}".replace("-", "−") for v in (*x[:2, :2].ravel(), *w.ravel(), y[0, 0])]
    assert sum(patch.get_hatch() is not None for patch in axes.patches) == 4 * (5 + 5 - 1)


def test_files_of_every_format(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    e = jaxconv.explain((1, 4, 1), (2, 1, 1), padding="VALID")
    for suffix in ("svg", "png", "pdf", "gif"):
        e.figure(tmp_path / f"recipe.{suffix}")
    assert (tmp_path / "recipe.svg").read_text().lstrip().startswith("<?xml")
    assert (tmp_path / "recipe.png").read_bytes()[:4] == b"\x89PNG"
    with image.open(tmp_path / "recipe.gif") as animation:
        assert animation.n_frames == 4  # dx has the most positions
    e.figure(tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_bytes() == (tmp_path / "recipe.svg").read_bytes()


def resolved(text: str) -> tuple[list[Any], set[Any]]:
    """What an SVG draws, in order, and what it defines: each shape, where it is, in which style."""
    root = ElementTree.fromstring(text)
    classes = dict(re.findall(r"\.(\w+) \{(.*?)\}", text))
    drawn: list[Any] = []
    defined: set[Any] = set()

    def walk(element: Any, place: str, inside: bool) -> None:
        inside, kind = inside or element.tag.endswith("defs"), element.tag.rpartition("}")[2]
        said = [element.get(name, "") for name in ("transform", "clip-path", "d", "{http://www.w3.org/1999/xlink}href")]
        place = "".join([place, element.get("style") or classes.get(element.get("class"), ""), *said[:2]])
        if kind in ("path", "use", "image", "rect"):
            shape = ("".join(word.split()) for word in (kind, place, *said[2:]))
            defined.add(tuple(shape)) if inside else drawn.append(tuple(shape))
        for child in element:
            walk(child, "" if element.tag.endswith("defs") else place, inside)

    walk(root, "", False)
    return drawn, defined


def test_an_svg_is_matplotlibs_with_a_line_for_each_thing_that_is_drawn(tmp_path: Path) -> None:
    e = jaxconv.explain((1, 5, 5, 1), (2, 2, 1, 1), stride=2, padding="VALID")
    figure, before = e.figure(tmp_path / "small.svg"), io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "jaxconv"}):
        figure.savefig(before, format="svg")
    after = (tmp_path / "small.svg").read_text()
    assert resolved(after) == resolved(before.getvalue())
    axes, lines = figure.axes[0], after.splitlines()
    assert sum(line.startswith("<!-- ") for line in lines) == len(axes.texts)
    assert sum(line.startswith("<path d=") for line in lines) == 1 + len(axes.patches)
    assert "style=" not in after


def test_a_strip_shows_as_many_positions_side_by_side() -> None:
    e = jaxconv.explain((1, 4, 1), (2, 1, 1), padding="VALID")
    titles = [word for word in words(e.figure(frames=3)) if word.startswith("dx:")]
    sums = [word for word in words(e.figure(frames=3)) if word.startswith("dx[")]
    assert len(titles) == 3 and [s[:9] for s in sums] == ["dx[0,0,0]", "dx[0,2,0]", "dx[0,3,0]"]
    marked = [t.get_text() for t in e.figure(frames=3, maps="dx").axes[0].texts if t.get_color() == "white"]
    assert marked == [f"{e.example['dx'][0, q, 0]:g}".replace("-", "−") for q in (0, 2, 3)]
