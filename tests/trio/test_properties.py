"""Any geometry at all: what the table of cases does not hold, hypothesis draws."""

import functools
import re
from typing import Any

import jax
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import jaxconv
from jaxconv.ops.arguments import RULES
from tests.support import oracle
from tests.support.cases import Case, arrays, cotangent, in_layout
from tests.support.cases_transposed import spatial_and_taps
from tests.support.tolerance import assert_within_bound

EXAMPLES = settings().max_examples


def examples(count: int) -> settings:
    """How many to draw; a busy machine, which draws them slowly, is no reason to fail."""
    return settings(max_examples=count, suppress_health_check=[HealthCheck.too_slow])


@st.composite
def convolutions(draw: st.DrawFn, transposed: bool = False) -> Case:
    """Rank 1 to 3 and everything that `conv` or `conv_transpose` can be told. The padding may crop too much."""
    rank = draw(st.sampled_from([2, 1, 3]))

    def each(low: int, high: int, *rare: int) -> tuple[int, ...]:
        return tuple(draw(st.sampled_from([*range(low, high + 1), *rare])) for _ in range(rank))

    sizes = each(1, (7, 6, 5)[rank - 1], *([] if transposed else [0]))
    taps = each(1, (4, 3, 2)[rank - 1])
    groups, inputs, outputs = (draw(st.sampled_from(counts)) for counts in ([1, 2, 3], [2, 1], [2, 1]))
    options: dict[str, Any] = {"stride": each(1, 4), "dilation": each(1, 3), "groups": groups}
    words = ["SAME", "SAME_LOWER", "VALID", *(["CAUSAL"] if rank == 1 and not transposed else [])]
    pairs = tuple(zip(each(-2, 3), each(-2, 3), strict=True))
    options["padding"] = draw(
        st.sampled_from([pairs, pairs, pairs, draw(st.integers(-1, 3)), draw(st.sampled_from(words))])
    )
    if transposed:
        bounds = zip(options["stride"], options["dilation"], strict=True)
        options["output_padding"] = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in bounds)
    else:
        options |= {"input_dilation": each(1, 3, 1), "flip_kernel": draw(st.booleans())}
    batch, channels = draw(st.sampled_from([2, 1, 2, 1, 0])), groups * (outputs if transposed else inputs)
    case = Case((batch, *sizes, channels), (*taps, inputs, groups * outputs), options)
    return in_layout(case, draw(st.sampled_from(["NHWC", "NCHW"])))


def loops(of: Any, *operands: Any, **options: Any) -> oracle.Exact | None:
    """The loops' answer, or None where the padding crops more than there is."""
    try:
        return oracle.exact(of, *operands, **options)
    except ValueError:
        return None


def shape_or_refusal(op: Any, *operands: Any) -> Any:
    try:
        return jax.eval_shape(op, *operands).shape
    except ValueError as error:
        return str(error)


def assert_shape(case: Case, name: str, refusal: str) -> None:
    """An op's output has the shape of the loops'; where these refuse, so must the op."""
    x, w = np.zeros(case.x), np.zeros(case.w)
    op = functools.partial(getattr(jaxconv, name), **case.options)
    expected = loops(getattr(oracle, name), x, w, **case.options)
    found = shape_or_refusal(op, x, w)
    assert (
        re.match(f"{name}: padding must {refusal}", str(found)) if expected is None else found == expected.value.shape
    )


@examples(10 * EXAMPLES)
@given(convolutions())
def test_every_output_has_the_shape_that_counting_finds(case: Case) -> None:
    assert_shape(case, "conv", r"not crop more than there is, .* < 0\.$")


@examples(10 * EXAMPLES)
@given(convolutions(transposed=True))
def test_every_transposed_output_has_the_shape_that_counting_finds(case: Case) -> None:
    assert_shape(case, "conv_transpose", "leave an output")


def reads(case: Case, name: str = "conv") -> bool | None:
    """Whether anything meets anything; None where the padding crops too much."""
    y = loops(getattr(oracle, name), np.ones(case.x), np.ones(case.w), **case.options)
    return None if y is None else bool(y.value.any())


def assert_maps(case: Case, name: str) -> None:
    """An op and its gradients, under all rules, are those of the loops."""
    options, (spatial, taps) = case.options, spatial_and_taps(case)
    op = getattr(jaxconv, name)
    x, w = arrays(case)
    y = oracle.exact(getattr(oracle, name), x, w, **options)
    g = cotangent(y.value.shape)

    @jax.jit
    def computed(x: jax.Array, w: jax.Array, g: jax.Array) -> Any:
        def one(rules: str) -> tuple[jax.Array, ...]:
            y, pullback = jax.vjp(lambda x, w: op(x, w, **options, rules=rules), x, w)
            return y, *pullback(g)

        return {rules: one(rules) for rules in RULES}

    dx = oracle.exact(getattr(oracle, f"{name}_input_grad"), g, w, spatial, **options)
    dw = oracle.exact(getattr(oracle, f"{name}_kernel_grad"), x, g, taps, **options)
    for rules, results in computed(x, w, g).items():
        for what, result, exact in zip(("y", "dx", "dw"), results, (y, dx, dw), strict=True):
            assert_within_bound(result, *exact, what=f"{rules}: {what}")


@examples(EXAMPLES)
@given(convolutions().filter(reads))
def test_every_convolution_and_its_gradients_are_the_loops(case: Case) -> None:
    assert_maps(case, "conv")


@examples(EXAMPLES // 2)
@given(convolutions().filter(lambda case: reads(case) is False))
def test_so_they_are_where_there_is_nothing_to_read(case: Case) -> None:
    assert_maps(case, "conv")


@examples(EXAMPLES // 2)
@given(convolutions(transposed=True).filter(lambda case: reads(case, "conv_transpose") is not None))
def test_every_transposed_convolution_and_its_gradients_are_the_loops(case: Case) -> None:
    assert_maps(case, "conv_transpose")
