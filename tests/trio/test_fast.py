"""The fast rules' formulations: each equals the textbook sums, is reached, and is what `plan` says it is."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxconv
from jaxconv.geometry import Geometry, conv_geometry
from jaxconv.rules import fast, textbook
from jaxconv.rules.fast import blocks, choice, maps, patches, phases, shifts
from jaxconv.rules.fast.formulation import Call, Formulation
from tests.support.cases import CASES, Case, arrays, cotangent, in_layout
from tests.support.devices import cpu_mesh
from tests.support.sampling import sampled
from tests.support.tolerance import assert_within_bound

MAPS = ("conv", "input_grad", "kernel_grad")
ALL = [
    *CASES,
    *(in_layout(CASES[i], "NCHW") for i in (10, 11, 12, 15, 18)),
    Case((5, 9, 4), (5, 1, 4), {"groups": 4, "dilation": 2}),  # more rows than a step; examples that fill no step
    Case((3, 11, 9, 3), (3, 4, 1, 6), {"groups": 3, "stride": (3, 2), "padding": ((2, 0), (-1, 3))}),
    Case((3, 3, 9, 4, 2), (2, 3, 2, 1, 2), {"groups": 2, "stride": (1, 2, 1), "dilation": (1, 1, 2)}),
    Case((3, 9, 7, 12), (3, 2, 3, 8), {"groups": 4, "stride": (2, 1)}),
    Case((2, 5, 6, 6), (3, 3, 2, 6), {"groups": 3, "input_dilation": (2, 1), "dilation": (1, 3)}),
    Case((2, 5, 4, 2), (3, 2, 1, 4), {"groups": 2, "input_dilation": 2}),
    Case((2, 5, 4, 4), (4, 3, 2, 4), {"groups": 2, "input_dilation": (3, 2), "dilation": (2, 3), "padding": 3}),
    Case((2, 4, 3, 5, 4), (2, 1, 2, 2, 6), {"groups": 2, "input_dilation": (3, 1, 2), "padding": 1}),
    Case((3, 11, 6, 2), (4, 3, 2, 3), {"stride": (3, 2), "dilation": (1, 2), "padding": ((3, 1), (0, 2))}),
    Case((2, 5, 4, 3), (5, 4, 3, 7), {"padding": "VALID"}),  # a kernel as large as its input
    Case((2, 9, 9, 2), (2, 3, 2, 3), {"stride": (5, 4), "dilation": (3, 1), "padding": ((2, -1), (-1, 2))}),
    Case((2, 7, 6, 16), (1, 1, 16, 17), {"stride": (3, 2), "padding": ((2, -1), (-1, 3))}),
    Case((2, 3, 4, 5, 16), (1, 1, 1, 16, 16), {"stride": (1, 2, 3), "dilation": 2}),
    Case((2, 6, 5, 1), (3, 3, 1, 8), {"stride": (1, 2)}),
    Case((4, 3), (3, 5), {}),
    Case((4, 6), (2, 9), {"groups": 3}),
    Case((2, 7, 6, 3), (4, 4, 3, 2), {"stride": (4, 2), "padding": ((3, 2), (1, 1))}),
]


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits so low that arrays of a few elements take several steps, blocks and remainders."""
    for module, limits in {
        patches: {"WHOLE": 0, "LEAST": 30, "MOST": 60},
        shifts: {"READS": 3, "TILE": 12, "UNROLLED": 2, "TERMS": 17, "TURNED_TERMS": 17},
        blocks: {"WIDTH": 6},
        phases: {"MANY_TAPS": 4},
    }.items():
        for name, value in limits.items():
            monkeypatch.setattr(module, name, value)
    yield


def resolved(case: Case) -> Geometry:
    return conv_geometry("conv", case.x, case.w, least_rank=0, **case.options)


def operands(case: Case, dtype: Any = np.float64) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """What each map takes."""
    geometry = resolved(case)
    x, w = arrays(case, dtype)
    place = geometry.layout
    g = cotangent(geometry.y_shape(x.shape[place.x[0]], w.shape[place.w[0]]), dtype)
    return {"conv": (x, w), "input_grad": (g, w), "kernel_grad": (x, g)}


