"""Every mistake in a call of a convolution is one message: function, argument, violated equation, remedy.

The messages are tested by their whole text, for arrays and for tracers; and nothing is compiled before they come.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxconv
from tests.support.agreement import compilations
from tests.support.refusal import refusal


def zeros(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return np.zeros(shape, dtype)


class Mistake(NamedTuple):
    """A call, the class of its error and the message after the function's name."""

    op: Callable[..., jax.Array]
    operands: tuple[Any, ...]
    options: dict[str, Any]
    error: type[Exception]
    message: str

    def __str__(self) -> str:
        return f"{self.op.__name__}: {self.message}"

    def assert_raised(self, call: Callable[..., Any], *operands: Any) -> None:
        """Of exactly this class and text, to the last character."""
        assert refusal(partial(call, *operands), self.error) == str(self)


X, W = zeros(2, 5, 6, 3), zeros(3, 3, 3, 4)  # NHWC, HWIO
G, V = zeros(2, 5, 6, 4), zeros(3, 3, 4, 3)  # δ of conv(X, W), and a kernel that conv_transpose(X, V) takes


def conv(message: str, *operands: Any, error: type[Exception] = ValueError, **options: Any) -> Mistake:
    return Mistake(jaxconv.conv, operands or (X, W), options, error, message)


def transposed(message: str, *operands: Any, error: type[Exception] = ValueError, **options: Any) -> Mistake:
    return Mistake(jaxconv.conv_transpose, operands or (X, V), options, error, message)


CHANNELS = [
    conv(
        "w.shape[2] * groups must equal x.shape[-1], but 3 * 1 != 6 (x is NHWC, w is HWIO). "
        'Did you pass NCHW? Say layout="NCHW", for x and w alike.',
        zeros(2, 3, 5, 6),
        zeros(4, 3, 3, 3),
    ),
    conv(
        "w.shape[1] * groups must equal x.shape[1], but 3 * 1 != 5 (x is NCHW, w is OIHW). "
        'Did you pass NHWC? Say layout="NHWC", for x and w alike.',
        layout="NCHW",
    ),
    conv(
        "w.shape[1] * groups must equal x.shape[-1], but 4 * 1 != 7 (x is NWC, w is WIO). "
        'Did you pass NCW? Say layout="NCHW", for x and w alike.',
        zeros(2, 4, 7),
        zeros(5, 4, 3),
    ),
    conv(
        "w.shape[3] * groups must equal x.shape[-1], but 2 * 1 != 4 (x is NDHWC, w is DHWIO). "
        'Did you pass NCDHW? Say layout="NCHW", for x and w alike.',
        zeros(1, 2, 4, 4, 4),
        zeros(3, 2, 3, 2, 3),
    ),
    conv(
        "w.shape[2] * groups must equal x.shape[-1], but 3 * 3 != 3 (x is NHWC, w is HWIO). "
        "Each kernel sees the channels of one group: w.shape[2] = x channels // groups.",
        groups=3,
    ),
    conv(
        "groups must divide the output channels w.shape[3], but 4 % 3 = 1 (w is HWIO).",
        X,
        zeros(3, 3, 1, 4),
        groups=3,
    ),
    conv(
        "groups must divide the output channels w.shape[0], but 5 % 2 = 1 (w is OIHW).",
        zeros(2, 4, 5, 6),
        zeros(5, 2, 3, 3),
        groups=2,
        layout="NCHW",
    ),
    transposed(
        "w.shape[3] must equal the channels of x, but 4 != 3 (x is NHWC; w is the HWIO kernel of the convolution that "
        "this one transposes: I counts outputs here, O inputs). Did you exchange I and O, "
        "or pass the other layout? There are NHWC and NCHW.",
        X,
        W,
    ),
    transposed("groups must divide the channels of x, but 3 % 2 = 1.", groups=2),
]

