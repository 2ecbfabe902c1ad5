"""A question and its answer: depth, several filters, the channel-transposed kernels, and what the answer leaves out.

    python -m experiments.articles.general

21 claims hold, with each of the four rule sets, all to the last bit in float64. Equation (7) is the input gradient of
20 filters on RGB. Equation (8) is the same if its w is the channel-transposed kernel, 3 kernels of depth 20; on the
kernels as they were it indexes out of bounds, and with as many filters as channels it is wrong without an error. It is
a cross-correlation: of the padded δ with those kernels, rotated. Left out there and done here: the gradients of w and
b; stride, padding (negative too), dilation, groups, batch, in 1-D, 2-D and 3-D, as one loop over the products x·w.

Measured on 2026-11-22, 2 cores of an Intel Xeon with AVX-512, Python 3.11.7, jax and jaxlib 0.10.2: 7 s.
"""

from __future__ import annotations

import itertools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxconv
from experiments.articles.claims import Claims, Rules, distinct, main

# The answer: one image, stride 1, no padding. Its indices count from 1, NumPy's from 0: entry i is array[i − 1].


def entry(array: np.ndarray, i: int, j: int) -> np.ndarray:
    """All channels at (i, j), counted from 1; 0 outside, where there is no δ."""
    inside = 1 <= i <= array.shape[0] and 1 <= j <= array.shape[1]
    return array[i - 1, j - 1] if inside else np.zeros(array.shape[2:])


