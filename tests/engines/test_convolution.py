"""The convolutions of the native engine: what the NumPy loops compute, for any geometry that it takes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxconv
from jaxconv.engines.onednn import convolution, loading
from jaxconv.engines.onednn.convolution import Layer
from jaxconv.geometry import Geometry, conv_geometry
from jaxconv.rules.fast import choice
from jaxconv.rules.fast.formulation import Call
from tests.support import oracle
from tests.support.devices import cpu_mesh
from tests.support.tolerance import assert_within_bound

HANDLER = loading.CONVOLUTION
pytestmark = pytest.mark.skipif(loading.why_off() is not None, reason=f"no native engine: {loading.why_off()}")


class Drawn:
    """A convolution that oneDNN takes, drawn by a seed: rank 1 to 3, everything that `conv` can be told."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        rank = int(rng.choice([1, 2, 2, 2, 3]))
        wide = rng.random() < 0.3  # channels that fill a register, or all but
        self.options: dict[str, Any] = {
            "stride": tuple(map(int, rng.integers(1, 4, rank))),
            "dilation": tuple(map(int, rng.integers(1, 3, rank))),
            "flip_kernel": bool(rng.random() < 0.2),
            "groups": int(rng.choice([1, 1, 2, 3])),
            "layout": str(rng.choice(["NHWC", "NHWC", "NCHW"])),
        }
        depthwise = rng.random() < 0.2
        groups = self.options["groups"] = int(rng.choice([4, 16, 17])) if depthwise else self.options["groups"]
        inputs = 1 if depthwise else int(rng.choice([15, 16, 17, 33]) if wide else rng.integers(1, 6))
        outputs = 1 if depthwise else int(rng.choice([8, 16, 31, 48]) if wide else rng.integers(1, 6))
        taps = rng.integers(1, 4, rank)
        spans = (taps - 1) * self.options["dilation"] + 1
        self.options["padding"] = tuple((int(lo), int(hi)) for lo, hi in rng.integers(0, 4, (rank, 2)))
        least = np.maximum(spans - np.sum(self.options["padding"], axis=1), 1)
        spatial = least + rng.integers(0, (9, 6, 4)[rank - 1], rank)
        batch = int(rng.integers(1, 4))
        data, kernel = (batch, *map(int, spatial)), tuple(map(int, taps))
        shapes = (*data, inputs * groups), (*kernel, inputs, outputs * groups)
        if self.options["layout"] == "NCHW":
            shapes = (batch, inputs * groups, *data[1:]), (outputs * groups, inputs, *kernel)
        self.geometry: Geometry = conv_geometry("conv", *shapes, **self.options)
        layout = self.geometry.layout
        g = self.geometry.y_shape(batch, shapes[1][layout.w[0]])
        self.x, self.w, self.g = (rng.standard_normal(shape) for shape in (*shapes, g))


def reads_padding_only(geometry: Geometry) -> bool:
    """Whether some tap does, at every position."""
    return any(
        all(not 0 <= a.stride * p + a.dilation * k - a.lo < a.n for p in range(a.out))
        for a in geometry.axes
        for k in range(a.k)
    )


def assert_the_loops(drawn: Drawn, dtype: str) -> None:
    x, w, g = (np.asarray(a).astype(jnp.dtype(dtype)) for a in (drawn.x, drawn.w, drawn.g))
    geometry, options = drawn.geometry, drawn.options
    found = {
        "conv": (x, w, oracle.exact(oracle.conv, x, w, **options)),
        "input_grad": (g, w, oracle.exact(oracle.conv_input_grad, g, w, geometry.spatial, **options)),
        "kernel_grad": (x, g, oracle.exact(oracle.conv_kernel_grad, x, g, geometry.taps, **options)),
    }
    sizes = Layer(x.shape[geometry.layout.x[0]], x.shape[geometry.layout.x[1]], w.shape[geometry.layout.w[0]])
    taken = {name for name in found if convolution.answer(name, dtype, None, geometry, sizes).taken}
    assert found.keys() - taken == ({"kernel_grad"} if reads_padding_only(geometry) else set())
    for name in taken:
        a, b, expected = found[name]
        result = convolution.compute(name, jnp.asarray(a), jnp.asarray(b), geometry)
        assert result.dtype == dtype
        assert_within_bound(result, *expected, what=f"{name} of {geometry}")