def calls(case: Case, platform: str | None = "cpu", dtype: Any = np.float32) -> dict[str, Call]:
    geometry, place = resolved(case), resolved(case).layout
    sizes = case.x[place.x[0]], case.x[place.x[1]], case.w[place.w[0]]
    return {name: Call(name, platform, dtype, geometry, *sizes) for name in MAPS}


def choices(case: Case, platform: str | None = "cpu") -> dict[str, Formulation]:
    return {name: choice.chosen(call) for name, call in calls(case, platform).items()}


def summands(case: Case) -> dict[str, int]:
    geometry, place = resolved(case), resolved(case).layout
    taps = math.prod(geometry.taps)
    return {
        "conv": taps * case.w[place.w[1]],
        "input_grad": taps * case.w[place.w[0]],
        "kernel_grad": case.x[place.x[0]] * math.prod(geometry.out),
    }


def assert_equals_the_textbook(case: Case) -> None:
    geometry, given = resolved(case), operands(case)

    @jax.jit
    def run(given: Any) -> Any:
        ours = {m: getattr(fast, m)(*given[m], geometry, platform="cpu") for m in MAPS}
        sums = {m: getattr(textbook, m)(*given[m], geometry) for m in MAPS}
        sizes = {m: getattr(textbook, m)(*map(abs, given[m]), geometry) for m in MAPS}
        return ours, sums, sizes

    ours, sums, sizes = run(given)
    for m, count in summands(case).items():
        assert_within_bound(ours[m], np.asarray(sums[m]), count, np.asarray(sizes[m]), what=m)


@pytest.mark.parametrize("case", sampled({str(case): case for case in ALL}, every=2))
@pytest.mark.usefixtures("small_steps")
def test_every_formulation_computes_the_textbook_sums_in_any_number_of_steps(case: Case) -> None:
    assert_equals_the_textbook(case)


@pytest.mark.parametrize("case", ALL[len(CASES) :], ids=str)
def test_every_formulation_computes_the_textbook_sums(case: Case) -> None:
    assert_equals_the_textbook(case)


LEGAL = [case for case in (CASES[3], CASES[15], *ALL[len(CASES) :]) if case.options.get("layout") != "NCHW"]


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("case", LEGAL, ids=str)
def test_every_legal_formulation_computes_the_textbook_sums_chosen_or_not(case: Case, name: str) -> None:
    call, textbooks = calls(case, dtype=np.float64)[name], getattr(textbook, name)
    legal, z = list(choice.candidates(call)), call.geometry

    @jax.jit
    def run(a: jax.Array, b: jax.Array) -> Any:
        ours = [f.compute(a, b, z, maps.ChannelsLast("cpu", a.dtype, None)) for f in legal]
        return ours, textbooks(a, b, z), textbooks(abs(a), abs(b), z)

    ours, sums, sizes = run(*operands(case)[name])
    for formulation, value in zip(legal, ours, strict=True):
        assert_within_bound(value, np.asarray(sums), summands(case)[name], np.asarray(sizes), what=formulation.name)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_candidates_are_the_chosen_one_lax_and_whatever_else_is_legal(platform: str) -> None:
    legal = set()
    for case in ALL:
        for name, call in calls(case, platform).items():
            every = list(choice.candidates(call))
            assert every[0] == choice.chosen(call) and len(set(every)) == len(every), case
            names = [f.name for f in every]
            assert names.count("lax") == 1 and all(f.pays for f in every[: names.index("lax")]), case
            assert not any(f.pays for f in every[names.index("lax") + 1 :]), case
            legal |= {(name, f.name) for f in every}
    assert legal == {
        *(
            ("conv", name)
            for name in ("lax", "product", "shifts", "blocks", "phases", "merged phases", "border", "depths")
        ),
        *(("input_grad", name) for name in ("lax", "product", "fold", "full")),
        *(("kernel_grad", name) for name in ("lax", "product", "shifts", "blocks", "patches", "depths")),
    }


def test_a_map_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(KeyError, match="correlate"):
        choice.chosen(replace(calls(ALL[0])["conv"], map="correlate"))


