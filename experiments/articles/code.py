"""M. Agarwal, intuition and code: the output and ∂W equations term by term, the loops, and what the printed code does.

    python -m experiments.articles.code

17 claims hold, with each of the four rule sets: the four equations of H and of ∂W are right, as index pairs and in
numbers, and are, with the nine of ∂X, the same sixteen triples. The loops equal jaxconv on five shapes, not only square
ones. As printed, the code does not run: it calls δ like a function (TypeError). And it takes a kernel's last size for
both: a 2×3 kernel is an error, a 1×3 or 3×1 kernel a wrong result without one.

Measured on 2026-11-22, 2 cores of an Intel Xeon with AVX-512, Python 3.11.7, jax and jaxlib 0.10.2: 3 s.
"""

from __future__ import annotations

import sys
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxconv
from experiments.articles.claims import Claims, Equations, Rules, distinct, main, misprints, summed, terms

# As printed: each h is a sum of products W·X, each ∂W a sum of products X·∂h.
OUTPUT: Equations = {
    11: [(11, 11), (12, 12), (21, 21), (22, 22)],
    12: [(11, 12), (12, 13), (21, 22), (22, 23)],
    21: [(11, 21), (12, 22), (21, 31), (22, 32)],
    22: [(11, 22), (12, 23), (21, 32), (22, 33)],
}
KERNEL_GRADIENT: Equations = {
    11: [(11, 11), (12, 12), (21, 21), (22, 22)],
    12: [(12, 11), (13, 12), (22, 21), (23, 22)],
    21: [(21, 11), (22, 12), (31, 21), (32, 22)],
    22: [(22, 11), (23, 12), (32, 21), (33, 22)],
}

Cache = tuple[np.ndarray, np.ndarray]


# One channel, no padding, stride 1: every window in turn


def forward(x: np.ndarray, w: np.ndarray, window: tuple[int, int] | None = None) -> tuple[np.ndarray, Cache]:
    """h[p] = Σ_k w[k] · x[p + k]. The cache is what the backward pass will need: both operands."""
    rows, columns = window or w.shape
    h = np.zeros((x.shape[0] - rows + 1, x.shape[1] - columns + 1))
    for i, j in np.ndindex(h.shape):
        h[i, j] = np.sum(w * x[i : i + rows, j : j + columns])
    return h, (x, w)


def backward(dh: np.ndarray, cache: Cache) -> tuple[np.ndarray, np.ndarray]:
    """Every ∂h sends w·∂h back to the window it came from, and collects that window·∂h for the kernel."""
    x, w = cache
    dx, dw = np.zeros_like(x), np.zeros_like(w)
    rows, columns = w.shape
    for i, j in np.ndindex(dh.shape):
        dx[i : i + rows, j : j + columns] += w * dh[i, j]
        dw += x[i : i + rows, j : j + columns] * dh[i, j]
    return dx, dw


# jaxconv's three maps, on one channel of one image


def image(a: Any) -> Any:
    return jnp.asarray(a)[None, :, :, None]


def kernel(a: Any) -> Any:
    return jnp.asarray(a)[:, :, None, None]


def conv(w: Any, x: Any, rules: Rules) -> Any:
    return jaxconv.conv(image(x), kernel(w), padding="VALID", rules=rules)[0, :, :, 0]


def kernel_grad(x: Any, dh: Any, taps: tuple[int, ...], rules: Rules) -> Any:
    return jaxconv.conv_kernel_grad(image(x), image(dh), taps, padding="VALID", rules=rules)[:, :, 0, 0]


def input_grad(w: Any, dh: Any, spatial: tuple[int, ...], rules: Rules) -> Any:
    return jaxconv.conv_input_grad(image(dh), kernel(w), spatial, padding="VALID", rules=rules)[0, :, :, 0]


