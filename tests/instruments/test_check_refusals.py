"""What `check` cannot judge gets a sentence instead of a verdict."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxconv
from jaxconv.gradcheck import KINDS
from tests.support.devices import cpu_mesh
from tests.support.judged import normal, square

pytestmark = pytest.mark.usefixtures("as_a_user")


def looped(x: Any) -> Any:
    return lax.while_loop(lambda c: c[0] < 3, lambda c: (c[0] + 1, jnp.sin(c[1])), (0, x))[1]


def thrice(x: Any) -> Any:
    return jnp.sin(jnp.sin(jnp.sin(x)))


@pytest.mark.parametrize("factor", [1.0, 1.01])
def test_rules_where_jax_has_no_gradient(factor: float) -> None:
    f = jax.custom_vjp(looped)
    f.defvjp(lambda x: (looped(x), x), lambda x, g: (factor * jax.vjp(thrice, x)[1](g)[0],))
    report = jaxconv.check(f, normal(5))
    assert report["automatic"].verdict == "skipped" and report.ok is (factor == 1)


def noisy(x: Any) -> Any:
    jax.debug.print("{}", x)
    return x


UNJUDGEABLE: dict[str, tuple[Callable[..., Any], tuple[Any, ...], type[Exception], str]] = {
    "no gradient": (
        looped,
        (normal(3),),
        TypeError,
        r"looped cannot be differentiated in reverse mode. ValueError: Rev",
    ),
    "integers out": (jnp.argmax, (normal(3),), TypeError, r"argmax returns int32\[\], and integers have no gradient"),
    "integers in": (
        square,
        (jnp.arange(3, dtype=jnp.int32),),
        TypeError,
        "square has no floating argument to differentiate, but int32",
    ),
    "complex": (
        square,
        (jnp.zeros(3, jnp.complex64),),
        TypeError,
        "square is complex. Split what it takes and returns",
    ),
    "side effects": (
        noisy,
        (normal(3),),
        TypeError,
        r"noisy has side effects \(Debug\).*Take its prints and callbacks out",
    ),
    "overflow": (
        jnp.exp,
        (jnp.array([1, 12], jnp.float16),),
        ValueError,
        r"overflows float16: a result is infinite, but 1.6",
    ),
    "nothing out": (lambda x: None, (normal(3),), TypeError, "returns nothing. Return what is to be differentiated"),
    "a flag": (
        lambda x, up: x if up else -x,
        (normal(3), np.array(True)),
        TypeError,
        r"needs the value of up while it is traced, .* as a number of Python, which is held: up\.item\(\)\.",
    ),
    "NaN in": (
        square,
        (jnp.array([1.0, jnp.nan], jnp.float32),),
        ValueError,
        r"x must be finite, but 1 of 2 entries are not",
    ),
    "NaN out": (
        jnp.log,
        (jnp.array([1.0, -1.0], jnp.float32),),
        ValueError,
        "must be a number everywhere, but 1 entries are NaN",
    ),
    "a mistake": (
        lambda x: x @ jnp.ones(9),
        (normal(3),),
        ValueError,
        "fails on these arguments. TypeError: dot_general",
    ),
    "too large": (lambda x: x[:1] * jnp.ones((10**6, 10**6)), (normal(3),), MemoryError, "GB are free. Smaller arg"),
}


@pytest.mark.parametrize("name", UNJUDGEABLE)
def test_what_cannot_be_judged_gets_a_sentence(name: str) -> None:
    f, args, error, message = UNJUDGEABLE[name]
    with pytest.raises(error, match=message) as raised:
        jaxconv.check(f, *args)
    assert str(raised.value).startswith("check: ")


def test_where_check_cannot_be_called() -> None:
    with pytest.raises(TypeError, match=r"check: x is being traced\. Call check outside"):
        jax.jit(lambda x: jaxconv.check(jnp.sin, x).ok)(normal(3))
    mesh = cpu_mesh(jax.sharding.AxisType.Explicit, i=2)
    x = jax.device_put(normal(4), jax.NamedSharding(mesh, jax.P("i")))
    with pytest.raises(TypeError, match=r"check: x is sharded over a mesh with explicit axes\. Pass arrays"):
        jaxconv.check(jnp.sin, x)


def test_options_are_validated() -> None:
    with pytest.raises(ValueError, match="check: skip leaves no evidence"):
        jaxconv.check(square, normal(4, 6, 6, 3), skip=list(KINDS))
    with pytest.raises(ValueError, match=r"check: skip may name structure, .*determinism, but names hope"):
        jaxconv.check(square, normal(4, 6, 6, 3), skip=["hope"])
    with pytest.raises(ValueError, match="check: order must be 1 or 2, but is 3"):
        jaxconv.check(square, normal(4, 6, 6, 3), order=3)
