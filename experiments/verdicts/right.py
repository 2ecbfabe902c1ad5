"""Right gradients: every public op under every written rule set, over random geometries, in every dtype.

Rule sets and dtypes are dealt in turn; three and four have no common divisor, so they meet in all combinations.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxconv
from experiments.verdicts.case import Case, arrays, generator, integers, normal
from experiments.verdicts.right_elsewhere import ELSEWHERE
from jaxconv.rules import ConvRules, rotated, textbook

DTYPES = ("float32", "bfloat16", "float16", "float64")
RULES = ("textbook", "rotated", "fast")
MIXED = ConvRules(textbook.input_grad, rotated.kernel_grad)

Shape = tuple[int, ...]
Drawn = tuple[str, Callable[..., Any], tuple[Shape, ...]]


def dealt(rows: Iterator[Drawn] | list[Drawn]) -> list[Case]:
    """A case for every (name, function that takes `rules`, shapes of its arguments)."""
    cases = []
    for (name, function, shapes), rules, dtype in zip(rows, itertools.cycle(RULES), itertools.cycle(DTYPES)):
        name = f"{name} {rules} {dtype}"
        cases.append(Case(name, partial(function, rules=rules), normal(name, *shapes), (dtype,)))
    return cases


def result(function: Callable[..., Any], *shapes: Shape) -> Shape | None:
    """The shape of the result, None where there is none."""
    try:
        return jax.eval_shape(function, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).shape
    except ValueError:
        return None


# Random geometries


def draw(random: np.random.Generator) -> tuple[int, tuple[int, ...], dict[str, Any]]:
    """A rank, window sizes, and the options of a convolution or pool."""
    rank = int(random.choice([1, 2, 2, 2, 3]))

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(int(i) for i in random.integers(low, high + 1, rank))

    pairs = tuple(zip(each(-2, 2), each(-1, 3), strict=True))
    padding = ("SAME", "VALID", int(random.integers(0, 2)), pairs, pairs)
    options = {
        "stride": each(1, 3),
        "padding": padding[random.integers(0, 5)],
        "dilation": each(1, 2),
        "layout": str(random.choice(["NHWC", "NCHW"])),
    }
    return rank, each(1, 3), options


def placed(layout: str, batch: int, spatial: Shape, channels: int) -> Shape:
    return (batch, *spatial, channels) if layout == "NHWC" else (batch, channels, *spatial)


def titled(op: str, options: dict[str, Any], *shapes: Shape) -> str:
    """A name made of the data."""
    words = ["×".join(map(str, s)) for s in shapes]
    plain = ("NHWC", "1", "(1,)", "(1,1)", "(1,1,1)", "False")
    said = {k: str(v).replace(" ", "") for k, v in options.items()}
    words += [f"{k}={v}" for k, v in said.items() if v not in plain]
    return " ".join([op, *words])


def convolutions(count: int, seed: int, transposed: bool = False) -> Iterator[tuple[Shape, Shape, dict[str, Any]]]:
    """Shapes of x and w and options, such that something is computed."""
    random, op = np.random.default_rng(seed), jaxconv.conv_transpose if transposed else jaxconv.conv
    while count:
        rank, taps, options = draw(random)
        groups, c, o, batch = (int(i) for i in random.integers(1, 3, 4))
        options["groups"] = groups
        if not transposed:
            options["input_dilation"] = int(random.choice([1, 1, 1, 2]))
            options["flip_kernel"] = bool(random.random() < 0.2)
        spatial = tuple(int(i) for i in random.integers(2, 5 if rank == 3 else 7, rank))
        x = placed(options["layout"], batch, spatial, groups * (o if transposed else c))
        w = (*taps, c, groups * o) if options["layout"] == "NHWC" else (groups * o, c, *taps)
        y = result(partial(op, **options), x, w)
        if y is not None and 0 < np.prod(y) < 400:
            count -= 1
            yield x, w, options


def convolved(count: int, seed: int, name: str) -> Iterator[Drawn]:
    op = getattr(jaxconv, name)
    for i, (x, w, options) in enumerate(convolutions(count, seed, "transpose" in name)):
        bias: tuple[Shape, ...] = ()
        if i % 3 == 2:
            channel = -1 if options["layout"] == "NHWC" else 1
            bias = ((jax.eval_shape(partial(op, **options), *_like(x, w)).shape[channel],),)
        yield titled(name, options, x, w), partial(op, **options), (x, w, *bias)


def _like(*shapes: Shape) -> list[jax.ShapeDtypeStruct]:
    return [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]


def gradients(count: int, seed: int, name: str) -> Iterator[Drawn]:
    """conv_input_grad(g, w), conv_kernel_grad(x, g), and the same of conv_transpose."""
    op, forward = getattr(jaxconv, name), getattr(jaxconv, name.rsplit("_", 2)[0])
    for x, w, options in convolutions(count, seed, "transpose" in name):
        g = jax.eval_shape(partial(forward, **options), *_like(x, w)).shape
        if name.endswith("input_grad"):
            spatial = x[1:-1] if options["layout"] == "NHWC" else x[2:]
            yield titled(name, options, x, w), partial(_input_grad, op, spatial, options), (g, w)
        else:
            taps = w[:-2] if options["layout"] == "NHWC" else w[2:]
            yield titled(name, options, x, w), partial(_kernel_grad, op, taps, options), (x, g)


def _input_grad(op: Any, spatial: Shape, options: Any, g: jax.Array, w: jax.Array, rules: str) -> jax.Array:
    return op(g, w, spatial, **options, rules=rules)


def _kernel_grad(op: Any, taps: Shape, options: Any, x: jax.Array, g: jax.Array, rules: str) -> jax.Array:
    return op(x, g, taps, **options, rules=rules)


def pooled(count: int, seed: int, name: str, **given: Any) -> Iterator[Drawn]:
    random, op = np.random.default_rng(seed), getattr(jaxconv, name)
    while count:
        rank, window, options = draw(random)
        x = placed(options["layout"], 2, tuple(int(i) for i in random.integers(2, 6, rank)), 2)
        options |= given
        y = result(partial(op, window=window, **options), x)
        if y is not None and 0 < np.prod(y) < 400:
            count -= 1
            yield titled(name, {"window": window, **options}, x), partial(op, window=window, **options), (x,)


# Ops of fixed shapes

IMAGE, C = (2, 4, 5, 4), (4,)


def norm(name: str, **options: Any) -> Drawn:
    return titled(name, options, IMAGE), partial(getattr(jaxconv, name), **options), (IMAGE, C, C)


def group_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, rules: str) -> jax.Array:
    return jaxconv.group_norm(x, 2, scale, bias, rules=rules)


def batch_norm(x: jax.Array, scale: jax.Array, bias: jax.Array, *, rules: str, **options: Any) -> jax.Array:
    dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    state = {"mean": jnp.full(4, 0.1, dtype), "var": jnp.full(4, 0.5, dtype)}
    return jaxconv.batch_norm(x, scale, bias, state, **options, rules=rules)[0]


def activation(name: str, *static: Any, scale: float = 1.0, **options: Any) -> Drawn:
    function = getattr(jaxconv, name)

    def f(x: jax.Array, rules: str) -> jax.Array:
        return function(scale * x, *static, **options, rules=rules)

    return " ".join([titled(name, options), *map(str, static)]), f, ((4, 7),)


def unpooled(y: jax.Array, rules: str) -> jax.Array:
    x = jnp.asarray(generator("unpooled").standard_normal((2, 5, 6, 2)), jnp.float32)
    indices = jaxconv.max_pool(x, 2, stride=1, return_indices=True)[1]
    return jaxconv.max_unpool(y, indices, 2, (5, 6), stride=1, rules=rules)


def dropped(x: jax.Array, rules: str) -> jax.Array:
    return jaxconv.dropout(x, 0.3, jax.random.key(7), rules=rules)


def soft(z: jax.Array, targets: jax.Array, rules: str) -> jax.Array:
    return jaxconv.softmax_cross_entropy(z, jax.nn.softmax(targets).astype(z.dtype), rules=rules)


def bias_grad(g: jax.Array, rules: str, **options: Any) -> jax.Array:
    return jaxconv.conv_bias_grad(g, **options)


PADS = [((1, 2), (2, 1)), ((0, 3), (-1, 2))]
FIXED: list[Drawn] = [
    ("dense 3×5", jaxconv.dense, ((3, 5), (5, 2))),
    ("dense of a sequence", jaxconv.dense, ((2, 3, 5), (5, 2), (2,))),
    ("dense with a bias", jaxconv.dense, ((4, 5), (5, 3), (3,))),
    ("dense of one vector", jaxconv.dense, ((5,), (5, 3), (3,))),
    ("dropout 6×7", dropped, ((6, 7),)),
    ("dropout 40", dropped, ((40,),)),
    ("max_unpool", unpooled, ((2, 4, 5, 2),)),
    ("max_unpool once more", unpooled, ((2, 4, 5, 2),)),
    ("global_avg_pool 2-D", jaxconv.global_avg_pool, (IMAGE,)),
    ("global_avg_pool 1-D NCHW", partial(jaxconv.global_avg_pool, layout="NCHW"), ((2, 3, 5),)),
    ("conv_bias_grad", bias_grad, (IMAGE,)),
    ("conv_bias_grad NCHW", partial(bias_grad, layout="NCHW"), ((2, 3, 5),)),
    *(
        (titled("pad", {"mode": mode, "padding": widths}), partial(jaxconv.pad, padding=widths, mode=mode), (IMAGE,))
        for mode in ("zero", "circular", "reflect", "edge")
        for widths in PADS
    ),
    activation("relu"),
    activation("leaky_relu", 0.1),
    activation("relu6", scale=4.0),
    activation("elu", 0.7),
    activation("sigmoid"),
    activation("tanh"),
    activation("softplus"),
    activation("silu"),
    activation("gelu", approximate=True),
    activation("gelu", approximate=False),
    norm("layer_norm"),
    norm("layer_norm", eps=0.1),
    norm("rms_norm"),
    norm("instance_norm"),
    norm("rms_norm", eps=0.1),
    ("layer_norm without parameters", jaxconv.layer_norm, (IMAGE,)),
    ("group_norm", group_norm, (IMAGE, C, C)),
    ("group_norm of sequences", group_norm, ((3, 7, 4), C, C)),
    ("instance_norm NCHW", partial(jaxconv.instance_norm, layout="NCHW"), ((2, 4, 5, 3), C, C)),
    ("batch_norm", partial(batch_norm, train=True), (IMAGE, C, C)),
    ("batch_norm eps=0.1", partial(batch_norm, train=True, eps=0.1), (IMAGE, C, C)),
    ("batch_norm for inference", partial(batch_norm, train=False), (IMAGE, C, C)),
    ("mean_squared_error", jaxconv.mean_squared_error, ((5, 3), (5, 3))),
    ("mean_squared_error of vectors", jaxconv.mean_squared_error, ((12,), (12,))),
    ("softmax_cross_entropy of soft labels", soft, ((5, 4), (5, 4))),
    ("softmax_cross_entropy of soft labels, one example", soft, ((7,), (7,))),
]


# Integer arguments, trees, several outputs: networks


def entropies(count: int) -> Iterator[Case]:
    for i, rules, dtype in zip(range(count), itertools.cycle(RULES), itertools.cycle(DTYPES), strict=False):
        name = f"softmax_cross_entropy smoothing={i % 3 / 10} {rules} {dtype}"
        f = partial(jaxconv.softmax_cross_entropy, label_smoothing=i % 3 / 10, rules=rules)
        yield Case(name, f, partial(labelled, name, (6, 5)), (dtype,))


def labelled(name: str, shape: Shape, dtype: Any) -> tuple[Any, ...]:
    return (*arrays(name, dtype, shape), integers(name, shape[-1], shape[:-1]))


def network(parameters: dict[str, Any], x: jax.Array, labels: jax.Array, *, rules: str) -> jax.Array:
    h = jaxconv.conv(x, parameters["conv"]["w"], parameters["conv"]["b"], rules=rules)
    h = jaxconv.max_pool(jaxconv.relu(h, rules=rules), 2, rules=rules)
    z = jaxconv.dense(h.reshape(h.shape[0], -1), **parameters["dense"], rules=rules)
    return jaxconv.softmax_cross_entropy(z, labels, rules=rules).mean()


def residual(parameters: dict[str, Any], x: jax.Array, labels: jax.Array, *, rules: str) -> tuple[jax.Array, jax.Array]:
    """Two outputs: the features and the pooled logits."""
    h = jaxconv.layer_norm(jaxconv.conv(x, **parameters["conv"], rules=rules), rules=rules)
    h = h + jaxconv.gelu(jaxconv.conv(h, jnp.tile(parameters["conv"]["w"], (1, 1, 2, 1))[:, :, :4], rules=rules))
    p = jax.nn.one_hot(labels, 4, dtype=x.dtype)
    return h, jaxconv.global_avg_pool(h, rules=rules) * p


def trained(name: str, dtype: Any) -> tuple[Any, ...]:
    x, w, b, u, c = arrays(name, dtype, (3, 4, 4, 2), (3, 3, 2, 4), (4,), (16, 3), (3,))
    parameters = {"conv": {"w": w, "b": b}, "dense": {"w": u, "b": c}}
    return parameters, x, integers(name, 3, (3,))


def residual_arguments(name: str, dtype: Any) -> tuple[Any, ...]:
    parameters, x, labels = trained(name, dtype)
    return {"conv": parameters["conv"]}, x, labels


def drop_in(lhs: jax.Array, rhs: jax.Array, *, rules: str, **options: Any) -> jax.Array:
    return jaxconv.conv_general_dilated(lhs, rhs, **options)


DROP_IN: list[Drawn] = [
    (titled("conv_general_dilated", options, lhs, rhs), partial(drop_in, **options), (lhs, rhs))
    for lhs, rhs, options in (
        ((2, 3, 7), (4, 3, 2), {"window_strides": (2,), "padding": "SAME"}),
        ((2, 3, 7), (4, 3, 3), {"window_strides": (1,), "padding": ((2, -1),), "rhs_dilation": (2,)}),
        ((2, 4, 5, 6), (4, 2, 3, 2), {"window_strides": (1, 2), "padding": "VALID", "feature_group_count": 2}),
        ((4, 2, 5, 5), (4, 2, 3, 3), {"window_strides": (2, 1), "padding": "SAME", "batch_group_count": 2}),
        ((2, 2, 4, 3), (2, 2, 3, 2), {"window_strides": (1, 1), "padding": ((0, 1), (1, 0)), "lhs_dilation": (2, 3)}),
        ((1, 2, 3, 3, 3), (2, 2, 2, 2, 2), {"window_strides": (1, 1, 2), "padding": "SAME"}),
        (
            (2, 5, 6, 3),
            (3, 3, 3, 2),
            {"window_strides": (2, 2), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")},
        ),
        (
            (5, 2, 6, 3),
            (3, 2, 3, 3),
            {"window_strides": (1, 2), "padding": "VALID", "dimension_numbers": ("HNWC", "HOWI", "NCHW")},
        ),
    )
]

RIGHT: list[Case] = [
    *dealt(convolved(44, 0, "conv")),
    *dealt(convolved(16, 1, "conv_transpose")),
    *dealt(gradients(6, 2, "conv_input_grad")),
    *dealt(gradients(6, 3, "conv_kernel_grad")),
    *dealt(gradients(4, 4, "conv_transpose_input_grad")),
    *dealt(gradients(4, 5, "conv_transpose_kernel_grad")),
    *dealt(DROP_IN),
    *dealt(pooled(10, 6, "max_pool")),
    *dealt(pooled(6, 7, "avg_pool")),
    *dealt(pooled(4, 8, "avg_pool", count_padding=True)),
    *dealt(pooled(3, 9, "lp_pool", p=2)),
    *dealt(pooled(3, 10, "lp_pool", p=3.5)),
    *dealt(FIXED),
    *entropies(6),
    *(
        Case(name, partial(jaxconv.conv, stride=2, rules=MIXED), normal(name, (2, 5, 6, 3), (3, 2, 3, 2)), (dtype,))
        for name, dtype in ((f"conv under rules of one's own {dtype}", dtype) for dtype in DTYPES)
    ),
    *(
        Case(f"network {rules} {dtype}", partial(network, rules=rules), partial(trained, f"{rules}{dtype}"), (dtype,))
        for rules, dtype in zip((*RULES, "fast"), DTYPES, strict=True)
    ),
    *(
        Case(
            f"residual block {rules} {dtype}",
            partial(residual, rules=rules),
            partial(residual_arguments, f"residual {rules}{dtype}"),
            (dtype,),
        )
        for rules, dtype in zip(RULES, DTYPES[1:], strict=True)
    ),
    *ELSEWHERE,
]