@pytest.mark.parametrize("seed", range(0, 120, 20))
def test_any_geometry_is_the_loops(seed: int) -> None:
    for one in range(seed, seed + 20):
        assert_the_loops(Drawn(one), "bfloat16" if one % 5 == 4 else "float32")


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(1000, 3600, 100))
def test_many_geometries_are_the_loops(seed: int) -> None:
    for one in range(seed, seed + 100):
        assert_the_loops(Drawn(one), "bfloat16" if one % 5 == 4 else "float32")


def test_sums_of_16_bits_can_be_had_in_32() -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(shape).astype(jnp.bfloat16) for shape in ((2, 8, 16), (3, 16, 4)))
    y = jaxconv.conv(x, w, engine="onednn", preferred_element_type=jnp.float32)
    assert y.dtype == jnp.float32
    assert_within_bound(y, *oracle.exact(oracle.conv, x, w), what="y")


LAYERS = {  # what takes the three maps, on a machine with AVX-512, where it was measured
    "3×3": (((8, 28, 28, 64), (3, 3, 64, 64)), {}, ("onednn", "onednn", "onednn")),
    "few channels": (((8, 32, 32, 3), (3, 3, 3, 64)), {}, ("onednn", "fold", "onednn")),
    "depthwise": (((8, 28, 28, 32), (3, 3, 1, 32)), {"groups": 32}, ("onednn", "onednn", "onednn")),
    "strided": (((8, 28, 28, 32), (3, 3, 1, 32)), {"groups": 32, "stride": 2}, ("shifts", "full", "onednn")),
    "1×1 strided": (((8, 28, 28, 64), (1, 1, 64, 128)), {"stride": 2, "padding": 0}, ("product", "product", "onednn")),
    "1-D strided": (((8, 64, 64), (1, 64, 128)), {"stride": 2, "padding": 0}, ("lax", "product", "onednn")),
    "large": (((8, 28, 28, 32), (7, 7, 1, 32)), {"groups": 32}, ("onednn", "onednn", "depthwise")),
    "1-D depthwise": (((8, 64, 32), (3, 1, 32)), {"groups": 32}, ("shifts", "full", "depthwise")),
    "1×1 to 24": (((8, 28, 28, 96), (1, 1, 96, 24)), {}, ("onednn", "onednn", "product")),
    "patchify": (((8, 28, 28, 96), (2, 2, 96, 192)), {"stride": 2, "padding": 0}, ("onednn", "product", "onednn")),
    "groups": (((8, 28, 28, 256), (3, 3, 8, 256)), {"groups": 32}, ("onednn", "onednn", "onednn")),
    "3-D": (((2, 8, 8, 8, 32), (3, 3, 3, 32, 32)), {}, ("onednn", "onednn", "onednn")),
}


@pytest.mark.skipif(
    loading.why_off() is None and "avx512" not in loading.about().instruction_set, reason="measured with AVX-512"
)
@pytest.mark.parametrize("layer", LAYERS)
def test_what_was_measured_to_be_faster_comes_first(layer: str) -> None:
    shapes, options, expected = LAYERS[layer]
    assert tuple(c.formulation for c in jaxconv.plan(*shapes, platform="cpu", **options)) == expected


@pytest.mark.parametrize(
    ("shapes", "options", "why"),
    [
        (((1, 6, 2), (3, 2, 2)), {"dtype": "float64"}, "computes in float32, bfloat16 and float16, not in float64"),
        (((1, 6, 2), (3, 2, 2)), {"input_dilation": 2}, "has no input dilation"),
        (((1, 6, 2), (3, 2, 2)), {"padding": ((-1, 2),)}, "has no negative padding"),
        (((1, 3, 3, 3, 3, 2), (2, 2, 2, 2, 2, 2)), {}, "has 1 to 3 spatial axes, not 4"),
        (((1, 6, 2), (3, 2, 2)), {"platform": "cuda"}, "computes on CPUs"),
        (((0, 6, 2), (3, 2, 2)), {}, "there is nothing to compute"),
    ],
)
def test_what_onednn_does_not_take_goes_to_xla_or_is_an_error(shapes: Any, options: dict[str, Any], why: str) -> None:
    options = {"platform": "cpu", **options}
    assert "onednn" not in {c.formulation for c in jaxconv.plan(*shapes, **options)}
    with pytest.raises(ValueError, match=rf'^engine="onednn" cannot compute this conv: .*{why}.* engine="auto" can\.$'):
        jaxconv.plan(*shapes, engine="onednn", **options)


X, W = np.ones((4, 6, 6, 8), np.float32), np.ones((3, 3, 8, 8), np.float32)


