"""The checker rejects every wrong rule of a long list, and accepts the right ones.

Each wrong rule is the right one with one line of the derivation broken, as hand-written gradients have been broken
before. All have the right shapes and dtypes; only the numbers are wrong. What rejects them is what the other tests
use: the NumPy loops, random cotangents and the derived bound.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv.geometry import Geometry, conv_geometry
from jaxconv.rules import NAMED, ConvRules
from tests.support import oracle
from tests.support.cases import Case, arrays, cotangent
from tests.support.tolerance import error_in_bounds

Rule = Callable[..., jax.Array]

# As many input as output channels, so that exchanging them leaves the shapes alone; between them they use every option.
BENCH = [
    Case((2, 5, 6, 2), (3, 3, 2, 2), {}),
    Case((2, 6, 8, 2), (3, 3, 2, 2), {"stride": (2, 3), "padding": 1}),
    Case((3, 6, 7, 4), (3, 3, 2, 4), {"groups": 2, "dilation": (2, 1), "stride": (1, 2), "padding": ((2, 0), (-1, 3))}),
    Case((2, 4, 5, 2), (3, 3, 2, 2), {"input_dilation": (2, 3), "padding": ((1, 2), (0, 1))}),
    Case((2, 5, 5, 2), (3, 3, 2, 2), {"flip_kernel": True, "stride": 2, "padding": "VALID"}),
]


# The right rules, every part of them replaceable


def fitted(a: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Cropped or zero-padded at the end: a wrong rule still has to return the right shape."""
    return lax.pad(a, jnp.zeros((), a.dtype), [(0, want - have, 0) for have, want in zip(a.shape, shape, strict=True)])


def rotated(w: jax.Array, axes: tuple[int, ...] = (0, 1)) -> jax.Array:
    return lax.rev(w, axes)


def exchanged(w: jax.Array, groups: int, order: int = 1) -> jax.Array:
    """(c, g·o) to (o, g·c); `order` = −1 takes the groups from the last to the first."""
    blocks = w.reshape(*w.shape[:3], groups, w.shape[3] // groups)[..., ::order, :].swapaxes(2, 4)
    return blocks.reshape(*blocks.shape[:3], groups * w.shape[2])


def input_grad(
    g: jax.Array,
    w: jax.Array,
    geometry: Geometry,
    *,
    rotate: Rule = rotated,
    exchange: Rule = exchanged,
    padding: Any = lambda lo, hi, unread: (lo, hi),
    dilate: bool = True,
    **replaced: Any,
) -> jax.Array:
    kernel = exchange(w if geometry.flip_kernel else rotate(w), geometry.groups)
    pads = zip(geometry.input_grad_padding, geometry.unread, strict=True)
    options: dict[str, Any] = {
        "window_strides": geometry.input_dilation,
        "padding": [padding(*pair, unread) for pair, unread in pads],
        "lhs_dilation": geometry.stride if dilate else (1, 1),
        "rhs_dilation": geometry.dilation,
        "feature_group_count": geometry.groups,
        "dimension_numbers": ("NHWC", "HWIO", "NHWC"),
    }
    dx = lax.conv_general_dilated(g, kernel, **options | replaced)
    return fitted(dx, geometry.x_shape(g.shape[0], w.shape[2] * geometry.groups))


def kernel_grad(
    x: jax.Array,
    g: jax.Array,
    geometry: Geometry,
    *,
    padding: Any = lambda lo, hi, unread: (lo, hi),
    **replaced: Any,
) -> jax.Array:
    pads = zip(geometry.kernel_grad_padding, geometry.unread, strict=True)
    options: dict[str, Any] = {
        "window_strides": geometry.dilation,
        "padding": [padding(*pair, unread) for pair, unread in pads],
        "lhs_dilation": geometry.input_dilation,
        "rhs_dilation": geometry.stride,
        "batch_group_count": geometry.groups,
        "dimension_numbers": ("CHWN", "IHWO", "HWNC"),
    }
    dw = lax.conv_general_dilated(x, g, **options | replaced)
    dw = fitted(dw, geometry.w_shape(x.shape[3] // geometry.groups, g.shape[3]))
    return rotated(dw) if geometry.flip_kernel else dw


def bias_grad(g: jax.Array) -> jax.Array:
    return g.sum((0, 1, 2))


def wrapped(x: jax.Array, g: jax.Array, geometry: Geometry) -> jax.Array:
    """The kernel gradient of a circular border, where the border was of zeros."""
    pads = geometry.kernel_grad_padding
    if min(min(pads)) < 0 or max(geometry.input_dilation) > 1:
        return kernel_grad(x, g, geometry)
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)), mode="wrap")
    return kernel_grad(x, g, geometry, padding=lambda *_: (0, 0))