KINDS = [
    conv("flip_kernel must be True or False, but is 'no'.", error=TypeError, flip_kernel="no"),
    conv(
        "preferred_element_type must be x's dtype or a wider floating one, but bfloat16 is neither for float32. "
        "Convert the result: y.astype(...).",
        error=TypeError,
        preferred_element_type=jnp.bfloat16,
    ),
    conv(
        "preferred_element_type must be x's dtype or a wider floating one, but int32 is neither for float32. "
        "Convert the result: y.astype(...).",
        error=TypeError,
        preferred_element_type=np.int32,
    ),
    conv(
        "w must have at least one tap along every spatial axis, but its taps are (3, 0) (w.shape = (3, 0, 3, 4)).",
        X,
        zeros(3, 0, 3, 4),
    ),
    Mistake(
        jaxconv.conv_kernel_grad,
        (X, G, 3),
        {"groups": 2},
        ValueError,
        "groups must divide the channels of x, but 3 % 2 = 1.",
    ),
    Mistake(
        jaxconv.conv_transpose_kernel_grad,
        (X, G, 3),
        {"groups": 3},
        ValueError,
        "groups must divide the channels of g, but 4 % 3 = 1.",
    ),
]

AXES = [
    conv(
        "x must have a batch, a channel and at least 1 spatial axis (NWC), but x.shape = (7, 3) has 2 < 3 axes. "
        "A single example needs a batch axis: x[None].",
        zeros(7, 3),
        zeros(3, 3),
    ),
    conv(
        "w must have as many axes as x, but 3 != 4 (w.shape = (3, 3, 4), x.shape = (2, 5, 6, 3)). "
        "A single example needs a batch axis: [None].",
        X,
        zeros(3, 3, 4),
    ),
    transposed(
        "w must have as many axes as x, but 4 != 5 (w.shape = (3, 3, 4, 3), x.shape = (1, 2, 5, 6, 3)). "
        "A single example needs a batch axis: [None].",
        X[None],
        V,
    ),
]

PADDING = [
    conv(
        "padding must be one of SAME, SAME_LOWER, VALID, CAUSAL, an int, one int per spatial axis or (lo, hi) pairs, "
        "but is None.",
        error=TypeError,
        padding=None,
    ),
    conv("padding[0] must be an int or a (lo, hi) pair, but is 'SAME'.", error=TypeError, padding=("SAME", "SAME")),
    *(
        of(
            "padding must be one of SAME, SAME_LOWER, VALID, CAUSAL, an int, one int per spatial axis "
            "or (lo, hi) pairs, but is 'FULL'.",
            padding="FULL",
        )
        for of in (conv, transposed)
    ),
    conv(
        'padding="CAUSAL" needs exactly 1 spatial axis, but there are 2. Give (lo, hi) pairs instead.', padding="CAUSAL"
    ),
    *(
        conv(
            f"padding must have one entry per spatial axis, but len(padding) = {len(padding)} != 2. "
            "Give an int, one int per axis or (lo, hi) pairs.",
            padding=padding,
        )
        for padding in [(1,), [1, 1, 1], ((1, 2),), ()]
    ),
    conv("padding[1] must be a (lo, hi) pair, but has 1 entries.", padding=((1, 2), (1,))),
    conv("padding[0] must be a (lo, hi) pair, but has 3 entries.", padding=((1, 2, 3), (1, 1))),
    conv(
        "padding must be one of SAME, SAME_LOWER, VALID, CAUSAL, an int, one int per spatial axis or (lo, hi) pairs, "
        "but is True.",
        error=TypeError,
        padding=True,
    ),
    conv("padding[0] must be an int or a (lo, hi) pair, but is 1.5.", error=TypeError, padding=(1.5, 1)),
    conv("padding[1][0] must be an int, but is 0.5.", error=TypeError, padding=(1, (0.5, 1))),
    conv("padding[0][1] must be an int, but is True.", error=TypeError, padding=((1, True), (1, 1))),
    conv(
        "padding must not crop more than there is, but spatial axis 0 has 5 elements and 5 + -3 + -3 < 0.", padding=-3
    ),
    conv(
        "padding must not crop more than there is, but spatial axis 1 has 11 elements and 11 + 2 + -14 < 0.",
        padding=((0, 0), (2, -14)),
        input_dilation=2,
    ),
    transposed(
        "padding must leave an output, but (n − 1)·s + span − lo − hi + output_padding = (-1, 0) "
        "for n = (5, 6), s = (1, 1), span = (3, 3), (lo, hi) = ((4, 4), (4, 4)).",
        padding=4,
    ),
]