def equations(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("The equations, 3×3 input and 2×2 kernel")
    x, w, dh = distinct(rng, 3, 3), distinct(rng, 2, 2), distinct(rng, 2, 2)
    _, cache = forward(x, w)

    printed_h = np.reshape(list(summed(OUTPUT, w, x).values()), (2, 2))
    printed_dw = np.reshape(list(summed(KERNEL_GRADIENT, x, dh).values()), (2, 2))
    claims.equal("h: printed = loops", forward(x, w)[0], printed_h)
    claims.equal("h: printed = jaxconv", conv(w, x, rules), printed_h)
    claims.equal("∂W: printed = loops", backward(dh, cache)[1], printed_dw)
    claims.equal("∂W: printed = jaxconv", kernel_grad(x, dh, (2, 2), rules), printed_dw)

    # And as sets of index pairs, found by running the maps on units.
    true_h = terms(lambda w, x: conv(w, x, rules), w, x)
    true_dw = terms(lambda x, dh: kernel_grad(x, dh, (2, 2), rules), x, dh)
    true_dx = terms(lambda w, dh: input_grad(w, dh, (3, 3), rules), w, dh)
    claims.holds("h: the index pairs of all four equations", not misprints(OUTPUT, true_h) and len(true_h) == 4)
    claims.holds(
        "∂W: the index pairs of all four equations", not misprints(KERNEL_GRADIENT, true_dw) and len(true_dw) == 4
    )
    # The nine ∂X, left to the reader, are these sixteen triples once more.
    triples = {(h, w, x): once for h, pairs in true_h.items() for (w, x), once in pairs.items()}
    from_dw = {(h, w, x): once for w, pairs in true_dw.items() for (x, h), once in pairs.items()}
    from_dx = {(h, w, x): once for x, pairs in true_dx.items() for (w, h), once in pairs.items()}
    common = len(triples.items() & from_dw.items() & from_dx.items())
    text = "h, ∂W and ∂X are the same sixteen triples (h, W, X), each summed over the other two"
    claims.holds(text, triples == from_dw == from_dx and common == 16, f"{common} in common")


def loops(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("The loops and their cache")
    shapes = [((3, 3), (2, 2)), ((6, 5), (3, 3)), ((5, 7), (2, 3)), ((4, 4), (4, 4)), ((3, 4), (1, 1))]
    looped, ours = [], []
    for spatial, taps in shapes:
        x, w = distinct(rng, *spatial), distinct(rng, *taps)
        h, cache = forward(x, w)
        dh = distinct(rng, *h.shape)
        looped.append((h, *backward(dh, cache)))
        ours.append((conv(w, x, rules), input_grad(w, dh, spatial, rules), kernel_grad(x, dh, taps, rules)))
    for name, a, b in zip(("H", "∂X", "∂W"), zip(*ours, strict=True), zip(*looped, strict=True), strict=True):
        claims.equal(f"{name}: loops = jaxconv, {len(shapes)} shapes", a, b)


def as_printed(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("What the printed code does when it runs")
    w: Any = distinct(rng, 2, 2)
    dH: Any = distinct(rng, 2, 2)
    claims.raises("its backward pass calls the array, dH(h,w), where it must index it", TypeError, lambda: w * dH(0, 0))

    # It unpacks a kernel's shape into one name twice, which keeps the last size.
    def left(w: np.ndarray) -> tuple[int, int]:
        (f, f) = w.shape
        return f, f

    x, wide, row, column = distinct(rng, 4, 4), distinct(rng, 2, 3), distinct(rng, 1, 3), distinct(rng, 3, 1)
    claims.holds("(f, f) = W.shape of a 2×3 kernel is 3, 3", left(wide) == (3, 3), str(left(wide)))
    claims.raises("a 2×3 kernel then meets 3×3 windows: an error", ValueError, lambda: forward(x, wide, left(wide)))
    for name, w in (("1×3", row), ("3×1", column)):
        wrong, right = forward(x, w, left(w))[0], forward(x, w)[0]
        same = wrong.shape == right.shape and np.array_equal(wrong, right)
        shapes = f"{wrong.shape} for {right.shape}"
        claims.holds(f"a {name} kernel is broadcast over its windows: a wrong H, in silence", not same, shapes)
        claims.equal(f"jaxconv takes {name}", conv(w, x, rules), right)


def prove(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    for part in (equations, loops, as_printed):
        part(claims, rules, rng)


if __name__ == "__main__":
    sys.exit(main(prove, __doc__))