# The list. A lambda takes the operands and the geometry, z.

WRONG_INPUT_GRADS: dict[str, Rule] = {
    "the kernel is not rotated": lambda g, w, z: input_grad(g, w, z, rotate=lambda w: w),
    "one axis is rotated, not both": lambda g, w, z: input_grad(g, w, z, rotate=lambda w: rotated(w, (0,))),
    "the taps are transposed": lambda g, w, z: input_grad(g, w.swapaxes(0, 1), z),
    "the channels are not exchanged": lambda g, w, z: input_grad(g, w, z, exchange=lambda w, _: w),
    "the groups are in the wrong order": lambda g, w, z: input_grad(g, w, z, exchange=lambda w, n: exchanged(w, n, -1)),
    "δ is not dilated by the stride": lambda g, w, z: input_grad(g, w, z, dilate=False),
    "the stride's remainder is ignored": lambda g, w, z: input_grad(
        g, w, z, padding=lambda lo, hi, unread: (lo, hi - unread)
    ),
    "the stride's remainder is at the wrong end": lambda g, w, z: input_grad(
        g, w, z, padding=lambda lo, hi, unread: (lo + unread, hi - unread)
    ),
    "padding low and high are exchanged": lambda g, w, z: input_grad(g, w, z, padding=lambda lo, hi, _: (hi, lo)),
    "the padding is off by one": lambda g, w, z: input_grad(g, w, z, padding=lambda lo, hi, _: (lo + 1, hi - 1)),
    "the dilation is ignored": lambda g, w, z: input_grad(g, w, z, rhs_dilation=(1, 1)),
    "the input dilation is ignored": lambda g, w, z: input_grad(g, w, z, window_strides=(1, 1)),
    "the last row of δ is dropped": lambda g, w, z: input_grad(g.at[:, -1].set(0), w, z),
    "the last column of dx is forgotten": lambda g, w, z: input_grad(g, w, z).at[:, :, -1].set(0),
    "the batch is rolled by one": lambda g, w, z: jnp.roll(input_grad(g, w, z), 1, 0),
    "every example is the first": lambda g, w, z: input_grad(jnp.broadcast_to(g[:1], g.shape), w, z),
    "the sign is wrong": lambda g, w, z: -input_grad(g, w, z),
    "all is scaled by 1.001": lambda g, w, z: 1.001 * input_grad(g, w, z),
    "one tap is off by 1 %": lambda g, w, z: input_grad(g, w.at[1, 0].multiply(1.01), z),
}