def test_other_layouts_are_copied_and_plan_says_so() -> None:
    of = partial(jaxconv.plan, engine="onednn", platform="cpu")
    assert {c.holds for c in of((1, 9, 16), (3, 16, 16))} == {"reordered kernels, and oneDNN's own scratch"}
    assert all("x and y channels-last" in c.holds for c in of((1, 16, 9), (16, 16, 3), layout="NCHW"))


def test_each_way_to_compute_is_offered_once_and_lax_says_why_no_engine_does() -> None:
    def names(padding: int, engine: str) -> list[str]:
        geometry = conv_geometry("conv", (8, 32, 32, 3), (3, 3, 3, 64), padding=padding)
        call = Call("input_grad", "cpu", jnp.dtype("float32"), geometry, 8, 3, 64, engine=engine)
        return [f"{f.name}: {f.why}" if f.name == "lax" else f.name for f in choice.candidates(call)]

    assert [name.partition(":")[0] for name in names(1, "auto")][:3] == ["fold", "onednn", "lax"]
    assert names(1, "auto").count("onednn") == 1 and names(1, "xla").count("onednn") == 0
    (lax,) = (name for name in names(-1, "auto") if name.startswith("lax"))
    assert lax.endswith("; oneDNN has no negative padding")


def test_an_engine_that_cannot_is_an_error_of_the_call_too() -> None:
    with pytest.raises(ValueError, match=r'^engine="onednn" cannot compute this conv: oneDNN has no input dilation'):
        jaxconv.conv(X, W, input_dilation=2, engine="onednn")


def gradient(engine: str) -> Any:
    return jax.grad(lambda w, x: (jaxconv.conv(x, w, engine=engine) ** 2).sum())


@pytest.mark.parametrize(("engine", "platform", "calls"), [("auto", "cpu", 2), ("xla", "cpu", 0), ("auto", "cuda", 0)])
def test_each_platform_gets_its_own_program(engine: str, platform: str, calls: int) -> None:
    text = jax.jit(gradient(engine)).trace(W, X).lower(lowering_platforms=(platform,)).as_text()
    assert text.count(HANDLER) == calls


def test_an_exported_program_needs_no_engine() -> None:
    exported = jax.export.export(jax.jit(gradient("auto")), platforms=["cpu", "cuda"])(W, X)
    assert HANDLER not in exported.mlir_module()
    np.testing.assert_allclose(exported.call(W, X), gradient("auto")(W, X), rtol=1e-5)
    with pytest.raises(ValueError, match=HANDLER):
        jax.export.export(jax.jit(gradient("onednn")))(W, X)


def test_each_device_of_a_shard_map_computes_its_own_part() -> None:
    mesh = cpu_mesh(AxisType.Auto, n=4)
    parts = jax.shard_map(partial(jaxconv.conv, engine="auto"), mesh=mesh, in_specs=(P("n"), P()), out_specs=P("n"))
    assert HANDLER in jax.jit(parts).lower(X, W).as_text()
    np.testing.assert_array_equal(jax.jit(parts)(X, W), jaxconv.conv(X, W))


def test_xla_splits_its_own_convolutions_only() -> None:
    mesh = cpu_mesh(AxisType.Auto, n=4)
    x = jax.device_put(X, NamedSharding(mesh, P("n")))
    program = jax.jit(gradient("auto")).lower(W, x)
    assert HANDLER not in program.as_text() and "all-gather" not in program.compile().as_text()
    with pytest.raises(ValueError, match="in programs that XLA does not split over devices"):
        jax.jit(gradient("onednn")).lower(W, x)


def test_threads_take_turns() -> None:
    drawn = [Drawn(seed) for seed in range(4)]

    def results(drawn: Drawn) -> list[np.ndarray]:
        x, w, g = (jnp.asarray(a, "float32") for a in (drawn.x, drawn.w, drawn.g))
        pairs = {"conv": (x, w), "input_grad": (g, w), "kernel_grad": (x, g)}
        return [np.asarray(convolution.compute(name, *pair, drawn.geometry)) for name, pair in pairs.items()]

    alone = [results(one) for one in drawn]
    with ThreadPoolExecutor(8) as threads:
        for index, together in enumerate(threads.map(results, drawn * 8)):
            jax.tree.map(np.testing.assert_array_equal, together, alone[index % 4])


def test_denormal_numbers_are_zeros_on_every_thread() -> None:
    """As they are to XLA: to many a CPU each is an interruption."""
    x, w = np.full((8, 32, 32, 32), 1e-39, np.float32), np.ones((3, 3, 32, 32), np.float32)
    assert not np.asarray(jaxconv.conv(x, w, engine="onednn")).any()
