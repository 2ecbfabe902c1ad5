"""The handler of convolutions, called past everything that asks before: it refuses what is wrong, and keeps nothing.

Sizes come as integers, and decide which memory is read and written. So whatever they are, arrays are compared with them
first, and the integers with each other before that.
"""

from __future__ import annotations

import ctypes
import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.engines.onednn import convolution, loading
from jaxconv.geometry import conv_geometry

pytestmark = pytest.mark.skipif(loading.why_off() is not None, reason=f"the native engine is off: {loading.why_off()}")

X, W, Y = (2, 5, 4, 6), (3, 2, 3, 4), (2, 3, 3, 4)
RIGHT = convolution._described(
    "conv", jnp.float32, jnp.float32, conv_geometry("conv", X, W, groups=2, padding="VALID"), convolution.Layer(2, 6, 4)
)
MAP, DTYPE, RESULT, GROUPS, BATCH, INPUTS, OUTPUTS, THREADS = range(8)
LAYOUTS = 8
ROWS = 8 + 3 * 4  # n, out, taps, stride, dilation, lo, hi
HUGE = (2**31 - 1, 2**31, 2**32, 2**32 + 2, 2**62, 2**63 - 1, -1, -(2**31), -(2**63))


def call(description: Any, x: Any, w: Any, y: jax.ShapeDtypeStruct) -> jax.Array:
    attribute = np.asarray(description, np.int64) if isinstance(description, (list, tuple)) else description
    return jax.block_until_ready(jax.ffi.ffi_call(loading.CONVOLUTION, y)(x, w, convolution=attribute))


def refused(description: Any, said: str, x: Any = X, w: Any = W, y: Any = Y, dtypes: Any = ("float32",) * 3) -> None:
    a, b = jnp.ones(x, dtypes[0]), jnp.ones(w, dtypes[1])
    with pytest.raises(Exception, match=re.escape(said)):
        call(description, a, b, jax.ShapeDtypeStruct(y, dtypes[2]))


def changed(place: int, number: int) -> list[int]:
    return [number if i == place else old for i, old in enumerate(RIGHT)]


def test_the_description_that_the_others_are_made_of() -> None:
    y = call(RIGHT, jnp.ones(X, "float32"), jnp.ones(W, "float32"), jax.ShapeDtypeStruct(Y, "float32"))
    assert np.array_equal(y, np.full(Y, 18.0))


@pytest.mark.parametrize("place", range(len(RIGHT)))
def test_no_number_may_be_wild(place: int) -> None:
    """Each in turn; but the threads, which the handler asks XLA for."""
    for number in (*HUGE, *([] if place in (MAP, LAYOUTS) else [0]), RIGHT[place] + 1):
        if number != RIGHT[place] and place != THREADS and not _may(place, number):
            refused(changed(place, number), "jaxconv: ")


def _may(place: int, number: int) -> bool:
    """What stays a convolution of these arrays: zero padding stays zero."""
    return place >= ROWS and (place - ROWS) % 7 in (5, 6) and number == 0


@pytest.mark.parametrize("length", [0, 1, 7, 8, 15, len(RIGHT) - 1, len(RIGHT) + 1, 1000])
def test_another_length(length: int) -> None:
    refused((list(RIGHT) * 30)[:length], "jaxconv: a convolution must be described by 14 + 10 rank numbers")


@pytest.mark.parametrize(
    "place, number, said",
    [
        (MAP, 3, "the map must be one of three"),
        (DTYPE, 12, "an unknown dtype"),
        (GROUPS, 3, "groups must divide the channels"),
        (GROUPS, 0, "sizes must be at least 1"),
        (LAYOUTS, 1, "a layout must name each axis once"),
        (LAYOUTS, 4, "a layout must name each axis once"),
        (ROWS, 2**31, "sizes must fit 31 bits"),
        (ROWS, 6, "out must be slack // stride + 1"),
        (ROWS + 3, 0, "sizes along an axis must be at least 1"),
    ],
)
def test_what_is_said(place: int, number: int, said: str) -> None:
    refused(changed(place, number), f"jaxconv: {said}")


def test_sizes_whose_product_fits_no_integer() -> None:
    most = 2**31 - 1
    wide = changed(BATCH, most)
    for axis in (ROWS, ROWS + 7):
        wide[axis : axis + 7] = [most, most, 1, 1, 1, 0, 0]
    refused(wide, "jaxconv: the bytes of an array must fit 63 bits")