def forward(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    """z[i,j,k] = Σ_c Σ_m Σ_n x[i+m−1, j+n−1, c] · w[m,n,c,k] + b[k]."""
    (rows, columns, depth), (height, width, _, filters) = x.shape, w.shape
    z = np.zeros((rows - height + 1, columns - width + 1, filters))
    for i, j, k in counted(*z.shape):
        z[i - 1, j - 1, k - 1] = b[k - 1] + sum(
            entry(x, i + m - 1, j + n - 1)[c - 1] * entry(w, m, n)[c - 1, k - 1]
            for c, m, n in counted(depth, height, width)
        )
    return z


def equation_7(delta: np.ndarray, w: np.ndarray) -> np.ndarray:
    """δ^l[m,n,u] = Σ_k Σ_a Σ_b δ^(l+1)[m−a+1, n−b+1, k] · w[a,b,u,k]."""
    (rows, columns, filters), (height, width, depth, _) = delta.shape, w.shape
    below = np.zeros((rows + height - 1, columns + width - 1, depth))
    for m, n, u in counted(*below.shape):
        below[m - 1, n - 1, u - 1] = sum(
            entry(delta, m - a + 1, n - b + 1)[k - 1] * entry(w, a, b)[u - 1, k - 1]
            for k, a, b in counted(filters, height, width)
        )
    return below


def equation_8(delta: np.ndarray, w: np.ndarray, depth: int) -> np.ndarray:
    """δ^l[m,n,u] = Σ_k Σ_a Σ_b δ^(l+1)[m−a+1, n−b+1, k] · w[a,b,k,u]: `depth` kernels as deep as there were filters."""
    (rows, columns, filters), (height, width) = delta.shape, w.shape[:2]
    below = np.zeros((rows + height - 1, columns + width - 1, depth))
    for m, n, u in counted(*below.shape):
        below[m - 1, n - 1, u - 1] = sum(
            entry(delta, m - a + 1, n - b + 1)[k - 1] * entry(w, a, b)[k - 1, u - 1]
            for k, a, b in counted(filters, height, width)
        )
    return below


def counted(*sizes: int) -> itertools.product[tuple[int, ...]]:
    """All indices, from 1."""
    return itertools.product(*(range(1, size + 1) for size in sizes))


def answer(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("The answer: 20 filters on RGB")
    x, w, b = distinct(rng, 6, 5, 3), distinct(rng, 3, 2, 3, 20), distinct(rng, 20)
    z = forward(x, w, b)
    delta = distinct(rng, *z.shape)
    options: dict[str, Any] = {"padding": "VALID", "rules": rules}
    claims.equal("forward, with a bias per filter", jaxconv.conv(x[None], w, b, **options)[0], z)
    below = jaxconv.conv_input_grad(delta[None], w, (6, 5), **options)[0]
    claims.equal("equation (7)", below, equation_7(delta, w))
    turned = w.swapaxes(2, 3)
    claims.holds(
        "transposed, 20 kernels of depth 3 are 3 of depth 20",
        turned.shape == (3, 2, 20, 3),
        f"{w.shape} → {turned.shape}",
    )
    claims.equal("equation (8) on the transposed kernels", below, equation_8(delta, turned, 3))
    claims.raises("equation (8) on the kernels as they were", IndexError, lambda: equation_8(delta, w, 3))
    square = distinct(rng, 3, 2, 20, 20)
    claims.differ(
        "with as many filters as channels it would pass unnoticed",
        equation_8(delta, square, 20),
        equation_7(delta, square),
    )

    claims.section("Is it a cross-correlation?")
    inverted = turned[::-1, ::-1]
    across = jaxconv.conv(delta[None], inverted, padding=[(2, 2), (1, 1)], rules=rules)[0]
    claims.equal("yes: padded δ with the transposed kernels, rotated", across, equation_7(delta, w))
    red = jaxconv.conv(delta[None], inverted[..., :1], padding=[(2, 2), (1, 1)], rules=rules)[0]
    claims.equal("the first kernel alone, 20 deep, gives the gradient of red", red, equation_7(delta, w)[..., :1])


# What the answer leaves out. From here on indices count from 0, and every product is visited once.


class Case(NamedTuple):
    """Shapes (n, *spatial, c) and (*taps, c / groups, o), and per axis the options of `jaxconv.conv`."""

    name: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1


CASES = [
    Case("stride", (1, 7, 6, 2), (3, 2, 2, 3), (2, 3), ((0, 0), (0, 0)), (1, 1)),
    Case("a stride that does not divide", (1, 8, 6, 2), (3, 3, 2, 3), (2, 2), ((0, 0), (0, 0)), (1, 1)),
    Case("padding", (1, 4, 5, 2), (3, 3, 2, 3), (1, 1), ((1, 1), (0, 2)), (1, 1)),
    Case("negative padding", (1, 6, 6, 2), (2, 3, 2, 3), (1, 1), ((-1, 2), (1, -2)), (1, 1)),
    Case("dilation", (1, 8, 7, 2), (3, 2, 2, 3), (1, 1), ((0, 0), (0, 0)), (2, 3)),
    Case("groups", (1, 5, 5, 6), (3, 2, 2, 9), (1, 1), ((0, 0), (0, 0)), (1, 1), 3),
    Case("depthwise", (1, 5, 5, 4), (3, 3, 1, 4), (1, 1), ((1, 1), (1, 1)), (1, 1), 4),
    Case("batch", (4, 4, 5, 2), (2, 2, 2, 3), (1, 1), ((0, 0), (0, 0)), (1, 1)),
    Case("everything", (2, 8, 9, 4), (3, 2, 2, 6), (2, 3), ((2, 0), (-1, 3)), (2, 1), 2),
    Case("1-D, everything", (2, 11, 4), (3, 2, 2), (3,), ((1, 2),), (2,), 2),
    Case("3-D, everything", (2, 4, 5, 3, 2), (2, 3, 2, 1, 2), (2, 1, 2), ((1, 0), (1, 1), (0, 1)), (1, 2, 1), 2),
]


def products(case: Case) -> Any:
    """Every product x·w of the layer and the output it goes to, as an index of each.

    z[n, p, o] = Σ_k Σ_c x[n, q, group · C + c] · w[k, c, o] + b[o], q = s·p + d·k − lo
    """
    out = [
        (n + lo + hi - d * (k - 1) - 1) // s + 1
        for n, k, s, d, (lo, hi) in zip(case.x[1:], case.w, case.stride, case.dilation, case.padding, strict=False)
    ]
    for n, *p, o in np.ndindex(case.x[0], *out, case.w[-1]):
        group = o * case.groups // case.w[-1]
        for *k, c in np.ndindex(case.w[:-1]):
            steps = zip(p, k, case.stride, case.dilation, case.padding, strict=True)
            q = [s * i + d * j - lo for i, j, s, d, (lo, _) in steps]
            if all(0 <= i < size for i, size in zip(q, case.x[1:], strict=False)):
                yield (n, *q, group * case.w[-2] + c), (*k, c, o), (n, *p, o)


def loops(case: Case, x: np.ndarray, w: np.ndarray, b: np.ndarray, g: np.ndarray) -> tuple[np.ndarray, ...]:
    """The layer and its three gradients, each a sum over the same products."""
    z, dx, dw = np.zeros_like(g) + b, np.zeros_like(x), np.zeros_like(w)
    for at_x, at_w, at_z in products(case):
        z[at_z] += x[at_x] * w[at_w]
        dx[at_x] += g[at_z] * w[at_w]
        dw[at_w] += g[at_z] * x[at_x]
    return z, dx, dw, g.sum(tuple(range(g.ndim - 1)))


def left_out(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("What it leaves out: z, ∂x, ∂w and ∂b")
    for case in CASES:
        x, w, b = distinct(rng, *case.x), distinct(rng, *case.w), distinct(rng, case.w[-1])

        def layer(x: Any, w: Any, b: Any, case: Case = case) -> jax.Array:
            return jaxconv.conv(
                x,
                w,
                b,
                stride=case.stride,
                padding=case.padding,
                dilation=case.dilation,
                groups=case.groups,
                rules=rules,
            )

        z, backward = jax.vjp(layer, *map(jnp.asarray, (x, w, b)))
        g = distinct(rng, *z.shape)
        claims.equal(case.name, (z, *backward(jnp.asarray(g))), loops(case, x, w, b, g))


def exercise(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("Left as an exercise: ∂w and ∂b, counted from 1 as in the answer")
    x, w, delta = distinct(rng, 6, 5, 3), distinct(rng, 3, 2, 3, 20), distinct(rng, 4, 4, 20)
    dw = np.zeros_like(w)  # ∂J/∂w[m,n,c,k] = Σ_i Σ_j δ[i,j,k] · x[i+m−1, j+n−1, c]
    for m, n, c, k in counted(*w.shape):
        dw[m - 1, n - 1, c - 1, k - 1] = sum(
            entry(delta, i, j)[k - 1] * entry(x, i + m - 1, j + n - 1)[c - 1] for i, j in counted(4, 4)
        )
    ours = jaxconv.conv_kernel_grad(x[None], delta[None], (3, 2), padding="VALID", rules=rules)
    claims.equal("∂J/∂w[m,n,c,k] = Σ δ[i,j,k] · x[i+m−1, j+n−1, c]", ours, dw)
    db = [sum(entry(delta, i, j)[k - 1] for i, j in counted(4, 4)) for k in range(1, 21)]
    claims.equal("∂J/∂b[k] = Σ δ[i,j,k]", jaxconv.conv_bias_grad(delta[None]), np.array(db))


def prove(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    for part in (answer, exercise, left_out):
        part(claims, rules, rng)


if __name__ == "__main__":
    sys.exit(main(prove, __doc__))
