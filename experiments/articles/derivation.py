"""G. Gwardys, from intuition to derivation: every step of it executed, and every question its readers asked.

    python -m experiments.articles.derivation

54 claims hold, with each of the four rule sets. What is linear is compared on integers and equal to the last bit, in
1-D, 2-D and 3-D. Carried in float32 through three sigmoid layers, the five steps by hand end 1.8 eps from `jax.grad` in
float64, where JAX's own float32 ends 2.4 eps away. The readers' questions, each answered by a program:

    why rotate?                    the chain rule does; for an edge detector, forgetting it is climbing
    5×5 meets 9×9                  9×9, whatever kernel, stride and padding led from 9 to 5
    the bias                       δ where it is one per position, Σ δ where it is one per filter
    the picture's values           right for a forward convolution; the reader's are right for a correlation
    full correlation               with the unrotated kernel it is the same map
    stride > 1                     δ is dilated and the step is 1; strided again, not even the shape fits
    convolution or correlation     from mirrored kernels: 30 equal losses to the last bit, mirrored kernels
    z^l in step 2                  z^(l−1), or the shapes do not fit; the derivation's ∂z/∂w prints z^l as well
    for each pixel?                z is, w is not: its gradient sums what every pixel wants
    a 3×3 kernel on 3×3 input      a fully connected layer: nothing shared but by the examples
    10 channels from 1 map         the 10 slices of the one filter, as 10 filters of depth 1

Measured on 2026-11-22, 2 cores of an Intel Xeon with AVX-512, Python 3.11.7, jax and jaxlib 0.10.2: 20 s of CPU
time, most of it compilation.
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxconv
from experiments.articles.claims import Claims, Rules, apart, distinct, main, paired, printed, terms
from jaxconv.geometry import conv_geometry
from jaxconv.rules import rotated

# The article's convolution flips the kernel; that of the frameworks does not.
CONVOLUTION: dict[str, Any] = {"padding": "VALID", "flip_kernel": True}
CORRELATION: dict[str, Any] = {"padding": "VALID"}


# The two sums everything is made of, over any number of axes


def full(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """(a ∗ w)[x] = Σ_k w[k] · a[x − k] wherever the two overlap: every a[i] lands on i + k."""
    z = np.zeros([n + k - 1 for n, k in zip(a.shape, w.shape, strict=True)], a.dtype)
    for k in np.ndindex(w.shape):
        z[within(k, a.shape)] += w[k] * a
    return z


def valid(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The part of a ∗ w where the kernel lies inside the input."""
    return full(a, w)[tuple(slice(k - 1, n) for n, k in zip(a.shape, w.shape, strict=True))]


def rot180(w: np.ndarray) -> np.ndarray:
    return np.flip(w)


