"""The handler of norms backwards, called past everything that asks before: it refuses what does not fit."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.engines.onednn import loading

why_off = loading.why_off()
pytestmark = pytest.mark.skipif(why_off is not None, reason=f"the native engine is off: {why_off}")
RIGHT = [1, 2, 3, 4, 5, 0, 1]  # batch, outer, inner, groups, members, by rows, centred
SHAPES = ((6, 20), (6, 20), (2, 4), (2, 4), (20,))


def called(description: Any, shapes: Any = SHAPES, dtypes: Any = ("float32",) * 5, results: Any = None) -> Any:
    arrays = [jnp.ones(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    made = [jax.ShapeDtypeStruct(*r) for r in results or [((6, 20), "float32"), ((20,), "float32"), ((20,), "float32")]]
    call = jax.ffi.ffi_call("jaxconv_norm_gradient", made)
    return jax.block_until_ready(call(*arrays, norm=np.asarray(description, np.int64)))


def test_the_handler_computes_what_it_is_told() -> None:
    """x = μ, so x̂ = 0: dx is δ without its mean, which is δ."""
    dx, dscale, dshift = called(RIGHT)
    assert not np.asarray(dx).any() and not np.asarray(dscale).any() and (np.asarray(dshift) == 6).all()


@pytest.mark.parametrize("value", [-1, 0, 7, 2**31, 2**62, 2**63 - 1, -(2**63)])
@pytest.mark.parametrize("entry", range(5))
def test_the_handler_refuses_other_sizes(entry: int, value: int) -> None:
    description = [*RIGHT]
    description[entry] = value
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxconv: a normalisation"):
        called(description)


@pytest.mark.parametrize("which", range(5))
def test_the_handler_refuses_other_arrays(which: int) -> None:
    shapes, dtypes = [*SHAPES], ["float32"] * 5
    shapes[which], dtypes[which] = (3,), "float64"
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxconv: a normalisation"):
        called(RIGHT, shapes)
    with pytest.raises(jax.errors.JaxRuntimeError, match=r"jaxconv: a normalisation|Wrong buffer dtype"):
        called(RIGHT, SHAPES, dtypes)
    with pytest.raises(jax.errors.JaxRuntimeError, match="jaxconv: a normalisation"):
        called([*RIGHT[:5], 1, 1])
