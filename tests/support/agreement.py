"""What the tests of transformations share: the layers under test, and what it means that two results agree."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxconv
from tests.support.cases import FEW, Case, arrays, cotangent, in_layout
from tests.support.cases_transposed import FEW_TRANSPOSED, layout_of
from tests.support.rule_sets import RULES


class Layer(NamedTuple):
    """An op on one case, as a function of x, w and b."""

    op: Callable[..., jax.Array]
    case: Case

    def __str__(self) -> str:
        return f"{self.op.__name__}-{self.case}"

    def __call__(self, x: Any, w: Any, b: Any = None, *, rules: Any = "fast") -> jax.Array:
        return self.op(x, w, b, rules=rules, **self.case.options)

    def arguments(self, dtype: Any = np.float64) -> tuple[np.ndarray, ...]:
        """Random x, w, b and δ."""
        x, w = arrays(self.case, dtype)
        y = jax.eval_shape(self, x, w).shape
        _, place = layout_of(self.case)
        return x, w, cotangent((y[place.y[1]],), dtype, seed=2), cotangent(y, dtype)


LAYERS = [
    *(Layer(jaxconv.conv, in_layout(case, layout)) for case, layout in zip(FEW, ("NHWC", "NCHW") * 3, strict=True)),
    *(
        Layer(jaxconv.conv_transpose, in_layout(case, layout))
        for case, layout in zip(FEW_TRANSPOSED[:3], ("NHWC", "NHWC", "NCHW"), strict=True)
    ),
]

# Two axes, groups, a stride that does not divide, dilation: where one layer has to do.
GROUPED = Layer(jaxconv.conv, FEW[2])
# Small enough for whole Jacobians and third derivatives.
TINY = Layer(jaxconv.conv, Case((1, 5, 2), (2, 1, 2), {"stride": 2, "groups": 2, "padding": ((1, -1),)}))


def agree(
    ours: Callable[..., Any], theirs: Callable[..., Any], *args: Any, eager: bool = False, eps: float | None = None
) -> None:
    """Compare two programs entry by entry within what rounding alone can do.

    Every test differentiates a polynomial with positive coefficients, so each entry of each derivative is a
    sum of products, and `theirs` at the absolute values of the arguments is S, the same sum of absolute
    values. Rounding then leaves |err| ≤ K·eps·S. No sum has more terms than there are numbers in the
    arguments, and no derivative taken here chains more than eight such sums: K is eight times that many. The
    result must also have the other's structure, shapes and dtypes. With `eager`, ours runs without `jit`; `eps`
    is that of the dtype in which values are held, if it is not the result's.
    """
    args = jax.tree.map(jnp.asarray, args)
    theirs = jax.jit(theirs)
    got, want = (ours if eager else jax.jit(ours))(*args), theirs(*args)
    bound = theirs(*jax.tree.map(np.abs, args))
    assert jax.tree.map(jax.typeof, got) == jax.tree.map(jax.typeof, want)
    k = 8 * sum(a.size for a in jax.tree.leaves(args))
    for (path, a), b, s in zip(jax.tree.leaves_with_path(got), *map(jax.tree.leaves, (want, bound)), strict=True):
        a, b, s = map(np.asarray, (a, b, s))
        name, error, allowed = jax.tree_util.keystr(path), np.abs(a - b), k * (eps or jnp.finfo(b.dtype).eps) * s
        assert b.any(), f"{name}: the reference is zero, so this comparison shows nothing"
        assert (error <= allowed).all(), f"{name}: off by {(error - allowed).max():.1e} more than rounding explains"


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """One entry for every program that XLA compiles from here on."""
    programs: list[str] = []

    def listen(event: str, seconds: float, **about: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            programs.append(str(about))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield programs
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def each_rule(function: Callable[[str], Callable[..., Any]], rules: Sequence[str] = RULES) -> Callable[..., Any]:
    """`function(r)` for every rule set r, as one program."""
    return lambda *args: {r: function(r)(*args) for r in rules}


def oracle(function: Callable[[str], Callable[..., Any]], rules: Sequence[str] = RULES) -> Callable[..., Any]:
    """What `each_rule` has to equal: automatic differentiation."""
    return lambda *args: dict.fromkeys(rules, function("autodiff")(*args))