INTEGERS = [
    mistake
    for of, name, least in [
        (conv, "stride", 1),
        (conv, "dilation", 1),
        (conv, "input_dilation", 1),
        (transposed, "stride", 1),
        (transposed, "dilation", 1),
        (transposed, "output_padding", 0),
    ]
    for mistake in [
        of(f"{name} must be at least {least}, but {least - 1} < {least}.", **{name: least - 1}),
        of(f"{name}[1] must be at least {least}, but -2 < {least}.", **{name: (1, -2)}),
        of(f"{name} must be an int, but is 1.0.", error=TypeError, **{name: 1.0}),
        of(f"{name} must be an int, but is True.", error=TypeError, **{name: True}),
        of(f"{name}[0] must be an int, but is 2.0.", error=TypeError, **{name: [2.0, 1]}),
        of(f"{name} must be an int or one int per spatial axis, but is '2'.", error=TypeError, **{name: "2"}),
        of(f"{name} must be an int or have one entry per spatial axis, but len({name}) = 3 != 2.", **{name: (1, 1, 1)}),
    ]
] + [
    conv("groups must be at least 1, but 0 < 1.", groups=0),
    conv("groups must be an int, but is 1.0.", error=TypeError, groups=1.0),
    transposed("groups must be at least 1, but -1 < 1.", groups=-1),
    transposed(
        "output_padding must be smaller than the stride or the dilation, but 2 >= max(2, 1). "
        "It only says which of the sizes that a stride merges is meant.",
        stride=2,
        output_padding=2,
    ),
]

CHOICES = [
    mistake
    for of in (conv, transposed)
    for mistake in [
        of("layout must be one of NHWC, NCHW, for any number of spatial axes, but is 'NHCW'.", layout="NHCW"),
        of(
            "rules must be one of textbook, rotated, fast, autodiff or a ConvRules(input_grad, kernel_grad), "
            "but is 'slow'.",
            rules="slow",
        ),
    ]
]

DTYPES = [
    mistake
    for of, w in ((conv, W), (transposed, V))
    for mistake in [
        of(
            "w.dtype must equal x.dtype, but float64 != float32. Convert one: w.astype(x.dtype).",
            X,
            w.astype(np.float64),
            error=TypeError,
        ),
        of(
            "x.dtype must be floating (float32, bfloat16, float16 or, under x64, float64), but is int32. "
            "Convert it: x.astype(jnp.float32).",
            X.astype(np.int32),
            w,
            error=TypeError,
        ),
        of(
            "b.dtype must equal x.dtype, but float64 != float32. Convert one: b.astype(x.dtype).",
            X,
            w,
            zeros(4, dtype=np.float64),
            error=TypeError,
        ),
        of(
            "b must hold one number per output channel, but b.shape = (1, 4) != (4,). "
            "A bias per position is an addition: y + b.",
            X,
            w,
            zeros(1, 4),
        ),
    ]
]


def gradient(op: Callable[..., jax.Array], size: Any, message: str, *operands: Any, **options: Any) -> Mistake:
    option = "kernel_shape" if "kernel" in op.__name__ else "spatial_shape"
    return Mistake(op, operands, {option: size, **options}, ValueError, message)