def correlation(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """z[x] = Σ_k w[k] · a[x + k]: the kernel is not flipped."""
    z = np.zeros([n - k + 1 for n, k in zip(a.shape, w.shape, strict=True)], a.dtype)
    for k in np.ndindex(w.shape):
        z += w[k] * a[within(k, z.shape)]
    return z


# The article's three equations with several channels: a[..., c], w[..., c, o], δ[..., o]


def feedforward(a: np.ndarray, w: np.ndarray) -> np.ndarray:
    """z[o] = Σ_c w[c, o] ∗ a[c]."""
    inputs, outputs = (range(size) for size in w.shape[-2:])
    return np.stack([sum_of(valid(a[..., c], w[..., c, o]) for c in inputs) for o in outputs], -1)


def backpropagate(delta: np.ndarray, w: np.ndarray) -> np.ndarray:
    """∂C/∂a[c] = Σ_o δ[o] ∗ ROT180(w[c, o]), a full convolution."""
    inputs, outputs = (range(size) for size in w.shape[-2:])
    return np.stack([sum_of(full(delta[..., o], rot180(w[..., c, o])) for o in outputs) for c in inputs], -1)


def kernel_gradient(delta: np.ndarray, a: np.ndarray) -> np.ndarray:
    """∂C/∂w[c, o] = δ[o] ∗ ROT180(a[c]), a valid convolution."""
    inputs, outputs = range(a.shape[-1]), range(delta.shape[-1])
    dw = [[valid(rot180(a[..., c]), delta[..., o]) for o in outputs] for c in inputs]
    return np.moveaxis(np.array(dw), (0, 1), (-2, -1))


def within(start: tuple[int, ...], shape: tuple[int, ...]) -> tuple[slice, ...]:
    """The block of this shape that begins at `start`."""
    return tuple(slice(i, i + n) for i, n in zip(start, shape, strict=True))


def sum_of(arrays: Any) -> np.ndarray:
    return np.sum(list(arrays), 0)


# jaxconv's side, one example at a time


def conv(x: Any, w: Any, rules: Rules = "fast", **options: Any) -> jax.Array:
    return jaxconv.conv(jnp.asarray(x)[None], jnp.asarray(w), rules=rules, **options)[0]


def input_grad(delta: Any, w: Any, spatial: tuple[int, ...], rules: Rules, **options: Any) -> jax.Array:
    return jaxconv.conv_input_grad(jnp.asarray(delta)[None], jnp.asarray(w), spatial, rules=rules, **options)[0]


def kernel_grad(x: Any, delta: Any, taps: tuple[int, ...], rules: Rules, **options: Any) -> jax.Array:
    x, delta = jnp.asarray(x)[None], jnp.asarray(delta)[None]
    return jaxconv.conv_kernel_grad(x, delta, taps, rules=rules, **options)


# The article, in its order


def perceptron(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    """Cut connections and share weights: a fully connected layer becomes a convolution."""
    claims.section("A perceptron with cut connections and shared weights is a convolution (1-D, 2-D, 3-D)")
    by_neurons, by_jaxconv = [], []
    for spatial, taps in [((6,), (3,)), ((5, 4), (2, 3)), ((3, 4, 3), (2, 2, 3))]:
        x, w = distinct(rng, *spatial, 2), distinct(rng, *taps, 2, 3)
        out = tuple(n - k + 1 for n, k in zip(spatial, taps, strict=True))
        delta = distinct(rng, *out, 3)

        # Output neuron p reads neuron read[k][p] with shared weight k; every other connection is cut.
        neurons, outputs = np.arange(np.prod(spatial)).reshape(spatial), np.arange(np.prod(out))
        read = [neurons[within(k, out)].ravel() for k in np.ndindex(taps)]
        weights = np.zeros((neurons.size, 2, outputs.size, 3))
        for k, shared in zip(read, w.reshape(-1, 2, 3), strict=True):
            weights[k, :, outputs] = shared

        z, backward = jax.vjp(jaxconv.dense, jnp.asarray(x.reshape(1, -1)), jnp.asarray(weights).reshape(x.size, -1))
        dx, dweights = map(np.asarray, backward(jnp.asarray(delta.reshape(1, -1))))
        untied = dweights.reshape(weights.shape)
        tied = np.stack([untied[k, :, outputs].sum(0) for k in read])

        by_neurons.append((z.reshape(delta.shape), dx.reshape(x.shape), tied.reshape(w.shape)))
        by_jaxconv.append(
            (
                conv(x, w, rules, **CORRELATION),
                input_grad(delta, w, spatial, rules, **CORRELATION),
                kernel_grad(x, delta, taps, rules, **CORRELATION),
            )
        )
    z, dx, dw = zip(*by_neurons, strict=True)
    our_z, our_dx, our_dw = zip(*by_jaxconv, strict=True)
    claims.equal("its outputs are the convolution", our_z, z)
    claims.equal("its deltas, weighted and summed, are the input gradient", our_dx, dx)
    claims.equal("its gradients, summed over shared weights, are the kernel gradient", our_dw, dw)


def derivation(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    """z = w ∗ a, δ ∗ ROT180(w), δ ∗ ROT180(a)."""
    claims.section("The derivation, several channels (1-D, 2-D, 3-D)")
    cases = []
    for spatial, taps in [((7,), (3,)), ((6, 5), (3, 2)), ((4, 3, 4), (2, 3, 2))]:
        out = (n - k + 1 for n, k in zip(spatial, taps, strict=True))
        cases.append((distinct(rng, *spatial, 2), distinct(rng, *taps, 2, 3), distinct(rng, *out, 3)))
    claims.equal(
        "z = w ∗ a",
        [conv(a, w, rules, **CONVOLUTION) for a, w, _ in cases],
        [feedforward(a, w) for a, w, _ in cases],
    )
    claims.equal(
        "∂C/∂a = δ ∗ ROT180(w), a full convolution",
        [input_grad(delta, w, a.shape[:-1], rules, **CONVOLUTION) for a, w, delta in cases],
        [backpropagate(delta, w) for _, w, delta in cases],
    )
    claims.equal(
        "∂C/∂w = δ ∗ ROT180(a)",
        [kernel_grad(a, delta, w.shape[:-2], rules, **CONVOLUTION) for a, w, delta in cases],
        [kernel_gradient(delta, a) for a, _, delta in cases],
    )
    z = rng.standard_normal((4, 5))
    claims.equal("σ(ROT180(z)) = ROT180(σ(z))", sigmoid(rot180(z)), rot180(sigmoid(z)))


def biases(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("What about the update of biases?")
    a, w, delta = distinct(rng, 5, 6, 2), distinct(rng, 2, 3, 2, 3), distinct(rng, 4, 4, 3)

    def weighted(per_position: jax.Array, per_filter: jax.Array) -> jax.Array:
        z = conv(a, w, rules, b=per_filter, **CORRELATION) + per_position
        return jnp.sum(z * delta)

    each, whole = jax.grad(weighted, (0, 1))(jnp.zeros(delta.shape), jnp.zeros(3))
    claims.equal("one per position, as in the article: ∂C/∂b[x, y] = δ[x, y]", each, delta)
    claims.equal("one per filter, as in the frameworks: ∂C/∂b = Σ δ[x, y]", whole, delta.sum((0, 1)))
    claims.equal("jaxconv.conv_bias_grad", jaxconv.conv_bias_grad(delta[None]), delta.sum((0, 1)))


def sigmoid(z: Any) -> Any:
    return 1 / (1 + np.exp(-z))


def five_steps(parameters: list[Any], x: np.ndarray, target: np.ndarray) -> list[Any]:
    """The five-step algorithm for C = ½ Σ (a^L − target)²: (∂C/∂w, ∂C/∂b) of every layer."""
    activations = [x]  # 1. input
    for w, b in parameters:  # 2. feedforward: z = w ∗ a + b, a = σ(z)
        activations.append(sigmoid(feedforward(activations[-1], w) + b))
    a = activations[-1]
    delta = (a - target) * a * (1 - a)  # 3. output error: ∇_a C ⊙ σ′(z), σ′(z) = a(1 − a)
    gradients = [(kernel_gradient(delta, activations[-2]), delta)]  # 5. δ ∗ σ(ROT180(z)), and δ
    for layer in range(len(parameters) - 1, 0, -1):
        a = activations[layer]
        delta = backpropagate(delta, parameters[layer][0]) * a * (1 - a)  # 4. δ ∗ ROT180(w) · σ′(z)
        gradients.insert(0, (kernel_gradient(delta, activations[layer - 1]), delta))  # 5. as above
    return gradients


def gradient(convolution: Any, parameters: list[Any], x: np.ndarray, target: np.ndarray) -> list[Any]:
    """The same, differentiated by JAX."""

    def cost(parameters: Any) -> jax.Array:
        a = jnp.asarray(x)
        for w, b in parameters:
            a = jax.nn.sigmoid(convolution(a, w) + b)
        return jnp.sum((a - target) ** 2) / 2

    return jax.grad(cost)(jax.tree.map(jnp.asarray, parameters))


def by_lax(a: jax.Array, w: jax.Array) -> jax.Array:
    """No hand-written rule: a plain correlation with the kernel rotated first."""
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(a[None], w[::-1, ::-1], (1, 1), "VALID", dimension_numbers=numbers)[0]


def network(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    """The algorithm through three layers, in both precisions, against automatic differentiation in float64."""
    claims.section("The five-step algorithm through three sigmoid layers")
    x, parameters = rng.standard_normal((11, 10, 1)), []
    shape = x.shape
    for height, width, outputs in [(3, 3, 2), (2, 3, 4), (3, 2, 3)]:
        w = rng.standard_normal((height, width, shape[-1], outputs)) * 2 / np.sqrt(height * width * shape[-1])
        shape = (shape[0] - height + 1, shape[1] - width + 1, outputs)
        parameters.append((w, rng.standard_normal(shape)))
    single = jax.tree.map(lambda a: a.astype(np.float32), (parameters, x, rng.random(shape)))
    double = jax.tree.map(lambda a: a.astype(np.float64), single)  # the same numbers, carried further

    exact = gradient(by_lax, *double)
    # Not tuned but measured: how far automatic differentiation in float32 is from itself in float64.
    rounding = apart(paired(gradient(by_lax, *single), exact))
    claims.figure("automatic differentiation in float32, from itself in float64", f"{rounding:.2g} eps")
    for dtype, numbers in (("float32", single), ("float64", double)):
        claims.close(f"{dtype}: by hand = jax.grad", five_steps(*numbers), exact, 8 * rounding)
        ours = gradient(lambda a, w: conv(a, w, rules, **CONVOLUTION), *numbers)
        claims.close(f"{dtype}: jaxconv = jax.grad", ours, exact, 8 * rounding)


# The readers' questions


def why_rotate(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("Why ROT180 when calculating the gradient?")
    x, w, delta = distinct(rng, 5, 5), distinct(rng, 3, 3), distinct(rng, 3, 3)
    chain = np.zeros_like(x)  # Σ over x′ of δ[x′] · ∂z[x′]/∂x, the weight being the one that leads from x to x′
    for after in np.ndindex(delta.shape):
        for k in np.ndindex(w.shape):
            before = tuple(np.add(after, 2) - k)  # z[x′] reads x[x′ − a]; output 0 of a valid convolution is x′ = 2
            chain[before] += delta[after] * w[k]
    ours = input_grad(delta[..., None], w[..., None, None], x.shape, rules, **CONVOLUTION)[..., 0]
    claims.equal("the chain rule, term by term", ours, chain)
    claims.equal("is δ ∗ ROT180(w)", full(delta, rot180(w)), chain)
    claims.differ("without rotation it is something else", full(delta, w), chain)
    even = w + rot180(w)
    claims.equal("unless the kernel is its own rotation", full(delta, even), full(delta, rot180(even)))

    # An edge detector is minus its own rotation.
    edge, target = w - rot180(w), distinct(rng, 3, 3)
    delta = valid(x, edge) - target  # of C = ½ Σ (z − target)²
    right, wrong = full(delta, rot180(edge)), full(delta, edge)
    claims.equal("for an edge detector, w = −ROT180(w), it is exactly −∂C/∂x", wrong, -right)
    start, down, up = (np.sum((valid(x - 1e-4 * dx, edge) - target) ** 2) / 2 for dx in (0 * x, right, wrong))
    claims.holds("so that descent climbs", down < start < up, f"C {start:.0f}: {down:.0f} with, {up:.0f} without")


def sizes(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("A 5×5 δ above a 9×9 layer: which size has the gradient?")
    delta, w = distinct(rng, 5, 5), distinct(rng, 5, 5)
    claims.holds("stride 1: the kernel was 5×5, and full gives 5 + 5 − 1", full(delta, rot180(w)).shape == (9, 9))
    found = []
    for taps, stride, padding in np.ndindex(10, 5, 5):
        if taps and stride and (9 + 2 * padding - taps) // stride + 1 == 5:
            options: dict[str, Any] = {"stride": stride, "padding": padding, "rules": rules}
            g, kernel = jnp.ones((1, 5, 5, 1)), jnp.ones((taps, taps, 1, 1))
            dx = jax.eval_shape(lambda g, w, o=options: jaxconv.conv_input_grad(g, w, (9, 9), **o), g, kernel)
            found.append(dx.shape == (1, 9, 9, 1))
    claims.holds("every other kernel, stride and padding from 9 to 5: 9×9 too", all(found), f"{len(found)} ways")
    claims.raises(
        "a kernel that does not lead from 9 to 5 is an error",
        ValueError,
        lambda: jaxconv.conv_input_grad(jnp.ones((1, 5, 5, 1)), jnp.ones((3, 3, 1, 1)), (9, 9), padding="VALID"),
    )


def picture(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("The picture's values: d11·w21 + d12·w22, or d11·w12 + d12·w11?")
    delta, w = np.zeros((2, 2)), np.zeros((2, 2))
    corner = printed((0, 1))  # row 0, column 1

    def dx(options: dict[str, Any]) -> Any:
        return lambda d, w: input_grad(d[..., None], w[..., None, None], (3, 3), rules, **options)[..., 0]

    drawn, asked = {(11, 21): 1.0, (12, 22): 1.0}, {(11, 12): 1.0, (12, 11): 1.0}
    for text, form, right in (
        ("the picture's is right: δ ∗ ROT180(w) flips twice", lambda d, w: full(d, rot180(w)), drawn),
        ("and is ∂C/∂x where the forward pass is a convolution", dx(CONVOLUTION), drawn),
        ("the reader's slides ROT180(w) over δ unflipped", lambda d, w: correlation(np.pad(d, 1), rot180(w)), asked),
        ("and is ∂C/∂x where the forward pass is a correlation", dx(CORRELATION), asked),
    ):
        found = terms(form, delta, w)[corner]
        claims.holds(text, found == right, " + ".join(f"d{d}·w{w}" for d, w in found))


def full_correlation(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("Full correlation with the unrotated kernel")
    delta, w = distinct(rng, 4, 5), distinct(rng, 3, 2)
    padded = np.pad(delta, [(k - 1, k - 1) for k in w.shape])
    claims.equal("is full convolution with the rotated one", correlation(padded, w), full(delta, rot180(w)))
    ours = input_grad(delta[..., None], w[..., None, None], (6, 6), rules, **CONVOLUTION)[..., 0]
    claims.equal("is jaxconv's input gradient with flip_kernel=True", ours, correlation(padded, w))


def strides(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("Stride > 1: is the backward convolution strided too? (1-D, 2-D, 3-D)")
    by_hand, by_jaxconv, again = [], [], []
    for spatial, taps, stride in [((9,), (3,), (2,)), ((9, 8), (3, 2), (2, 3)), ((5, 7, 6), (2, 3, 2), (3, 2, 2))]:
        a, w = distinct(rng, *spatial), distinct(rng, *taps)
        steps = tuple(slice(None, None, s) for s in stride)
        z = valid(a, w)[steps]
        delta = distinct(rng, *z.shape)
        dilated = np.zeros([(n - 1) * s + 1 for n, s in zip(delta.shape, stride, strict=True)])
        dilated[steps] = delta
        da = np.zeros_like(a)  # what lies beyond the last window is read by none
        reached = within((0,) * a.ndim, tuple(n + k - 1 for n, k in zip(dilated.shape, taps, strict=True)))
        da[reached] = full(dilated, rot180(w))
        by_hand.append((z, da, valid(rot180(a[reached]), dilated)))
        options = {**CONVOLUTION, "stride": stride}
        channels = (a[..., None], w[..., None, None], delta[..., None])
        by_jaxconv.append(
            (
                conv(*channels[:2], rules, **options)[..., 0],
                input_grad(channels[2], channels[1], spatial, rules, **options)[..., 0],
                kernel_grad(channels[0], channels[2], taps, rules, **options)[..., 0, 0],
            )
        )
        again.append((full(delta, rot180(w))[steps].shape, a.shape))
    z, da, dw = zip(*by_hand, strict=True)
    our_z, our_da, our_dw = zip(*by_jaxconv, strict=True)
    claims.equal("forward: every s-th of w ∗ a", our_z, z)
    claims.equal("∂C/∂a: no, δ is dilated, s − 1 zeros between; the step is 1", our_da, da)
    claims.equal("∂C/∂w: the same dilated δ ∗ ROT180(a)", our_dw, dw)
    shapes = ", ".join(f"{small} for {large}" for small, large in again)
    claims.holds("strided again it has not even the shape", all(small != large for small, large in again), shapes)


def does_it_matter(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("Convolution or correlation: does it matter?")
    x, w = distinct(rng, 6, 5, 2), distinct(rng, 3, 2, 2, 3)
    lax_z = lax.conv_general_dilated(
        jnp.asarray(x)[None], jnp.asarray(w), (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )[0]
    mirrored = w[::-1, ::-1]
    claims.equal("JAX's conv is a correlation: that of the rotated kernel is ∗", lax_z, feedforward(x, mirrored))
    claims.differ("one kernel, two maps", conv(x, w, rules, **CORRELATION), conv(x, w, rules, **CONVOLUTION))

    images = rng.standard_normal((8, 9, 9, 1))
    kernels = [rng.standard_normal((3, 3, 1, 4)) / 3, rng.standard_normal((3, 2, 4, 2)) / 5]
    targets = rng.random((8, 5, 6, 2))

    def loss(kernels: list[Any], options: dict[str, Any]) -> jax.Array:
        y = jnp.asarray(images)
        for w in kernels:
            y = jaxconv.sigmoid(jaxconv.conv(y, w, rules=rules, **options))
        return jnp.sum((y - targets) ** 2) / 2

    def train(kernels: list[Any], options: dict[str, Any]) -> tuple[list[float], list[Any]]:
        step = jax.jit(jax.value_and_grad(lambda kernels: loss(kernels, options)))
        losses = []
        for _ in range(30):
            value, gradient = step(kernels)
            losses.append(float(value))
            kernels = jax.tree.map(lambda w, g: w - 0.02 * g, kernels, gradient)
        return losses, kernels

    def mirror(kernels: list[Any]) -> list[Any]:
        return [jnp.asarray(w)[::-1, ::-1] for w in kernels]

    losses, learned = train(mirror(mirror(kernels)), CORRELATION)
    losses_flipped, learned_flipped = train(mirror(kernels), CONVOLUTION)
    # 1.05 per step, as in experiments.rules_agree, and 10 roundings a step.
    drift = 10 * 1.05**30
    claims.holds("training lowers the loss", losses[-1] < losses[0], f"{losses[0]:.3f} → {losses[-1]:.3f}")
    claims.close("trained from mirrored kernels: the same 30 losses", np.array(losses_flipped), np.array(losses), drift)
    claims.close("the learned kernels are mirror images", learned_flipped, mirror(learned), drift)


def typo(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("Step 2: is it z^l inside σ?")
    a, w, delta = distinct(rng, 6, 6), distinct(rng, 3, 3), distinct(rng, 4, 4)
    z = valid(a, w)
    claims.holds("z^l = w ∗ σ(z^l) does not fit", valid(z, w).shape != z.shape, f"{valid(z, w).shape} for {z.shape}")
    claims.holds("z^l = w ∗ σ(z^(l−1)) does", valid(a, w).shape == z.shape)
    size = valid(rot180(z), delta).shape
    text = "∂C/∂w = δ^l ∗ σ(ROT180(z^l)) neither, though the derivation prints z^l on its way"
    claims.holds(text, size != w.shape, f"{size} for {w.shape}")
    ours = kernel_grad(a[..., None], delta[..., None], (3, 3), rules, **CONVOLUTION)[..., 0, 0]
    claims.equal("with l−1, as its last line has it, it is the gradient", ours, valid(rot180(a), delta))


def each_pixel(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("z, w, b with indices x, y: for each pixel?")
    a, w, delta = distinct(rng, 5, 6), distinct(rng, 2, 3), distinct(rng, 4, 4)
    z, untied = np.zeros_like(delta), np.zeros((*delta.shape, *w.shape))
    for x, y in np.ndindex(z.shape):
        patch = a[x : x + 2, y : y + 3]
        z[x, y] = np.sum(rot180(w) * patch)
        untied[x, y] = delta[x, y] * rot180(patch)  # ∂C/∂w[x, y], were every pixel to have a kernel of its own
    ours = conv(a[..., None], w[..., None, None], rules, **CONVOLUTION)[..., 0]
    claims.equal("z: yes, pixel by pixel", ours, z)
    ours = kernel_grad(a[..., None], delta[..., None], w.shape, rules, **CONVOLUTION)[..., 0, 0]
    claims.equal("w: no, it is the filter's; its gradient sums what each pixel wants", ours, untied.sum((0, 1)))
    claims.holds("and they want different things", len(np.unique(untied[..., 0, 0])) > 1)


def one_output(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("A 3×3 kernel on a 3×3 input: no weight sharing?")
    x, w, delta = distinct(rng, 3, 3, 2), distinct(rng, 3, 3, 2, 4), distinct(rng, 1, 1, 4)
    sums = {taps: terms(correlation, np.zeros((3, 3)), np.zeros((taps, taps))) for taps in (2, 3)}
    uses = {taps: sum(w == 11 for pairs in sums[taps].values() for _, w in pairs) for taps in sums}
    claims.holds("outputs that read w11: 4 of a 2×2 kernel, 1 of a 3×3", uses == {2: 4, 3: 1}, str(uses))
    flat = x.ravel() @ w.reshape(-1, 4)
    claims.equal("the output is 1×1, a fully connected layer", conv(x, w, rules, **CORRELATION), flat.reshape(1, 1, 4))
    dw = kernel_grad(x, delta, (3, 3), rules, **CORRELATION)
    claims.equal("true: ∂C/∂w is one product, no sum", dw, x[..., None] * delta[0, 0])
    dx = input_grad(delta, w, (3, 3), rules, **CORRELATION)
    claims.equal("∂C/∂x sums over filters only", dx, w @ delta[0, 0])
    batch, deltas = distinct(rng, 5, 3, 3, 2), distinct(rng, 5, 1, 1, 4)
    shared = jaxconv.conv_kernel_grad(batch, deltas, (3, 3), rules=rules, **CORRELATION)
    claims.equal("but all examples share it", shared, np.einsum("nhwc,no->hwco", batch, deltas[:, 0, 0]))


def ten_channels(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    claims.section("10 channels in, 1 map out: how do 10 come back from 1?")
    x, w = distinct(rng, 5, 5, 10), distinct(rng, 3, 3, 10, 1)
    z = conv(x, w, rules, **CONVOLUTION)
    delta = distinct(rng, *z.shape)
    dx = input_grad(delta, w, (5, 5), rules, **CONVOLUTION)
    claims.holds("forward: one filter, 10 deep, gives one map", z.shape == (3, 3, 1))
    slices = np.stack([full(delta[..., 0], rot180(w[..., c, 0])) for c in range(10)], -1)
    claims.equal("backward: its 10 slices each meet the one δ", dx, slices)
    geometry = conv_geometry("conv", (1, *x.shape), w.shape, **CONVOLUTION)
    turned = rotated.channel_transposed(jnp.asarray(w), geometry)
    claims.holds(
        "channels change places: 10 filters, 1 deep", turned.shape == (3, 3, 1, 10), f"{w.shape} → {turned.shape}"
    )
    claims.equal("and an ordinary layer computes ∂C/∂x", dx, conv(delta, turned, padding=2))


def prove(claims: Claims, rules: Rules, rng: np.random.Generator) -> None:
    article = (perceptron, derivation, biases, network)
    questions = (
        why_rotate, sizes, picture, full_correlation, strides, does_it_matter, typo, each_pixel, one_output,
        ten_channels,
    )  # fmt: skip
    for part in article + questions:
        part(claims, rules, rng)


if __name__ == "__main__":
    sys.exit(main(prove, __doc__))
