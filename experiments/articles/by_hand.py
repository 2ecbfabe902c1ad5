"""A. Saraswat, the backward pass of a whole CNN: trained by hand on MNIST, beside the same network in jaxconv.

    python -m experiments.articles.by_hand

23 claims hold. Conv 8×3×3, ReLU, max pool, dense, softmax cross-entropy in NumPy, float64, one image a step, learning
rate 0.01: after the 60,000 images of one epoch 97.29 % of the 10,000 test images are right, seed 0. Seeds 1, 2, 3 give
97.26, 96.56 and 96.00 %: other weights to start from, another order of the images. jaxconv takes the same steps: 1.5
eps apart after 40 single images, 1.8 eps after 10 batches of 16.

Three equations are misprinted, found by deriving the others from the four of Z; jaxconv has the products of the right:

    Z11, on the way to ∂K11    X12·K21 + X21·K12 for X12·K12 + X21·K21
    ∂X23                       ∂Z22·K11 for ∂Z22·K12
    ∂X33                       ∂Z21·K22 for ∂Z22·K22

What the code does when it runs, on 200 images before training:

    every tied maximum paid    76 % of the windows have several maxima, but 1.6 % of those that ReLU lets δ through: the
                               filters' gradient changes in 41 % of images, on average by 8 %; test accuracy 97.36 %.
                               Subtract ½ from the pixels and it is 55 % of the windows, and 209 % of the gradient.
    the bias's sum(axis=0)     one number for ten biases, 0 (at most 3e-16): they never learn; test accuracy 97.30 %.
    a pool of 2 on 27 rows     IndexError

Measured on 2026-11-22, 2 cores of an Intel Xeon with AVX-512, Python 3.11.7, jax and jaxlib 0.10.2: 19 s of training by
hand, 74 s in all.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.console import Console

import jaxconv
from experiments import data
from experiments.articles.claims import Claims, Equations, Rules, distinct, misprints, summed, terms

# The article's equations as it prints them. Products are X·K, X·∂Z and ∂Z·K.
OUTPUT: Equations = {
    11: [(11, 11), (12, 12), (21, 21), (22, 22)],
    12: [(12, 11), (13, 12), (22, 21), (23, 22)],
    21: [(21, 11), (22, 12), (31, 21), (32, 22)],
    22: [(22, 11), (23, 12), (32, 21), (33, 22)],
}
OUTPUT_AGAIN: Equations = {11: [(11, 11), (12, 21), (21, 12), (22, 22)]}  # where it takes the derivative in K11
KERNEL_GRADIENT: Equations = {
    11: [(11, 11), (12, 12), (21, 21), (22, 22)],
    12: [(12, 11), (13, 12), (22, 21), (23, 22)],
    21: [(21, 11), (22, 12), (31, 21), (32, 22)],
    22: [(22, 11), (23, 12), (32, 21), (33, 22)],
}
INPUT_GRADIENT: Equations = {
    11: [(11, 11)],
    12: [(11, 12), (12, 11)],
    13: [(12, 12)],
    21: [(11, 21), (21, 11)],
    22: [(11, 22), (12, 21), (21, 12), (22, 11)],
    23: [(12, 22), (22, 11)],
    31: [(21, 21)],
    32: [(21, 22), (22, 21)],
    33: [(21, 22)],
}


class Net(NamedTuple):
    """filters (3, 3, 8), weights (positions · 8, 10), biases (10): parameters, or their gradient."""

    filters: np.ndarray
    weights: np.ndarray
    biases: np.ndarray


# Every layer twice: as loops over every position, and, for training, as loops over the taps at most


def conv_loops(x: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """z[i, j, f] = Σ over the 3×3 window at (i, j) of window · filter f."""
    z = np.zeros((x.shape[0] - 2, x.shape[1] - 2, filters.shape[-1]))
    for i, j, f in np.ndindex(z.shape):
        z[i, j, f] = np.sum(x[i : i + 3, j : j + 3] * filters[:, :, f])
    return z


def conv_back_loops(x: np.ndarray, filters: np.ndarray, dz: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every ∂z pays the window it read with the filter, and the filter with the window."""
    dx, dfilters = np.zeros_like(x), np.zeros_like(filters)
    for i, j, f in np.ndindex(dz.shape):
        dx[i : i + 3, j : j + 3] += dz[i, j, f] * filters[:, :, f]
        dfilters[:, :, f] += dz[i, j, f] * x[i : i + 3, j : j + 3]
    return dx, dfilters


