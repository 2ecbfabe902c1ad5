"""An explanation as text and as LaTeX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxconv.explanation.equations import LATEX, LETTERS, number
from jaxconv.explanation.recipes import Recipe
from jaxconv.geometry import names

if TYPE_CHECKING:
    from jaxconv.explanation.explained import Explanation

TITLES = {
    "y": "y = conv(x, w): the forward pass",
    "dx": "dx = input_grad(δ, w): δ convolved with the kernel",
    "dw": "dw = kernel_grad(x, δ): the input convolved with δ",
}
COLUMNS = ("n", "k", "stride", "dilation", "input_dilation", "lo", "hi", "span", "slack", "out", "unread")


# Text


def text(e: Explanation) -> str:
    data, kernel = names(e.layout, e.geometry.rank)
    lines = [
        *_warning(e),
        *_found(e),
        f"y {e.shapes['y']} = conv(x {e.shapes['x']}, w {e.shapes['w']}); {data} and {kernel}, indices count from 0",
        "",
        *_axes(e),
    ]
    for name, recipe in e.recipes.items():
        shown, entries = e.equations[name], e.entries(name)
        lines += ["", TITLES[name], *(f"  {step}" for step in _steps(e, recipe))]
        if len(shown) < entries:
            lines.append(f"  {_count(entries, 'entry', 'entries')} of {number(e.total(name))} products; among them")
        lines += [f"  {line}" for q in shown for line in str(q).splitlines()]
    return "\n".join(lines)


def _warning(e: Explanation) -> list[str]:
    """What is wrong, before anything else: in a sentence, and of each map the first two faults."""
    if not e.verdict:
        return []
    of = {name: [fault for fault in e.faults() if fault.startswith(name)] for name in e.recipes}
    said = [f"  {fault}" for faults in of.values() for fault in faults[:2]]
    return [e.verdict, *said, "The recipes below are the right ones, and so are the sums that are not marked.", ""]


def _found(e: Explanation) -> list[str]:
    """Of a function, which convolution it is, and how its arrays are read."""
    if e.layer is None:
        return []
    read = f"; {', '.join(e.layer.reads)}" if e.layer.reads else ""
    return [f"{e.layer.name}(x, w) is {called(e)}{read}"]


def _axes(e: Explanation) -> list[str]:
    """One row of integers per spatial axis."""
    rows = [("axis", *COLUMNS)] + [(str(i), *(str(getattr(a, c)) for c in COLUMNS)) for i, a in enumerate(e.axes)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _steps(e: Explanation, recipe: Recipe) -> list[str]:
    """What to do, in order."""
    operand, kernel = LETTERS[recipe.operand], LETTERS[recipe.kernel]
    first = f"{operand} {e.shape(recipe.operand)}"
    if max(recipe.operand_dilation) > 1:
        first += f", its elements {_per_axis(recipe.operand_dilation)} apart, zeros between"
    first += f", padded by {_per_axis(recipe.padding)}: ({recipe.padding_rule})"
    second = f"{kernel} {e.shape(recipe.kernel)}"
    if recipe.rotated:
        second += ", rotated by 180°"
    if recipe.exchanged == ("w",):
        second += f", inputs and outputs exchanged{_within(recipe)}: {recipe.kernel_shape(e.shape('w'))}"
        second += f", {_exchange(e)}"
    if max(recipe.kernel_dilation) > 1:
        second += f", its elements {_per_axis(recipe.kernel_dilation)} apart"
    third = f"moves in steps of {_per_axis(recipe.stride)} to {' × '.join(map(str, recipe.positions))} places"
    lines = [first, second, third]
    if recipe.exchanged == ("x", "g"):
        lines.append(f"batch and channels exchanged{_within(recipe)}: the batch is what is summed")
    if recipe.result_rotated:
        lines.append("the result is rotated by 180°")
    return lines


def _exchange(e: Explanation) -> str:
    """Which entry of w stands where in w′, its channels exchanged; g is the group."""
    groups = e.geometry.groups
    c, o = "c", "o"
    if groups > 1:
        c, o = f"{_times(e.channels // groups, 'g')} + c", f"{_times(e.outputs // groups, 'g')} + o"
    return f"w′[k, o, {c}] = w[k, c, {o}]" if e.layout == "NHWC" else f"w′[{c}, o, k] = w[{o}, c, k]"


def _within(recipe: Recipe) -> str:
    groups = recipe.geometry.groups
    return f" within each of {groups} groups" if groups > 1 else ""


def _per_axis(values: Sequence[Any]) -> str:
    """One value where all axes agree."""
    return str(values[0]) if len(set(values)) == 1 else ", ".join(map(str, values))


def _count(n: int, one: str, many: str) -> str:
    return f"{n:,} {one if n == 1 else many}"


def called(e: Explanation) -> str:
    """The call of `conv` that an explanation is of."""
    z = e.geometry
    each = {"stride": z.stride, "dilation": z.dilation, "input_dilation": z.input_dilation}
    one = {name: values[0] if len(set(values)) == 1 else values for name, values in each.items()}
    options: dict[str, Any] = {"padding": z.padding, **{name: value for name, value in one.items() if value != 1}}
    if z.groups > 1:
        options["groups"] = z.groups
    if z.flip_kernel:
        options["flip_kernel"] = True
    if e.layout != "NHWC":
        options["layout"] = e.layout
    return f"conv(x, w, {', '.join(f'{name}={value!r}' for name, value in options.items())})"


# LaTeX


def latex(e: Explanation) -> str:
    """An `align*` environment: the trilinear form, then per map its recipe and its equations."""
    lines = [_form(e)]
    if e.verdict:
        plain = e.verdict.replace("_", r"\_").replace("δ", r"$\delta$").replace("·", r"$\cdot$").replace("−", "$-$")
        lines = [rf"& \text{{{plain}}}", *lines]
    for name, recipe in e.recipes.items():
        lines += [_recipe(recipe), *(q.latex() for q in e.equations[name])]
    return "\n".join([r"\begin{align*}", " \\\\\n".join(lines), r"\end{align*}"])


def _form(e: Explanation) -> str:
    """The one form that all three maps are gradients of, its index equation with the numbers put in."""
    rank = e.geometry.rank
    marks = [f"_{{{i}}}" if rank > 1 else "" for i in range(rank)]
    meet = []
    for mark, a in zip(marks, e.axes, strict=True):
        tap = f"({a.k - 1} - k{mark})" if e.geometry.flip_kernel else f"k{mark}"
        read = f"{_times(a.stride, f'p{mark}')} + {_times(a.dilation, tap)}"
        read += f" - {a.lo}" if a.lo > 0 else f" + {-a.lo}" if a.lo else ""
        meet.append(f"{_times(a.input_dilation, f'q{mark}')} = {read}")
    p, k, q = (",".join(letter + mark for mark in marks) for letter in "pkq")
    inner, outer = "c", "c"
    if e.geometry.groups > 1:
        per_in, per_out = e.channels // e.geometry.groups, e.outputs // e.geometry.groups
        group = rf"\lfloor o / {per_out} \rfloor"
        outer = f"{_times(per_in, group)} + c"
    if e.layout == "NHWC":
        y, x, w = f"n,{p},o", f"n,{q},{outer}", f"{k},{inner},o"
    else:
        y, x, w = f"n,o,{p}", f"n,{outer},{q}", f"o,{inner},{k}"
    separator = r",\;"
    return (
        rf"T(x, w, \delta) &= \sum_{{n,p,k,c,o}} \delta_{{{y}}}\,x_{{{x}}}\,w_{{{w}}}"
        rf" \qquad {separator.join(meet)}"
    )


def _times(factor: int, letter: str) -> str:
    return letter if factor == 1 else f"{factor}{letter}"


def _recipe(recipe: Recipe) -> str:
    r"""pad(δ↑s) ⋆ rot180(wᵀ): ↑s puts s − 1 zeros between neighbours, ⋆ is the correlation, ↓s in steps of s."""

    def apart(array: str, by: Sequence[int]) -> str:
        return array if max(by) == 1 else rf"({array} \uparrow {_latex_axes(by)})"

    operand, kernel = LATEX[recipe.operand], LATEX[recipe.kernel]
    if recipe.operand in recipe.exchanged:
        operand = rf"{operand}^\top"
    if recipe.kernel in recipe.exchanged:
        kernel = rf"{kernel}^\top"
    operand = apart(operand, recipe.operand_dilation)
    if any(any(pair) for pair in recipe.padding):
        operand = rf"\mathrm{{pad}}_{{{_latex_axes(recipe.padding)}}} {operand}"
    if recipe.rotated:
        kernel = rf"\mathrm{{rot}}_{{180}} {kernel}"
    total = rf"{operand} \star {apart(kernel, recipe.kernel_dilation)}"
    if max(recipe.stride) > 1:
        total = rf"({total}) \downarrow {_latex_axes(recipe.stride)}"
    if recipe.result_rotated:
        total = rf"\mathrm{{rot}}_{{180}} ({total})"
    return f"{LATEX[recipe.result]} &= {total}"


def _latex_axes(values: Sequence[Any]) -> str:
    return _per_axis(values).replace("), (", r"),\,(")
