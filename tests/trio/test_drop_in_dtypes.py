"""Every dtype that `lax.conv_general_dilated` takes, the drop-in takes, and refuses what it refuses.

The dtypes are those of this version of JAX, and which of them may meet, and in what the result may come, is asked of
`lax` itself. What `lax` accepts is run where the CPU backend can: a float8 operand with a result in another float8 ends
the process in XLA's own checks, so for such pairs the types have to do.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from tests.support.sampling import sampled

CONVS = (jaxconv.conv_general_dilated, lax.conv_general_dilated)
DTYPES = sorted({jnp.dtype(v) for v in vars(jnp).values() if isinstance(v, type(jnp.float32))}, key=lambda d: d.name)


def held(dtype: Any) -> bool:
    """Whether the backend computes with it: what cannot even be multiplied may end the process in a convolution."""
    try:
        return jax.jit(lambda a: a * a)(jnp.ones(1, dtype)).dtype == dtype
    except jax.errors.JaxRuntimeError:
        return False


HELD = [dtype for dtype in DTYPES if held(dtype)]
NARROW = [dtype for dtype in HELD if jnp.issubdtype(dtype, jnp.floating) and dtype.itemsize < 4]
RESULTS = (None, np.dtype(np.int32), np.dtype(np.float32), np.dtype(np.complex64))
DENSE, DEPTHWISE = ((2, 7, 4), (3, 4, 2)), ((2, 7, 4), (3, 1, 4))

some_dtypes = pytest.mark.parametrize("dtype", sampled({dtype.name: dtype for dtype in DTYPES}, every=3))


def layer(conv: Callable[..., Any], shapes: Any, result: Any) -> Callable[..., Any]:
    (*_, inputs), (*_, per_group, _) = shapes
    return lambda x, w: conv(
        x, w, (2,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=inputs // per_group,
        preferred_element_type=result,
    )  # fmt: skip


def pulled(f: Callable[..., Any]) -> Callable[..., Any]:
    """(x, w) -> y and the gradients for a cotangent of 1, 10, 19, 1, ..., which a float8 would round."""

    def run(x: Any, w: Any) -> Any:
        y, pullback = jax.vjp(f, x, w)
        inexact = jnp.issubdtype(y.dtype, jnp.inexact)
        whole = np.arange(y.size).reshape(y.shape) % 3 * 9 + 1
        return y, *pullback(jnp.asarray(whole).astype(y.dtype) if inexact else np.zeros(y.shape, jax.dtypes.float0))

    return run


def accepted(f: Callable[..., Any], *operands: jax.ShapeDtypeStruct) -> Any:
    """The results' shapes and dtypes, or the error that says why there are none."""
    try:
        return jax.eval_shape(f, *operands)
    except (TypeError, ValueError) as error:
        return type(error), str(error)


def outcome(f: Callable[..., Any], *operands: Any) -> Any:
    """The results, or what kind of error the backend gives."""
    try:
        return jax.tree.map(np.asarray, jax.jit(f)(*operands))
    except jax.errors.JaxRuntimeError as error:
        return type(error)


def whole(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """1, 0, 2, −1 over and over, as far as the dtype has them: sums of few products are exact in almost any format."""
    return np.resize([1, 0, 2, -1], shape).astype(dtype)


@some_dtypes
def test_the_types_are_those_of_lax_and_so_are_the_refusals(dtype: Any) -> None:
    operands = [jax.ShapeDtypeStruct(shape, dtype) for shape in DENSE]
    for result in (None, *DTYPES):
        ours, theirs = (accepted(pulled(layer(conv, DENSE, result)), *operands) for conv in CONVS)
        assert ours == theirs, result


@some_dtypes
def test_operands_of_two_dtypes_meet_where_lax_lets_them(dtype: Any) -> None:
    for other in DTYPES:
        operands = [jax.ShapeDtypeStruct(shape, d) for shape, d in zip(DENSE, (dtype, other), strict=True)]
        ours, theirs = (accepted(layer(conv, DENSE, None), *operands) for conv in CONVS)
        assert ours == theirs, other


def test_the_table_has_what_it_is_about() -> None:
    """Among what `lax` accepts are a float8 and an integer with a wider result, and complex numbers."""
    for dtype, result in ((jnp.float8_e4m3fn, jnp.float32), (jnp.int8, jnp.int32), (jnp.complex64, None)):
        assert jnp.dtype(dtype) in DTYPES
        operands = [jax.ShapeDtypeStruct(shape, dtype) for shape in DENSE]
        y, *_ = accepted(pulled(layer(lax.conv_general_dilated, DENSE, result)), *operands)
        assert y.dtype == jnp.dtype(result or dtype)


def compare(shapes: Any, dtype: Any, result: Any) -> None:
    structs = [jax.ShapeDtypeStruct(shape, dtype) for shape in shapes]
    programs = [pulled(layer(conv, shapes, result)) for conv in CONVS]
    if isinstance(accepted(programs[1], *structs)[0], type):
        return  # refused: the tests above
    operands = [whole(shape, dtype) for shape in shapes]
    ours, theirs = (outcome(program, *operands) for program in programs)
    assert described(ours) == described(theirs)
    for a, b in [] if isinstance(theirs, type) else zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(numbers(a), numbers(b))


def described(result: Any) -> Any:
    """The class of an error, or the shapes and dtypes of arrays."""
    return result if isinstance(result, type) else [(a.shape, a.dtype) for a in result]


def numbers(a: np.ndarray) -> np.ndarray:
    """In a dtype in which NumPy knows a NaN."""
    return a if a.dtype == jax.dtypes.float0 else a.astype(np.complex128)


@pytest.mark.parametrize("dtype", HELD, ids=lambda dtype: dtype.name)
def test_values_and_gradients_are_those_of_lax(dtype: Any) -> None:
    for result in RESULTS:
        compare(DENSE, dtype, result)


@pytest.mark.parametrize("dtype", NARROW, ids=lambda dtype: dtype.name)
def test_a_depthwise_layer_of_narrow_floats_is_that_of_lax(dtype: Any) -> None:
    """Where wider floats are added up by a formulation of our own."""
    for result in (None, np.dtype(np.float32)):
        compare(DEPTHWISE, dtype, result)


@pytest.mark.parametrize("dtype", [jnp.float8_e4m3fn, jnp.bfloat16, jnp.complex64], ids=lambda dtype: dtype.__name__)
def test_second_derivatives_and_batches_are_those_of_lax(dtype: Any) -> None:
    result = jnp.complex64 if dtype == jnp.complex64 else jnp.float32

    def curved(conv: Callable[..., Any]) -> Callable[..., Any]:
        f = layer(conv, DENSE, result)

        def loss(w: Any, x: Any) -> jax.Array:
            return jnp.sum(jax.vmap(f, (0, None))(x, w).real ** 2) / 8

        return lambda xs, w: jax.jvp(lambda w: jax.grad(loss)(w, xs), (w,), (whole(w.shape, dtype),))

    xs, w = whole((2, *DENSE[0]), dtype), whole(DENSE[1], dtype)
    ours, theirs = (outcome(curved(conv), xs, w) for conv in CONVS)
    refused = isinstance(theirs, type)
    assert not refused or ours == theirs
    if refused:
        pytest.skip(f"the backend has no such convolution: {theirs.__name__}")
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype and np.asarray(b, np.complex64).any()
        np.testing.assert_array_equal(a, b)