@pytest.mark.parametrize(
    "which, given",
    [
        ("first operand", {"x": (2, 5, 4, 5)}),
        ("first operand", {"x": (2, 5, 24)}),
        ("first operand", {"x": ()}),
        ("first operand", {"x": (0, 5, 4, 6)}),
        ("second operand", {"w": (3, 2, 6, 4)}),
        ("second operand", {"w": (3, 2, 3, 4, 1)}),
        ("result", {"y": (2, 3, 3, 3)}),
        ("first operand", {"dtypes": ("float16", "float32", "float32")}),
        ("second operand", {"dtypes": ("float32", "int32", "float32")}),
        ("result", {"dtypes": ("float32", "float32", "bfloat16")}),
    ],
)
def test_arrays_that_are_not_described(which: str, given: dict[str, Any]) -> None:
    refused(RIGHT, f"jaxconv: the {which} of a convolution must have the shape", **given)


@pytest.mark.parametrize("attribute", [np.ones(34, np.int32), np.ones(34, np.float32), "convolution", 3])
def test_an_attribute_of_another_type(attribute: Any) -> None:
    refused(attribute, "Failed to decode all FFI handler operands (bad operands at: 4)")


def test_another_number_of_operands() -> None:
    x, y = jnp.ones(X, "float32"), jax.ShapeDtypeStruct(Y, "float32")
    with pytest.raises(Exception, match="Wrong number of arguments"):
        jax.block_until_ready(jax.ffi.ffi_call(loading.CONVOLUTION, y)(x, convolution=np.asarray(RIGHT, np.int64)))


def test_oneDNN_is_asked_with_the_same_care() -> None:
    probe, text = loading.library().jaxconv_onednn_probe, ctypes.create_string_buffer(16)

    def asked(description: list[int], room: int) -> tuple[int, bytes]:
        numbers = (ctypes.c_int64 * len(description))(*description)
        return probe(numbers, ctypes.c_int64(len(description)), text, ctypes.c_int64(room)), text.value

    assert asked(changed(MAP, 3), 16) == (1, b"the map must be")
    assert asked([], 8) == (1, b"a convo")
    failed, name = asked(list(RIGHT), 16)
    assert not failed and name


def test_arrays_where_numpy_put_them() -> None:
    """Aligned to one number, not to the 64 bytes of XLA's own arrays."""
    rng = np.random.default_rng(0)
    for offset in range(1, 5):
        x, w = (rng.standard_normal(np.prod(s) + offset).astype("f")[offset:].reshape(s) for s in (X, W))
        y = call(RIGHT, x, w, jax.ShapeDtypeStruct(Y, "float32"))
        taps = [x[:, i : i + 3, j : j + 3].reshape(2, 3, 3, 2, 3) for i in range(3) for j in range(2)]
        kernels = [w[i, j].reshape(3, 2, 2) for i in range(3) for j in range(2)]
        sums = sum(np.einsum("npqgc,cgo->npqgo", t, k) for t, k in zip(taps, kernels, strict=True))
        assert np.allclose(y, sums.reshape(Y), atol=1e-5)


def resident() -> int:
    """Bytes that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.thorough
def test_a_hundred_thousand_calls_leave_nothing_behind() -> None:
    x, w = jnp.ones(X, "float32"), jnp.ones(W, "float32")

    @jax.jit
    def many(w: jax.Array) -> jax.Array:
        def step(i: int, w: jax.Array) -> jax.Array:
            y = jax.ffi.ffi_call(loading.CONVOLUTION, jax.ShapeDtypeStruct(Y, "float32"))(
                x, w, convolution=np.asarray(RIGHT, np.int64)
            )
            return w + 0 * y[0, 0, 0, 0]

        return jax.lax.fori_loop(0, 10_000, step, w)

    jax.block_until_ready(many(w))
    before = resident()
    for _ in range(10):
        w = jax.block_until_ready(many(w))
    assert resident() - before < 4 << 20  # 40 bytes a call


@pytest.mark.thorough
def test_plans_are_bounded() -> None:
    """Thousands of shapes: those used long ago are forgotten, and their machine code with them."""
    probe, text = loading.library().jaxconv_onednn_probe, ctypes.create_string_buffer(64)

    def ask(sizes: range) -> int:
        for n in sizes:
            g = conv_geometry("conv", (1, n, 8, 8), (3, 3, 8, 8), padding="SAME")
            described = convolution._described("conv", jnp.float32, jnp.float32, g, convolution.Layer(1, 8, 8))
            numbers = (ctypes.c_int64 * len(described))(*described)
            assert not probe(numbers, ctypes.c_int64(len(described)), text, ctypes.c_int64(64)), text.value
        return resident()

    start, full, end = resident(), ask(range(8, 6_000)), ask(range(6_000, 18_000))
    assert end - full < (full - start) / 4