def conv(x: np.ndarray, filters: np.ndarray) -> np.ndarray:
    """The same, one tap at a time for all positions and filters."""
    rows, columns = x.shape[0] - 2, x.shape[1] - 2
    z = np.zeros((rows, columns, filters.shape[-1]))
    for a, b in np.ndindex(3, 3):
        z += x[a : a + rows, b : b + columns, None] * filters[a, b]
    return z


def conv_back_x(filters: np.ndarray, dz: np.ndarray) -> np.ndarray:
    rows, columns, _ = dz.shape
    dx = np.zeros((rows + 2, columns + 2))
    for a, b in np.ndindex(3, 3):
        dx[a : a + rows, b : b + columns] += dz @ filters[a, b]
    return dx


def conv_back_filters(x: np.ndarray, dz: np.ndarray) -> np.ndarray:
    rows, columns, count = dz.shape
    dfilters = np.zeros((3, 3, count))
    for a, b in np.ndindex(3, 3):
        dfilters[a, b] = x[a : a + rows, b : b + columns].ravel() @ dz.reshape(-1, count)
    return dfilters


def pool_loops(a: np.ndarray, size: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The maximum of each window, and where it stands: the first, if several are the largest."""
    height, width, filters = a.shape
    y = np.zeros((height // size, width // size, filters))
    places = np.zeros((*y.shape, 2), int)
    for i in range(0, height, size):
        for j in range(0, width, size):
            for f in range(filters):
                window = a[i : i + size, j : j + size, f]
                row, column = np.unravel_index(np.argmax(window), window.shape)
                y[i // size, j // size, f] = window[row, column]
                places[i // size, j // size, f] = i + row, j + column
    return y, places


def pool_back_loops(a: np.ndarray, places: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """δ goes to the remembered place."""
    da = np.zeros_like(a)
    for i, j, f in np.ndindex(dy.shape):
        row, column = places[i, j, f]
        da[row, column, f] = dy[i, j, f]
    return da


def pool_back_ties_loops(a: np.ndarray, dy: np.ndarray, size: int = 2) -> np.ndarray:
    """The article's first version: nothing is remembered, and every place that holds the maximum is paid in full."""
    da = np.zeros_like(a)
    for i, j, f in np.ndindex(dy.shape):
        window = a[size * i : size * i + size, size * j : size * j + size, f]
        for row, column in np.argwhere(window == window.max()):
            da[size * i + row, size * j + column, f] = dy[i, j, f]
    return da


def windows(a: np.ndarray) -> np.ndarray:
    """(rows, columns, f) as (rows / 2, columns / 2, tap, f)."""
    rows, columns, filters = a.shape
    return a.reshape(rows // 2, 2, columns // 2, 2, filters).swapaxes(1, 2).reshape(rows // 2, columns // 2, 4, filters)


def unwindowed(da: np.ndarray) -> np.ndarray:
    """The inverse of `windows`."""
    rows, columns, _, filters = da.shape
    return da.reshape(rows, columns, 2, 2, filters).swapaxes(1, 2).reshape(2 * rows, 2 * columns, filters)


def pool(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same, all windows at once; what is remembered is the number of the tap."""
    read = windows(a)
    return read.max(2), read.argmax(2)


def pool_back(a: np.ndarray, taps: np.ndarray, dy: np.ndarray) -> np.ndarray:
    return unwindowed((np.arange(4)[:, None] == taps[:, :, None]) * dy[:, :, None])


def pool_back_ties(a: np.ndarray, taps: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """The version that pays every tie, in the same place."""
    read = windows(a)
    return unwindowed((read == read.max(2, keepdims=True)) * dy[:, :, None])


def softmax(logits: np.ndarray) -> np.ndarray:
    e = np.exp(logits - logits.max())
    return e / e.sum()


# The network


def initial(rng: np.random.Generator, size: int) -> Net:
    """The article's scales: filters / 9, weights / inputs, biases 0."""
    inputs = ((size - 2) // 2) ** 2 * 8
    return Net(rng.standard_normal((3, 3, 8)) / 9, rng.standard_normal((inputs, 10)) / inputs, np.zeros(10))


def logits(net: Net, x: np.ndarray) -> np.ndarray:
    y, _ = pool(np.maximum(conv(x, net.filters), 0))
    return y.ravel() @ net.weights + net.biases


PoolBack = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def gradient(net: Net, x: np.ndarray, label: int, back: PoolBack = pool_back) -> Net:
    """Forward, remembering what each layer will need; then backward. Nobody asks for the gradient of the pixels."""
    z = conv(x, net.filters)
    a = np.maximum(z, 0)
    y, taps = pool(a)
    flat = y.ravel()
    p = softmax(flat @ net.weights + net.biases)

    delta = p - (np.arange(10) == label)  # of −log p[label]
    dy = (net.weights @ delta).reshape(y.shape)
    dz = back(a, taps, dy) * (z > 0)
    return Net(conv_back_filters(x, dz), np.outer(flat, delta), delta)


def step(net: Net, gradient: Net, rate: float) -> Net:
    return Net(*(parameter - rate * g for parameter, g in zip(net, gradient, strict=True)))


def scalar_bias(gradient: Net) -> Net:
    """The article's sum(axis=0) on the δ of one image: one number, and every bias gets it."""
    return gradient._replace(biases=gradient.biases.sum(axis=0))


def jax_loss(net: Any, images: jax.Array, labels: jax.Array, rules: Rules) -> jax.Array:
    """The same network in jaxconv, any number of images: the mean loss."""
    named: Any = rules if isinstance(rules, str) else "fast"
    a = jaxconv.relu(jaxconv.conv(images, net.filters[:, :, None], padding="VALID", rules=rules), rules=named)
    y = jaxconv.max_pool(a, 2, rules=named)
    scores = jaxconv.dense(y.reshape(len(y), -1), net.weights, net.biases, rules=named)
    return jnp.mean(jaxconv.softmax_cross_entropy(scores, labels))


# The claims


def printed_equations(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    """The four equations of Z define the layer. The derivatives follow, and are compared with the printed ones."""
    claims.section("The printed equations, against what follows from the four of Z")
    x, k, dz = distinct(rng, 3, 3), distinct(rng, 2, 2), distinct(rng, 2, 2)

    def image(a: Any) -> Any:
        return jnp.asarray(a)[None, :, :, None]

    def in_z(x: Any, k: Any) -> Any:
        return jaxconv.conv(image(x), jnp.asarray(k)[:, :, None, None], padding="VALID", rules=rules)[0, :, :, 0]

    def in_k(x: Any, dz: Any) -> Any:
        return jax.vjp(lambda k: in_z(x, k), jnp.zeros((2, 2)))[1](jnp.asarray(dz))[0]

    def in_x(dz: Any, k: Any) -> Any:
        return jax.vjp(lambda x: in_z(x, k), jnp.zeros((3, 3)))[1](jnp.asarray(dz))[0]

    products = [(z, x, k) for z, pairs in OUTPUT.items() for x, k in pairs]
    true_z = regrouped((z, (x, k)) for z, x, k in products)
    true_k = regrouped((k, (x, z)) for z, x, k in products)
    true_x = regrouped((x, (z, k)) for z, x, k in products)
    for name, jaxconvs, true in (
        ("Z", terms(in_z, x, k), true_z), ("∂K", terms(in_k, x, dz), true_k), ("∂X", terms(in_x, dz, k), true_x),
    ):  # fmt: skip
        claims.holds(f"{name}: jaxconv adds up these products", jaxconvs == true, f"{len(true)} equations")
    for name, equations, true, a, b, expected in (
        ("Z, where it goes on to K11", OUTPUT_AGAIN, true_z, x, k, [11]),
        ("∂K", KERNEL_GRADIENT, true_k, x, dz, []),
        ("∂X", INPUT_GRADIENT, true_x, dz, k, [23, 33]),
    ):
        found = misprints(equations, true)
        unequal = [entry for entry, value in summed(equations, a, b).items() if value != summed(true, a, b)[entry]]
        shown = (f"{entry}: {spelled(equations[entry])} printed, {spelled(true[entry])} true" for entry in found)
        text = f"{name}: {len(found)} of {len(equations)} misprinted, in index pairs and in numbers"
        claims.holds(text, found == unequal == expected, "\n".join(shown))
    padded = np.pad(dz, 1)
    claims.equal("∂X = conv(padded ∂Z, K rotated by 180°)", in_z(padded, k[::-1, ::-1]), in_x(dz, k))
    claims.differ("without the rotation: not ∂X, as it says", in_z(padded, k), in_x(dz, k))
    claims.equal("∂K = conv(X, ∂Z)", in_z(x, dz), in_k(x, dz))


def regrouped(terms: Iterable[tuple[int, tuple[int, int]]]) -> dict[int, dict[tuple[int, int], float]]:
    sums: dict[int, dict[tuple[int, int], float]] = {}
    for entry, pair in terms:
        sums.setdefault(entry, {})[pair] = 1.0
    return sums


def spelled(pairs: Iterable[tuple[int, int]]) -> str:
    return " + ".join(f"{a}·{b}" for a, b in pairs)


def layers(claims: Claims, rng: np.random.Generator, pixels: np.ndarray) -> None:
    claims.section(f"Each layer on {len(pixels)} real images, integer pixels and filters")
    filters = distinct(rng, 3, 3, 8)
    by_loops, by_taps, by_jaxconv, ties, ties_at_once = [], [], [], [], []
    for x in pixels.astype(float):
        z = conv_loops(x, filters)
        dz = distinct(rng, *z.shape)
        a = np.maximum(z, 0)
        y, places = pool_loops(a)
        dy = distinct(rng, *y.shape)
        by_loops.append((z, *conv_back_loops(x, filters, dz), y, pool_back_loops(a, places, dy)))

        y, taps = pool(a)
        conv_back = conv_back_x(filters, dz), conv_back_filters(x, dz)
        by_taps.append((conv(x, filters), *conv_back, y, pool_back(a, taps, dy)))
        ties.append(pool_back_ties_loops(a, dy))
        ties_at_once.append(pool_back_ties(a, taps, dy))

        our_y, our_pool_back = jax.vjp(lambda a: jaxconv.max_pool(a, 2), jnp.asarray(a)[None])
        by_jaxconv.append((our_y[0], our_pool_back(jnp.asarray(dy)[None])[0][0]))
    claims.equal("conv, ∂X, ∂K, pool and its ∂: over taps = over positions", by_taps, by_loops)
    claims.equal("every tie paid: all windows at once = window by window", ties_at_once, ties)
    remembered = [sums[3:] for sums in by_loops]
    claims.equal("jaxconv's pool remembers: one place a window is paid", by_jaxconv, remembered)
    claims.differ("paying every tie is another gradient", ties, [da for _, da in remembered])
    odd = np.ones((27, 27, 1))
    claims.raises("27 rows, which 2 does not divide: the article's loop fails", IndexError, lambda: pool_loops(odd))
    shape = jaxconv.max_pool(odd[None], 2).shape
    claims.holds("jaxconv's leaves the last row unread", shape == (1, 13, 13, 1), str(shape))


def beside_jaxconv(claims: Claims, net: Net, images: np.ndarray, labels: np.ndarray, rate: float, rules: Rules) -> None:
    """Rounding differences grow along a trajectory: 10 rounding errors times 1.05 per step, as in rules_agree."""
    claims.section("The same network in jaxconv, float64")
    x, y = jnp.asarray(images[..., None]), jnp.asarray(labels)
    by_jax = jax.jit(jax.grad(lambda net, rows: jax_loss(net, x[rows], y[rows], rules)))

    def by_hand(net: Net, rows: np.ndarray) -> Net:
        """The mean of what each image wants."""
        each = [gradient(net, images[row], labels[row]) for row in rows]
        return Net(*(np.mean(g, 0) for g in zip(*each, strict=True)))

    def descents(batches: np.ndarray, rate: float) -> tuple[list[Net], list[Net]]:
        """The parameters after every step, by jaxconv and by hand."""
        theirs, ours = [jax.tree.map(jnp.asarray, net)], [net]
        for rows in batches:
            theirs.append(step(theirs[-1], by_jax(theirs[-1], rows), rate))
            ours.append(step(ours[-1], by_hand(ours[-1], rows), rate))
        return theirs[1:], ours[1:]

    singles, batches = np.arange(40).reshape(40, 1), np.arange(160).reshape(10, 16)
    claims.close("one image a step: equal parameters after each of 40 steps", *descents(singles, rate), 10 * 1.05**40)
    theirs, ours = by_jax(net, batches[0]), by_hand(net, batches[0])
    claims.close("16 images: jaxconv's gradient is the mean of the images' gradients", theirs, ours, 10)
    claims.close("16 images a step: equal after each of 10 steps", *descents(batches, 10 * rate), 10 * 1.05**10)


def biases(claims: Claims, net: Net, images: np.ndarray, labels: np.ndarray) -> None:
    claims.section("The bias of the fully connected layer")
    deltas = [gradient(net, x, label) for x, label in zip(images, labels, strict=True)]
    p = softmax(logits(net, images[0]))
    claims.equal("∂b of one image is δ = p − y itself", deltas[0].biases, p - np.eye(10)[labels[0]])
    sums = [scalar_bias(delta).biases for delta in deltas]
    claims.holds(
        "its sum(axis=0) is one number for all ten biases", np.shape(sums[0]) == (), f"shape {np.shape(sums[0])}"
    )
    # Ten probabilities add up to 1 with one rounding each.
    worst, rounding = np.max(np.abs(sums)), 10 * np.finfo(float).eps
    claims.holds(f"which is 0: at most 10 eps for {len(sums)} images", worst <= rounding, f"at most {worst:.1g}")


def ties(claims: Claims, net: Net, images: np.ndarray, labels: np.ndarray, when: str) -> None:
    """How often a window has several maxima, and what paying all of them does to the filters' gradient."""
    count = tied = lit = lit_tied = 0
    changed = []
    for x, label in zip(images, labels, strict=True):
        read = windows(np.maximum(conv(x, net.filters), 0))
        several = np.sum(read == read.max(2, keepdims=True), 2) > 1
        positive = read.max(2) > 0
        count, tied = count + several.size, tied + several.sum()
        lit, lit_tied = lit + positive.sum(), lit_tied + (several & positive).sum()
        once, all_paid = gradient(net, x, label).filters, gradient(net, x, label, pool_back_ties).filters
        changed.append(np.linalg.norm(all_paid - once) / np.linalg.norm(once))
    through = f"{lit_tied / lit:.2%} of those that ReLU lets δ through"
    claims.figure(f"{when}: windows with several maxima", f"{tied / count:.2%}, {through}")
    share = f"in {np.mean(np.array(changed) > 0):.1%} of images, on average by {np.mean(changed):.1%}"
    claims.figure(
        f"{when}: paying all of them changes the filters' gradient", f"{share}, at most by {max(changed):.0%}"
    )


def trained(net: Net, images: np.ndarray, labels: np.ndarray, rate: float, wants: Callable[..., Net]) -> Net:
    for x, label in zip(images, labels, strict=True):
        net = step(net, wants(net, x, label), rate)
    return net


def accuracy(net: Net, images: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([np.argmax(logits(net, x)) == label for x, label in zip(images, labels, strict=True)]))


@dataclass(frozen=True)
class Options:
    """Train the article's network by hand for one epoch, one image a step."""

    data: Literal["digits", "mnist", "fashion-mnist"] = "mnist"
    """Real images."""
    data_dir: Path | None = None
    """Where the original files are or go; by default $JAXCONV_DATA, else a user cache."""
    images: int | None = None
    """Train on this many images instead of all."""
    learning_rate: float = 0.01
    """Step size, the article's."""
    seed: int = 0
    """Seed of the weights and of the order of the images."""


def prove(claims: Claims, options: Options, dataset: data.Dataset, rules: Rules = "fast") -> None:
    rng = np.random.default_rng(options.seed)
    order = rng.permutation(len(dataset.train_labels))[: options.images]
    pixels, labels = dataset.train_images[order, ..., 0], dataset.train_labels[order]
    images, tests = pixels / dataset.scale, dataset.test_images[..., 0] / dataset.scale
    net, rate = initial(rng, images.shape[1]), options.learning_rate

    printed_equations(claims, rules, rng)
    layers(claims, rng, pixels[:3])
    beside_jaxconv(claims, net, images[:160], labels[:160], rate, rules)
    biases(claims, net, images[:200], labels[:200])

    claims.section(f"One epoch of {dataset.name}: {len(images):,} steps of one image, learning rate {rate}")
    ties(claims, net, images[:200], labels[:200], "before")
    ties(claims, net, images[:200] - 0.5, labels[:200], "before, pixels less ½")
    variants: dict[str, Callable[..., Net]] = {
        "by hand": gradient,
        "every tie paid": lambda net, x, label: gradient(net, x, label, pool_back_ties),
        "the article's bias": lambda net, x, label: scalar_bias(gradient(net, x, label)),
    }
    learned, reached = {}, {}
    for name, wants in variants.items():
        claims.working(f"training: {name}")
        start = time.perf_counter()
        learned[name] = trained(net, images, labels, rate, wants)
        seconds = time.perf_counter() - start
        reached[name] = accuracy(learned[name], tests, dataset.test_labels)
        claims.figure(f"{name}: test accuracy, training time", f"{reached[name]:.2%}, {seconds:.1f} s")
    ties(claims, learned["by hand"], images[:200], labels[:200], "after")
    drift = np.max(np.abs(learned["the article's bias"].biases))
    bound = len(images) * rate * 10 * np.finfo(float).eps
    claims.holds("the article's biases have not moved", drift <= bound, f"at most {drift:.1g}")
    if replace(options, data_dir=None) == Options():
        right = reached["by hand"]
        claims.holds("the default run, by hand: at least 97 % of the test images", right >= 0.97, f"{right:.2%}")


def main() -> int:
    console = Console()
    options = tyro.cli(Options, description=__doc__)
    if options.images is not None and options.images < 200:
        console.print("[red]error:[/] --images must be at least 200.")
        return 2
    try:
        dataset = data.load(options.data, options.data_dir)
    except data.DataError as error:
        console.print(f"[red]error:[/] {error}", soft_wrap=True, highlight=False)
        return 2
    claims = Claims()
    with jax.enable_x64(True):
        prove(claims, options, dataset)
    return claims.report(console)


if __name__ == "__main__":
    sys.exit(main())
