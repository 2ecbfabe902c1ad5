"""An image spread over several devices: the numbers, and the gradients, are those of one that is whole."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from jax import lax
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

import jaxconv
from jaxconv import sharded
from tests.support.agreement import agree
from tests.support.cases import Case, arrays, cotangent, in_layout
from tests.support.devices import cpu_mesh
from tests.support.rule_sets import RULES

FOUR = {"rows": 4}
SQUARE = {"rows": 2, "columns": 2}


class Spread(NamedTuple):
    """A case on a mesh."""

    case: Case
    mesh: dict[str, int]
    split: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.case}-{'x'.join(map(str, self.mesh.values()))}-{self.split}".replace(" ", "")

    @property
    def spec(self) -> P:
        """How x, y and δ are split."""
        layout = self.case.options.get("layout", "NHWC")
        return P(None, *self.split, None) if layout == "NHWC" else P(None, None, *self.split)

    def over(self, f: Callable[..., Any], ins: str, outs: str, **options: Any) -> Callable[..., Any]:
        """`f` under `shard_map`; each letter says of an argument or a result whether it is split ("x") or not ("w")."""
        specs = {"x": self.spec, "w": P()}
        into, out = (tuple(specs[letter] for letter in letters) for letters in (ins, outs))
        mesh = cpu_mesh(AxisType.Auto, **self.mesh)
        return jax.shard_map(f, mesh=mesh, in_specs=into, out_specs=out if len(out) > 1 else out[0], **options)

    def conv(self, *operands: Any, **options: Any) -> jax.Array:
        """On shards."""
        return sharded.conv(*operands, split=self.split, **self.case.options, **options)

    def whole(self, *operands: Any, rules: str = "autodiff") -> jax.Array:
        return jaxconv.conv(*operands, rules=rules, **self.case.options)

    def arguments(self) -> tuple[np.ndarray, ...]:
        """Random x, w, b and δ of the whole."""
        x, w = arrays(self.case)
        y = jax.eval_shape(self.whole, x, w).shape
        channel = 1 if "layout" in self.case.options else -1
        return x, w, cotangent((y[channel],), seed=2), cotangent(y)


def training_step(conv: Callable[..., Any]) -> Callable[..., Any]:
    """(x, w, b, δ) -> y and the gradients of Σ δ·y² in x, w and b."""

    def loss(x: Any, w: Any, b: Any, delta: Any) -> Any:
        y = conv(x, w, b)
        return jnp.sum(delta * y**2), y

    def step(*args: Any) -> Any:
        gradients, y = jax.grad(loss, (0, 1, 2), has_aux=True)(*args)
        return y, *gradients

    return step


def assert_whole(ours: Callable[..., Any], theirs: Callable[..., Any], *args: Any) -> None:
    """Ours, on several devices, has the results of theirs, on one."""
    got = jax.tree.map(np.asarray, jax.jit(ours)(*args))
    agree(lambda *_: got, theirs, *args)


ROWS = Spread(Case((2, 8, 3, 2), (3, 2, 2, 3), {}), FOUR, ("rows", None))
CORNERS = Spread(Case((1, 8, 12, 2), (3, 5, 2, 2), {"stride": (1, 2)}), SQUARE, ("rows", "columns"))
VOLUME = Spread(
    Case((1, 4, 8, 4, 2), (3, 3, 2, 1, 4), {"groups": 2, "stride": (1, 2, 1)}), SQUARE, ("rows", "columns", None)
)
CONVS = [
    ROWS,
    Spread(Case((1, 8, 2), (3, 2, 2), {}), SQUARE, (("columns", "rows"),)),  # the mesh has them the other way round
    CORNERS,
    VOLUME,
    Spread(Case((1, 16, 4), (4, 2, 6), {"stride": 2, "groups": 2, "padding": ((3, 0),)}), FOUR, ("rows",)),
    # The halo is wider than a shard, or there is none.
    Spread(Case((2, 8, 2), (4, 2, 3), {"dilation": 3}), FOUR, ("rows",)),
    Spread(Case((1, 8, 4, 2), (2, 2, 2, 3), {"stride": 2, "padding": "VALID"}), FOUR, ("rows", None)),
]
MORE_CONVS = [
    Spread(Case((1, 8, 2), (6, 2, 2), {"padding": "CAUSAL"}), FOUR, ("rows",)),
    Spread(Case((1, 3, 12, 3), (2, 5, 3, 2), {"padding": ((0, 1), (3, 1)), "dilation": (1, 1)}), FOUR, (None, "rows")),
    Spread(Case((1, 8, 2), (3, 2, 2), {"padding": "SAME_LOWER", "stride": 2}), FOUR, ("rows",)),
    Spread(Case((1, 8, 2), (3, 2, 2), {"padding": ((-1, 3),), "flip_kernel": True}), FOUR, ("rows",)),
    Spread(Case((1, 8, 2), (3, 2, 2), {"padding": ((6, -4),)}), FOUR, ("rows",)),
    Spread(Case((1, 16, 2), (1, 2, 2), {"stride": 4}), FOUR, ("rows",)),
    Spread(Case((1, 16, 2), (2, 2, 2), {"stride": 4, "padding": ((-1, 0),)}), FOUR, ("rows",)),
    Spread(Case((1, 4, 2), (11, 2, 2), {}), FOUR, ("rows",)),
    Spread(in_layout(Case((1, 8, 4, 4), (3, 3, 1, 4), {"groups": 4}), "NCHW"), SQUARE, ("rows", "columns")),
    Spread(Case((1, 8, 4, 2), (3, 3, 2, 2), {}), SQUARE, (("rows", "columns"), None)),
    Spread(Case((1, 5, 4, 2), (3, 3, 2, 2), {"padding": "VALID"}), {"rows": 1}, ("rows", None)),
    Spread(Case((1, 4, 4, 8, 2), (3, 2, 5, 2, 2), {"dilation": (1, 2, 1)}), SQUARE, (None, "columns", "rows")),
]


@pytest.mark.parametrize(
    "spread", [*CONVS, *(pytest.param(s, marks=pytest.mark.thorough) for s in MORE_CONVS)], ids=str
)
def test_a_convolution_and_its_gradients_are_those_of_the_whole(spread: Spread) -> None:
    ours = spread.over(training_step(spread.conv), "xwwx", "xxww")
    assert_whole(ours, training_step(spread.whole), *spread.arguments())


@st.composite
def spreads(draw: st.DrawFn) -> Spread:
    """Any aligned convolution of one or two axes on any mesh of four."""

    def integer(least: int, most: int) -> int:
        return draw(st.integers(least, most))

    mesh, split = draw(st.sampled_from([
        (FOUR, ("rows",)), (SQUARE, (("columns", "rows"),)), (FOUR, (None, "rows")), (SQUARE, ("rows", "columns")),
    ]))  # fmt: skip
    spatial, taps, stride, dilation, padding = [], [], [], [], []
    for names in split:
        parts = math.prod(mesh[name] for name in (names if isinstance(names, tuple) else (names,)) if name)
        s, k, d, lo = integer(1, 3), integer(1, 4), integer(1, 2), integer(-2, 6)
        spatial.append(parts * s * integer(1, 3))
        taps.append(k)
        stride.append(s)
        dilation.append(d)
        padding.append((lo, integer(d * (k - 1) + 1 - s, d * (k - 1)) - lo))
    groups = integer(1, 2)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "groups": groups}
    case = Case((1, *spatial, 2), (*taps, 2 // groups, 2), options)
    return Spread(in_layout(case, draw(st.sampled_from(["NHWC", "NCHW"]))), mesh, split)


@pytest.mark.thorough
@hypothesis.given(spreads())
def test_whatever_is_aligned_is_the_whole(spread: Spread) -> None:
    ours = spread.over(training_step(spread.conv), "xwwx", "xxww")
    got, want = (jax.jit(f)(*spread.arguments()) for f in (ours, training_step(spread.whole)))
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rules", [r for r in RULES if r != "fast"])
def test_every_rule_set_is_spread(rules: str) -> None:
    ours = ROWS.over(training_step(partial(ROWS.conv, rules=rules)), "xwwx", "xxww")
    assert_whole(ours, training_step(ROWS.whole), *ROWS.arguments())


def test_without_bookkeeping_the_sum_over_the_shards_is_ones_own() -> None:
    def local(*args: Any) -> Any:
        y, dx, dw, db = training_step(ROWS.conv)(*args)
        return y, dx, *lax.psum((dw, db), "rows")

    ours = ROWS.over(local, "xwwx", "xxww", check_vma=False)
    assert_whole(ours, training_step(ROWS.whole), *ROWS.arguments())


def test_the_gradient_of_the_whole_program_is_the_same() -> None:
    assert_whole(training_step(ROWS.over(ROWS.conv, "xww", "x")), training_step(ROWS.whole), *ROWS.arguments())


def test_it_needs_no_jit() -> None:
    x, w, b, _ = ROWS.arguments()
    got = np.asarray(ROWS.over(ROWS.conv, "xww", "x")(x, w, b))
    agree(lambda *_: got, ROWS.whole, x, w, b)


def test_a_batch_and_an_image_can_be_split_at_once() -> None:
    cut = P("data", "rows")
    step = training_step(partial(sharded.conv, split=("rows", None)))
    mesh = cpu_mesh(AxisType.Auto, data=2, rows=2)
    ours = jax.shard_map(step, mesh=mesh, in_specs=(cut, P(), P(), cut), out_specs=(cut, cut, P(), P()))
    assert_whole(ours, training_step(ROWS.whole), *ROWS.arguments())


def test_an_image_that_is_the_same_on_all_devices_gets_the_sum_of_their_gradients() -> None:
    """Four copies of x side by side are an image too."""
    x, w, _, delta = ROWS.arguments()
    x = x[:, :2]

    def pulled(conv: Callable[..., Any], x: Any, w: Any, delta: Any) -> Any:
        y, pullback = jax.vjp(conv, x, w)
        return y, *pullback(delta)

    ours = ROWS.over(partial(pulled, ROWS.conv), "wwx", "xww")
    assert_whole(ours, partial(pulled, lambda x, w: ROWS.whole(jnp.tile(x, (1, 4, 1, 1)), w)), x, w, delta)


# Every mode and order


LINE = Spread(Case((1, 8, 2), (4, 1, 2), {"dilation": 2, "groups": 2}), FOUR, ("rows",))


def along_itself(conv: Callable[..., Any]) -> Callable[..., Any]:
    """The Hessian times a vector: forward over reverse."""

    def product(x: Any, w: Any, b: Any, delta: Any) -> Any:
        return jax.jvp(lambda *operands: training_step(conv)(*operands, delta)[1:], (x, w, b), (x, w, b))[1]

    return product


def reverse_twice(conv: Callable[..., Any]) -> Callable[..., Any]:
    def twice(x: Any, w: Any, b: Any, delta: Any) -> Any:
        _, pullback = jax.vjp(lambda *operands: training_step(conv)(*operands, delta)[1:], x, w, b)
        return pullback((x, w, b))

    return twice


def one_by_one(conv: Callable[..., Any]) -> Callable[..., Any]:
    """Three examples and three kernels: `vmap` of the gradient."""

    def mapped(x: Any, w: Any, b: Any, delta: Any) -> Any:
        many = (jnp.stack([a, 2 * a, 3 * a]) for a in (x, w))
        _, *gradients = jax.vmap(training_step(conv), (0, 0, None, None))(*many, b, delta)
        return tuple(jnp.tensordot(np.array([1.0, 4.0, 9.0]), a, 1) for a in gradients)

    return mapped


def recomputed(conv: Callable[..., Any]) -> Callable[..., Any]:
    """Two layers in a loop, whose forward passes run again when they are differentiated."""

    def deep(x: Any, w: Any, b: Any) -> Any:
        return lax.scan(jax.checkpoint(lambda x, _: (conv(x, w, b), None)), x, length=2)[0]

    return lambda *args: training_step(deep)(*args)[1:]


@pytest.mark.parametrize("mode", [along_itself, reverse_twice, one_by_one, recomputed])
def test_modes_and_orders(mode: Callable[..., Any]) -> None:
    assert_whole(LINE.over(mode(LINE.conv), "xwwx", "xww"), mode(LINE.whole), *LINE.arguments())


def test_automatic_takes_the_rules_out_of_it() -> None:
    spread = LINE.over(LINE.conv, "xww", "x")
    args = LINE.arguments()
    assert "jaxconv_halo" in str(jax.make_jaxpr(spread)(*args[:3]))
    plain = jaxconv.automatic(spread)
    assert "jaxconv_" not in str(jax.make_jaxpr(plain)(*args[:3]))
    assert_whole(training_step(plain), training_step(LINE.whole), *args)


def test_check_judges_it() -> None:
    """A max pool has ties; whether there are any is read off what the primitives compute, inside of `shard_map`."""
    options: dict[str, Any] = {"window": 3, "stride": 1, "padding": "SAME", "split": ROWS.split}

    def pools(x: Any) -> jax.Array:
        return sharded.max_pool(sharded.avg_pool(x, **options), **options)

    report = jaxconv.check(ROWS.over(pools, "x", "x"), ROWS.arguments()[0].astype(np.float32))
    assert report.verdict == "right" and {e.name: e.verdict for e in report.evidence}["ties"] == "ok"


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_what_travels_has_the_dtype_of_the_image(dtype: Any) -> None:
    x, w, b, delta = (jnp.asarray(a, dtype) for a in ROWS.arguments())
    step = jax.jit(ROWS.over(training_step(ROWS.conv), "xwwx", "xxww"))
    got, want = step(x, w, b, delta), jax.jit(training_step(ROWS.whole))(x, w, b, delta)
    assert [a.dtype for a in got] == [dtype] * 4
    for a, exact in zip(got, want, strict=True):
        atol = 8 * float(jnp.finfo(dtype).eps) * float(jnp.abs(exact).max())
        np.testing.assert_allclose(np.float64(a), np.float64(exact), rtol=0, atol=atol)
    sent = re.findall(r"collective_permute.*\(tensor<[\dx]*x(\w+)>\)", step.lower(x, w, b, delta).as_text())
    assert sent == [{"float32": "f32", "bfloat16": "bf16"}[jnp.dtype(dtype).name]] * 4  # to and fro, both ways


# The halo alone


@pytest.mark.parametrize("padding", [(1, 2), (5, 0), (-1, 3), (0, -2), (9, 9)], ids=str)
def test_a_halo_is_a_window_on_the_padded_image(padding: tuple[int, int]) -> None:
    """Each shard sees its own part of it, and backwards every element gets the sum of what all its copies got."""
    lo, hi = padding
    x = np.arange(1.0, 9.0).reshape(1, 8, 1)
    padded = np.pad(x, ((0, 0), (9, 9), (0, 0)))
    views = [slice(9 + 2 * i - lo, 9 + 2 * i + 2 + hi) for i in range(4)]
    delta = cotangent((1, 4 * (2 + lo + hi), 1))
    home = np.zeros_like(padded)
    for view, part in zip(views, np.split(delta, 4, axis=1), strict=True):
        home[:, view] += part

    def pulled(x: Any, delta: Any) -> Any:
        y, pullback = jax.vjp(lambda x: sharded.halo(x, (padding,), split=("rows",)), x)
        return y, *pullback(delta)

    y, dx = jax.jit(LINE.over(pulled, "xx", "xx"))(x, delta)
    np.testing.assert_array_equal(y, np.concatenate([padded[:, view] for view in views], 1))
    np.testing.assert_allclose(dx, home[:, 9:-9], rtol=1e-15)