WRONG_KERNEL_GRADS: dict[str, Rule] = {
    "stride and dilation are not exchanged": lambda x, g, z: kernel_grad(
        x, g, z, window_strides=z.stride, rhs_dilation=z.dilation
    ),
    "the stride's remainder is cropped at the wrong end": lambda x, g, z: kernel_grad(
        x, g, z, padding=lambda lo, hi, unread: (lo - unread, hi + unread)
    ),
    "padding low and high are exchanged": lambda x, g, z: kernel_grad(x, g, z, padding=lambda lo, hi, _: (hi, lo)),
    "the padding is off by one": lambda x, g, z: kernel_grad(x, g, z, padding=lambda lo, hi, _: (lo + 1, hi - 1)),
    "the border is circular": wrapped,
    "the input dilation is ignored": lambda x, g, z: kernel_grad(x, g, z, lhs_dilation=(1, 1)),
    "the result is rotated": lambda x, g, z: rotated(kernel_grad(x, g, z)),
    "the taps are transposed": lambda x, g, z: kernel_grad(x, g, z).swapaxes(0, 1),
    "the channels are exchanged": lambda x, g, z: exchanged(kernel_grad(x, g, z), z.groups),
    "the groups are in the wrong order": lambda x, g, z: jnp.roll(kernel_grad(x, g, z), g.shape[3] // z.groups, 3),
    "the last row of δ is dropped": lambda x, g, z: kernel_grad(x, g.at[:, -1].set(0), z),
    "the batch of δ is rolled by one": lambda x, g, z: kernel_grad(x, jnp.roll(g, 1, 0), z),
    "only the first example counts": lambda x, g, z: kernel_grad(x[:1], g[:1], z),
    "the batch is averaged": lambda x, g, z: kernel_grad(x, g, z) / x.shape[0],
    "the positions are averaged": lambda x, g, z: kernel_grad(x, g, z) / (g.shape[1] * g.shape[2]),
    "the sign is wrong": lambda x, g, z: -kernel_grad(x, g, z),
    "all is scaled by 1.001": lambda x, g, z: 1.001 * kernel_grad(x, g, z),
    "one tap is off by 1 %": lambda x, g, z: kernel_grad(x, g, z).at[1, 0].multiply(1.01),
}

WRONG_BIAS_GRADS: dict[str, Rule] = {
    "only the first example counts": lambda g: bias_grad(g[:1]),
    "only the first position counts": lambda g: g[:, 0, 0].sum(0),
    "the batch is averaged": lambda g: bias_grad(g) / g.shape[0],
    "the last row of δ is dropped": lambda g: bias_grad(g[:, :-1]),
}

RIGHT: dict[str, ConvRules] = {**NAMED, "the one that the wrong ones were made of": ConvRules(input_grad, kernel_grad)}
CANDIDATES: dict[tuple[str, str], ConvRules] = {
    **{("dx", name): ConvRules(rule, kernel_grad) for name, rule in WRONG_INPUT_GRADS.items()},
    **{("dw", name): ConvRules(input_grad, rule) for name, rule in WRONG_KERNEL_GRADS.items()},
    **{("both", name): rules for name, rules in RIGHT.items()},
}
WRONG = [
    *(("dx", name) for name in WRONG_INPUT_GRADS),
    *(("dw", name) for name in WRONG_KERNEL_GRADS),
    *(("db", name) for name in WRONG_BIAS_GRADS),
]


# The checker: the greatest error over all geometries and both gradients, in units of the bound

Errors = dict[tuple[str, str], float]
COTANGENTS: dict[str, Callable[[tuple[int, ...]], np.ndarray]] = {"random": cotangent, "ones": np.ones}


def errors_on(case: Case) -> dict[str, Errors]:
    """By kind of cotangent and candidate."""
    options, (x, w) = case.options, arrays(case)
    geometry = conv_geometry("conv", x.shape, w.shape, **options)

    @jax.jit
    def gradients(x: jax.Array, w: jax.Array, g: jax.Array) -> Any:
        def pulled_back(rules: ConvRules) -> Any:
            return jax.vjp(lambda x, w: jaxconv.conv(x, w, **options, rules=rules), x, w)[1](g)

        biases = {("db", name): rule(g) for name, rule in WRONG_BIAS_GRADS.items()}
        return {label: pulled_back(rules) for label, rules in CANDIDATES.items()}, biases

    def errors(g: np.ndarray) -> Errors:
        dx = oracle.exact(oracle.conv_input_grad, g, w, geometry.spatial, **options)
        dw = oracle.exact(oracle.conv_kernel_grad, x, g, geometry.taps, **options)
        db = oracle.exact(oracle.conv_bias_grad, g)
        pairs, biases = gradients(x, w, g)
        found = {label: error_in_bounds(b, *db).max() for label, b in biases.items()}
        for label, (a, b) in pairs.items():
            found[label] = max(error_in_bounds(a, *dx).max(), error_in_bounds(b, *dw).max())
        return found

    return {kind: errors(make(geometry.y_shape(x.shape[0], w.shape[3]))) for kind, make in COTANGENTS.items()}


@pytest.fixture(scope="module")
def worst() -> dict[str, Errors]:
    bench = [errors_on(case) for case in BENCH]
    labels = [*CANDIDATES, *(("db", name) for name in WRONG_BIAS_GRADS)]
    return {kind: {label: max(errors[kind][label] for errors in bench) for label in labels} for kind in COTANGENTS}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_rule_is_accepted(name: str, worst: dict[str, Errors]) -> None:
    assert worst["random"]["both", name] <= 1


@pytest.mark.parametrize(("gradient", "name"), WRONG)
def test_a_wrong_rule_is_rejected_by_far(gradient: str, name: str, worst: dict[str, Errors]) -> None:
    assert worst["random"][gradient, name] > 1e9, f"only {worst['random'][gradient, name]:.3g} bounds"


def test_cotangents_of_ones_let_wrong_rules_pass(worst: dict[str, Errors]) -> None:
    """Ones look the same from every example, so what mixes up the examples goes unseen."""
    passed = {label for label in WRONG if worst["ones"][label] <= 1}
    assert passed == {
        ("dx", "the batch is rolled by one"),
        ("dx", "every example is the first"),
        ("dw", "the batch of δ is rolled by one"),
    }