GRADIENTS = [
    gradient(
        jaxconv.conv_input_grad,
        (5, 7),
        "g.shape must be that of the forward output, but (2, 5, 6, 4) != (2, 5, 7, 4). "
        "With these options, the forward pass maps spatial (5, 7) to (5, 7).",
        G,
        W,
    ),
    gradient(
        jaxconv.conv_input_grad,
        (5, 6),
        "g.shape must be that of the forward output, but (2, 5, 6, 4) != (2, 3, 3, 4). "
        "With these options, the forward pass maps spatial (5, 6) to (3, 3).",
        G,
        W,
        stride=2,
    ),
    gradient(
        jaxconv.conv_input_grad,
        5,
        "w must have as many axes as g, but 4 != 3 (w.shape = (3, 3, 3, 4), g.shape = (2, 5, 4)). "
        "A single example needs a batch axis: [None].",
        zeros(2, 5, 4),
        W,
    ),
    gradient(
        jaxconv.conv_input_grad,
        (5,),
        "spatial_shape must be an int or have one entry per spatial axis, but len(spatial_shape) = 1 != 2.",
        G,
        W,
    ),
    gradient(jaxconv.conv_input_grad, (-1, 6), "spatial_shape[0] must be at least 0, but -1 < 0.", G, W),
    gradient(
        jaxconv.conv_kernel_grad,
        3,
        "g.shape must be that of the forward output, but (1, 5, 6, 4) != (2, 5, 6, 4). "
        "With these options, the forward pass maps spatial (5, 6) to (5, 6).",
        X,
        G[:1],
    ),
    gradient(
        jaxconv.conv_kernel_grad,
        (3, 3, 3, 4),
        "kernel_shape must be an int or have one entry per spatial axis, but len(kernel_shape) = 4 != 2.",
        X,
        G,
    ),
    gradient(jaxconv.conv_kernel_grad, (3, 0), "kernel_shape[1] must be at least 1, but 0 < 1.", X, G),
    gradient(
        jaxconv.conv_kernel_grad,
        3,
        "groups must divide the output channels w.shape[3], but 4 % 3 = 1 (w is HWIO).",
        X,
        G,
        groups=3,
    ),
    gradient(
        jaxconv.conv_transpose_kernel_grad,
        3,
        "g.shape must be that of the forward output, but (2, 5, 5, 4) != (2, 5, 6, 4). "
        "With these options, the forward pass maps spatial (5, 6) to (5, 6).",
        X,
        zeros(2, 5, 5, 4),
    ),
    Mistake(
        jaxconv.conv_bias_grad,
        (zeros(6, 4),),
        {},
        ValueError,
        "g must have a batch, a channel and at least 1 spatial axis (NWC), but g.shape = (6, 4) has 2 < 3 axes. "
        "A single example needs a batch axis: g[None].",
    ),
]

MISTAKES = [*CHANNELS, *KINDS, *AXES, *PADDING, *INTEGERS, *CHOICES, *DTYPES, *GRADIENTS]


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_named_before_anything_is_compiled(mistake: Mistake) -> None:
    operands = [jax.device_put(a) for a in mistake.operands]
    with compilations() as compiled:
        mistake.assert_raised(partial(mistake.op, **mistake.options), *operands)
    assert not compiled


@pytest.mark.parametrize("mistake", [group[0] for group in (CHANNELS, AXES, PADDING, DTYPES, GRADIENTS)], ids=str)
def test_tracers_raise_the_same_message(mistake: Mistake) -> None:
    mistake.assert_raised(jax.eval_shape, partial(mistake.op, **mistake.options), *mistake.operands)


TRANSFORMATIONS = {
    "jit": jax.jit,
    "grad": lambda f: jax.grad(lambda x, w: f(x, w).sum()),
    "linearize": lambda f: partial(jax.linearize, f),
    "checkpoint": jax.checkpoint,
}


@pytest.mark.parametrize("transform", TRANSFORMATIONS.values(), ids=TRANSFORMATIONS)
def test_a_transformation_raises_the_same_message(transform: Callable[..., Any]) -> None:
    mistake = CHANNELS[4]
    mistake.assert_raised(transform(partial(mistake.op, **mistake.options)), *mistake.operands)


def test_under_vmap_the_message_speaks_of_one_example() -> None:
    mistake = CHANNELS[4]
    f = jax.vmap(partial(mistake.op, **mistake.options))
    mistake.assert_raised(f, *(np.stack([a, a]) for a in mistake.operands))


@pytest.mark.parametrize("value", ["image", object(), {}, len], ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("name", ["x", "w"])
def test_what_is_no_array_is_named(name: str, value: Any) -> None:
    operands = {"x": X, "w": W, name: value}
    message = f"conv: {name} must be an array, but is {type(value).__name__}."
    assert refusal(partial(jaxconv.conv, **operands), TypeError) == message


def test_a_traced_stride_is_refused() -> None:
    with pytest.raises(TypeError, match=r"^conv: stride must be an int, but is .*JitTracer.*"):
        jax.jit(lambda s: jaxconv.conv(X, W, stride=s))(jnp.asarray(2, jnp.int32))


def test_an_unknown_engine_names_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"^conv: engine must be one of auto, xla(, \w+)*, but is 'gpu'\.$"):
        jaxconv.conv(X, W, engine="gpu")
