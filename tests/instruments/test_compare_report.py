"""`compare`'s table fits 80 columns and its maps share one scale, however many arguments and contestants there are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from jaxconv.comparison import OPERATIONS, Agreement, Comparison, Contestant
from jaxconv.comparison.drawing import draw
from jaxconv.comparison.report import LABEL, SHOWN, WIDTH, shortened


def contestant(name: str, bounds: dict[str, float], shape: tuple[int, ...] = (3, 4)) -> Contestant:
    def agreement(worst: float) -> Agreement:
        errors = np.zeros(shape)
        errors[(-1,) * len(shape)] = worst
        return Agreement(10 * worst, worst, errors)

    return Contestant(
        name, 1.5, 0.0123, (0.0111, 0.0144), 1.2e9, 3.4e8, 5.6e6, math.nan,
        dict.fromkeys(OPERATIONS, 12), {path: agreement(b) for path, b in bounds.items()},
    )  # fmt: skip


def race(*contestants: Contestant, function: str = "net") -> Comparison:
    arguments = tuple(f"{path} float32[3, 4]" for path in contestants[0].agreement)
    return Comparison(function, arguments, "cpu, jax 0.0", contestants)


def deep(count: int) -> dict[str, float]:
    """Paths as Flax nests them, and errors that rise with the number of the layer."""
    return {f"params['params']['block_{i}']['Convolution_{i}']['kernel']": (i + 1) / 1000 for i in range(count)}


def rows(report: Comparison) -> list[str]:
    return str(report).splitlines()


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("leaves", [1, SHOWN, SHOWN + 1, 300])
@pytest.mark.parametrize("worst", [0.5, 2.12e6, math.inf])
def test_no_line_is_longer_than_80_columns(count: int, leaves: int, worst: float) -> None:
    names = ["fast", "/home/somebody/projects/layers.py:convolution"] + [f"contestant {i}" for i in range(5)]
    bounds = deep(leaves) | dict.fromkeys([list(deep(leaves))[-1]], worst)
    report = race(*(contestant(name, bounds) for name in names[:count]), function=", ".join(names[:count]))
    lines = rows(report)
    assert max(map(len, lines)) <= WIDTH == 80
    firsts = [lines[i + 1] for i, line in enumerate(lines) if line.startswith("error in bounds")]
    assert firsts and all(f"_{leaves - 1}']['kernel']" in line for line in firsts)
    assert sum("kernel" in line for line in lines) == len(firsts) * min(leaves, SHOWN)
    assert sum(line.startswith(f"{leaves - SHOWN} more, at most") for line in lines) == len(firsts) * (leaves > SHOWN)


def test_a_row_for_each_argument_the_worst_first_and_one_for_the_rest() -> None:
    paths = list(deep(22))
    ours, theirs = deep(22), dict(zip(paths, reversed(deep(22).values()), strict=True))
    ours[paths[3]] = 7.5
    lines = rows(race(contestant("ours", ours), contestant("theirs", theirs)))
    start = next(i for i, line in enumerate(lines) if line.startswith("error in bounds"))
    head, first, *others, rest = (line.split() for line in lines[start:])
    assert head == ["error", "in", "bounds", "ours", "theirs"]
    assert first == [paths[3], "WRONG", "7.5", "0.019"]
    worst = {path: max(ours[path], theirs[path]) for path in paths}
    ranked = sorted(paths, key=lambda path: -worst[path])
    assert [worst[cells[0]] for cells in others] == [worst[path] for path in ranked[1:SHOWN]]
    assert rest[:4] == ["12", "more,", "at", "most"]
    assert max(map(float, rest[4:])) == worst[ranked[SHOWN]] < worst[ranked[SHOWN - 1]]


def test_the_rest_may_be_wrong_too() -> None:
    report = race(contestant("ours", dict.fromkeys(deep(14), 3.0)), contestant("theirs", dict.fromkeys(deep(14), 0.1)))
    assert rows(report)[-1].split() == ["4", "more,", "at", "most", "WRONG", "3", "0.1"]
    assert rows(report)[0] == "compare(net): 1 of 2 gradients WRONG"


def test_contestants_may_call_their_arguments_differently() -> None:
    report = race(contestant("ours", {"x": 0.1, "w": 0.3}), contestant("theirs", {"a": 0.2, "b": 2.0}))
    assert [line.split() for line in rows(report)[-2:]] == [
        ["w", "float32[3,", "4]", "0.3", "WRONG", "2"],
        ["x", "float32[3,", "4]", "0.1", "0.2"],
    ]


@pytest.mark.parametrize(("text", "short"), [("abcdefghij", "abcdefghij"), ("abcdefghijk", "abc…fghijk")])
def test_shortened_keeps_both_ends(text: str, short: str) -> None:
    assert shortened(text, 10) == short and len(short) == 10 < LABEL


# The picture


def drawn(report: Comparison, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Figure:
    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw(report, tmp_path / "race.png")
    (figure,) = figures
    return figure


@pytest.mark.parametrize(
    ("worst", "shape"), [(0.5, (3, 4)), (1.0, ()), (40.0, (5,)), (40.0, (2, 3, 4)), (math.inf, (3, 4))], ids=str
)
def test_the_maps_share_their_array_and_their_scale(
    worst: float, shape: tuple[int, ...], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = {"x": 0.9, "w": 0.2}, {"x": 0.1, "w": worst}
    report = race(contestant("ours", ours, shape), contestant("theirs", theirs, shape), function="ours, theirs")
    figure = drawn(report, monkeypatch, tmp_path)
    shown = "w" if worst > 0.9 else "x"
    maps = [axes for axes in figure.axes if axes.images]
    assert [axes.get_title().split("\n")[0] for axes in maps] == ["ours", "theirs"]
    assert f"error in {shown} float32[3, 4]" in [f.get_suptitle() for f in figure.subfigs]
    images = [axes.images[0] for axes in maps]
    assert images[0].norm is images[1].norm and images[0].cmap == images[1].cmap
    peaks = [float(image.get_array().max()) for image in images]
    assert peaks[0] == ours[shown] and (peaks[1] == theirs[shown] or peaks[1] > images[1].norm.vmax)
    # Grey up to the limit, red beyond it, black where there is no number.
    within, beyond = (images[0].cmap(images[0].norm(e)) for e in (0.99, 1.5))
    assert within[0] == within[1] == within[2]
    wrong = "WRONG" in maps[1].get_title()
    assert wrong == (worst > 1) and (not wrong or beyond[0] > 1.5 * beyond[1])
    assert (images[1].cmap(images[1].norm(peaks[1])) == (0, 0, 0, 1)) is math.isinf(worst)
    (bar,) = (axes for axes in figure.axes if axes.get_ylabel().startswith("error (bounds)"))
    assert "limit 1" in [label.get_text() for label in bar.get_yticklabels()]
    assert any(list(line.get_ydata()) == [1, 1] for line in bar.lines)