def test_the_rows_that_justify_a_threshold_are_rows_of_the_benchmark() -> None:
    root = Path(jaxconv.__file__).parents[1]
    rows = [row["row"] for row in json.loads((root / "experiments/results/benchmark-xeon.json").read_text())["rows"]]
    files = sorted((root / "jaxconv/rules/fast").glob("*.py"))
    named = {name for file in files for name in re.findall(r'"(\d+×[^"]*)"', file.read_text())}
    assert len(named) > 8 and all(any(row.startswith(name) for row in rows) for name in named), named


ONCE = {  # how often `choice` is asked: for the call, and for each of those that its formulation makes of it
    "depthwise": (Case((2, 6, 6, 4), (3, 3, 1, 4), {"groups": 4}), (1, 1, 1)),
    "stride": (Case((2, 6, 6, 4), (3, 3, 1, 4), {"groups": 4, "stride": 2}), (1, 1 + 4, 1)),
    "groups": (Case((2, 6, 6, 32), (3, 3, 16, 32), {"groups": 2}), (2, 2, 2)),
    "3×3": (Case((2, 6, 6, 8), (3, 3, 8, 8), {}), (1, 1, 1)),
}


@pytest.mark.parametrize("layer", ONCE)
def test_a_call_is_chosen_for_once_and_knows_of_a_turned_kernel(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, expected = ONCE[layer]
    asked: list[Call] = []
    chosen = choice.chosen
    monkeypatch.setattr(choice, "chosen", lambda call, table: (asked.append(call), chosen(call, table))[1])
    for (name, call), times in zip(calls(case).items(), expected, strict=True):
        asked.clear()
        f = partial(getattr(fast, name), geometry=call.geometry, platform="cpu")
        jax.eval_shape(f, *operands(case, np.float32)[name])
        assert asked[0] == call and len(asked) == times, name
        assert all(inner.turned == (name == "input_grad") for inner in asked[1:]), name


@pytest.mark.usefixtures("small_steps")
def test_the_cases_reach_every_formulation() -> None:
    reached = {name: {choices(case)[name].name for case in ALL} for name in MAPS}
    assert reached == {
        "conv": {"lax", "product", "shifts", "blocks", "phases", "merged phases"},
        "input_grad": {"lax", "product", "fold", "full"},
        "kernel_grad": {"lax", "product", "shifts", "blocks", "patches"},
    }


@pytest.mark.parametrize("platform", ["cuda", "rocm", "gpu", "tpu", None])
def test_a_choice_made_for_the_cpu_is_made_on_the_cpu_only(platform: str | None) -> None:
    for case in ALL:
        wanted = "product" if len(case.x) == 2 else "lax"
        assert {c.name for c in choices(case, platform).values()} == {wanted}, case


LAYERS = {  # how many convolutions the CPU's program of each map has: a formulation other than lax has its own
    "depthwise": (Case((2, 6, 6, 4), (3, 3, 1, 4), {"groups": 4}), (0, 0, 0)),
    "1×1": (Case((2, 6, 6, 16), (1, 1, 16, 16), {}), (0, 0, 0)),
    "1×1 to few": (Case((2, 6, 6, 16), (1, 1, 16, 8), {}), (1, 0, 0)),
    "1×1 strided": (Case((2, 6, 6, 16), (1, 1, 16, 16), {"stride": (1, 2)}), (0, 0, 0)),
    "1×1×1": (Case((2, 4, 4, 4, 16), (1, 1, 1, 16, 16), {}), (1, 1, 0)),
    "1×1×1 strided": (Case((2, 4, 4, 4, 16), (1, 1, 1, 16, 16), {"stride": 2}), (0, 0, 0)),
    "1 strided": (Case((2, 9, 16), (1, 16, 16), {"stride": 2}), (1, 0, 0)),
    "3×3": (Case((2, 6, 6, 8), (3, 3, 8, 8), {}), (1, 1, 1)),
    "3×3 of few inputs": (Case((64, 6, 6, 3), (3, 3, 3, 32), {}), (1, 0, 0)),
    "3×3×3": (Case((2, 4, 4, 4, 8), (3, 3, 3, 8, 8), {}), (1, 1, 0)),
    "1-D": (Case((2, 9, 8), (3, 8, 8), {}), (1, 1, 1)),
}


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_each_platform_gets_its_own_program(layer: str, platform: str) -> None:
    case, convolutions = LAYERS[layer]
    options = case.options | {"engine": "xla"}
    x, w = arrays(case, np.float32)
    y = jax.eval_shape(lambda: jaxconv.conv(x, w, **case.options))
    g = cotangent(y.shape, np.float32)
    programs = {
        "conv": (partial(jaxconv.conv, **options), x, w),
        "input_grad": (lambda g, w: jaxconv.conv_input_grad(g, w, x.shape[1:-1], **options), g, w),
        "kernel_grad": (lambda x, g: jaxconv.conv_kernel_grad(x, g, w.shape[:-2], **options), x, g),
    }
    plan = jaxconv.plan(x.shape, w.shape, platform=platform, **options)
    for (name, (f, *args)), expected in zip(programs.items(), convolutions, strict=True):
        text = jax.jit(f).trace(*args).lower(lowering_platforms=(platform,)).as_text()
        found = text.count("stablehlo.convolution")
        assert found == (expected if platform == "cpu" else 1), (layer, name)
        assert (getattr(plan, name).formulation == "lax") == (found == 1), (layer, name)


@pytest.mark.parametrize("layout", ["NHWC", "NCHW"])
@pytest.mark.parametrize("options", [{"stride": 2}, {"stride": 2, "dilation": 3, "groups": 2}], ids=str)
def test_a_gpu_is_given_the_gradients_that_it_recognises(options: dict[str, Any], layout: str) -> None:
    """JAX's own, operation for operation: XLA finds a gradient for cuDNN by how the convolution is written."""
    case = in_layout(Case((2, 9, 9, 4), (3, 3, 4 // options.get("groups", 1), 6), options), layout)
    x, w = arrays(case, np.float32)

    def program(rules: str) -> str:
        def gradients(x: Any, w: Any, g: Any) -> Any:
            return jax.vjp(lambda x, w: jaxconv.conv(x, w, rules=rules, **case.options), x, w)[1](g)

        g = jax.eval_shape(lambda: jaxconv.conv(x, w, **case.options))
        text = jax.jit(gradients).trace(x, w, g).lower(lowering_platforms=("cuda",)).as_text()
        return re.sub(r"%\w+|@\w+", "", text[text.index("public @main") :])

    ours, theirs = map(program, ("fast", "autodiff"))
    assert sorted(ours.splitlines()) == sorted(theirs.splitlines()) and ours.count("stablehlo.convolution") == 2


def test_a_program_that_xla_splits_over_devices_keeps_its_convolutions() -> None:
    mesh = cpu_mesh(AxisType.Auto, batch=2)
    split = NamedSharding(mesh, PartitionSpec("batch"))
    x = jax.device_put(np.ones((4, 6, 6, 3), np.float32), split)
    g = jax.device_put(np.ones((4, 6, 6, 6), np.float32), split)
    f = jax.jit(lambda x, g: jaxconv.conv_kernel_grad(x, g, 3, groups=3))
    text = f.lower(x, g).as_text()
    assert text.count("stablehlo.convolution") == 1 and "stablehlo.while" not in text


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(
    ("case", "name"), [(LAYERS["1×1"][0], "kernel_grad"), (LAYERS["3×3×3"][0], "kernel_grad"), (ALL[-4], "input_grad")]
)
def test_products_take_16_bit_operands_and_sum_in_float32(case: Case, name: str, dtype: str) -> None:
    a, b = (jnp.asarray(v, dtype) for v in operands(case)[name])
    text = jax.jit(partial(getattr(fast, name), geometry=resolved(case), platform="cpu")).lower(a, b).as_text()
    short = {"bfloat16": "bf16", "float16": "f16"}[dtype]
    products = re.findall(r"stablehlo\.dot_general.* : \((.*), (.*)\) -> (.*)", text)
    assert products
    for left, right, result in products:
        assert left.endswith(f"x{short}>") and right.endswith(f"x{short}>") and result.endswith("xf32>")


@pytest.mark.parametrize("count", [16, 64])
def test_a_batch_of_kernel_gradients_compiles_in_a_time_that_does_not_grow(count: int) -> None:
    """The program of `vmap(grad)`, by the number of its operations: a loop, not a row of copies."""

    def lines(count: int) -> int:
        x, w = jnp.ones((count, 6, 6, 4)), jnp.ones((3, 3, 4, 8))
        gradient = jax.grad(lambda w, x: jnp.sum(jaxconv.conv(x[None], w) ** 2))
        return len(jax.jit(jax.vmap(gradient, (None, 0))).lower(w, x).as_text().splitlines())

    assert lines(count) == lines(4)


def test_products_of_patches_are_for_many_examples() -> None:
    def formulation(n: int, inputs: int, outputs: int = 32, taps: int = 3, **options: Any) -> str:
        shapes = (n, 18, 18, inputs), (taps, taps, inputs, outputs)
        return jaxconv.plan(*shapes, platform="cpu", engine="xla", **options).kernel_grad.formulation

    bare = {"padding": "VALID"}
    assert {formulation(64, 3), formulation(64, 32, **bare), formulation(64, 32), formulation(64, 3, stride=2)} == {
        "patches"
    }
    few = formulation(63, 3), formulation(63, 64, **bare), formulation(64, 3, 31), formulation(64, 5, **bare)
    assert {*few, formulation(64, 32, stride=2), formulation(64, 32, taps=5)} == {"lax"}
    assert formulation(64, 32, taps=5, **bare) == "patches"


def test_plan_says_what_is_chosen_why_and_what_it_holds() -> None:
    plan = jaxconv.plan((8, 56, 56, 96), (7, 7, 1, 96), groups=96, platform="cpu", engine="xla")
    assert [c.formulation for c in plan] == ["shifts", "full", "shifts"]
    assert "one channel per group" in plan.conv.why and plan.conv.holds == "a padded copy of x"
    assert len(str(plan).splitlines()) == 3 and "shifts" in str(plan)
    assert plan.to_dict()["conv"] == {"formulation": "shifts", "why": plan.conv.why, "holds": plan.conv.holds}
    assert jaxconv.plan((8, 96, 56, 56), (96, 1, 7, 7), groups=96, platform="cpu", layout="NCHW", engine="xla") == plan


def test_plan_is_for_the_machine_it_runs_on_unless_told_otherwise() -> None:
    shapes = (2, 4, 4, 4, 8), (3, 3, 3, 8, 8)
    assert jaxconv.plan(*shapes) == jaxconv.plan(*shapes, platform=jax.default_backend())
    assert jaxconv.plan(*shapes, platform="cpu", engine="xla").kernel_grad.formulation == "patches"


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((2, 6, 6, 3), (3, 3, 2, 4)), {}, r"plan: w.shape\[2\] \* groups must equal x.shape\[-1\], but 2 \* 1 != 3"),
        (((2, 6, 6, 3), (3, 3, 3, 4)), {"stride": 0}, "plan: stride must be at least 1"),
        (((2, 6, 6, 3), (3, 3, 3, 4)), {"engine": "fastest"}, "plan: engine must be one of auto, xla"),
        (((2, 6, 6, 3), (3, 3, 3, 4)), {"flip_kernel": 1}, "plan: flip_kernel must be True or False, but is 1"),
        (((2, 6, 6, 3), (3, 3, 3, 4)), {"layout": "HWCN"}, "plan: layout must be one of NHWC, NCHW"),
        (((2, 6, 6, 3), (3, 3, 3, 4)), {"groups": 2.0}, "plan: groups must be an int, but is 2.0"),
        (((2, 6, 6, 3), (3, 3, 3, 4)), {"padding": "FULL"}, "plan: padding must be one of SAME"),
        (((2, 3), (3, 4)), {}, "plan: x must have a batch, a channel and at least 1 spatial axis"),
        (((2, 6, 6, 3), (3, 3, 4)), {}, "plan: w must have as many axes as x, but 3 != 4"),
    ],
)
def test_plan_refuses_what_conv_refuses_in_the_same_words(shapes: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message) as refused:
        jaxconv.plan(*shapes, **options)
    x, w = (np.zeros(shape, "float32") for shape in shapes)
    with pytest.raises(refused.type) as by_conv:
        jaxconv.conv(x, w, **options)
    assert str(by_conv.value) == str(refused.value).replace("plan:", "conv:", 1)


def test_plan_refuses_a_dtype_that_does_not_float() -> None:
    with pytest.raises(TypeError, match=r"^plan: dtype must be floating \(.*\), but is int32\.$"):
        jaxconv.plan((2, 6, 6, 3), (3, 3, 3, 4), dtype="int32")
