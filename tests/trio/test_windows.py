"""One tap reads and writes at the same places, and windows side by side are what their taps read."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxconv.geometry import LAYOUTS, Geometry, window_geometry
from jaxconv.windows import accumulator, at_tap, from_tiles, padded, tap_slice, taps, tiles, widened

OPTIONS: list[dict[str, Any]] = [
    {"window": 1, "stride": 1, "padding": 0},
    {"window": (3, 2), "stride": (2, 3), "padding": ((1, 2), (0, 1))},
    {"window": (2, 3), "stride": 1, "padding": "SAME", "dilation": (3, 2)},
    {"window": 2, "stride": 2, "padding": ((-2, 1), (3, -1))},
    {"window": (2, 3), "stride": (2, 3), "padding": 0},  # tiles, of which the last is not whole
    {"window": 9, "stride": 2, "padding": 0},  # windows that do not fit
]


def case(layout: str, options: dict[str, Any]) -> tuple[Geometry, np.ndarray]:
    geometry = window_geometry("test", (7, 8), layout=layout, **options)
    return geometry, np.random.default_rng(0).normal(size=geometry.x_shape(2, 3))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_writing_a_tap_is_the_transpose_of_reading_it(layout: str, options: dict[str, Any]) -> None:
    geometry, x = case(layout, options)
    for number, tap in enumerate(taps(geometry)):
        read = lambda x, tap=tap: tap_slice(padded(x, geometry), tap, geometry)  # noqa: E731
        g = np.random.default_rng(number).normal(size=geometry.y_shape(2, 3))
        assert read(x).shape == g.shape
        np.testing.assert_array_equal(at_tap(jnp.asarray(g), tap, geometry), jax.linear_transpose(read, x)(g)[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tiles_are_put_together_as_they_were_read(layout: str) -> None:
    found = 0
    for options in OPTIONS:
        geometry, x = case(layout, options)
        if not tiles(geometry):
            continue
        found += 1
        shape, first = geometry.y_shape(2, 3), geometry.layout.y[2]
        cut = np.zeros([*shape[:first], *itertools.chain(*zip(geometry.out, geometry.taps, strict=True)),
                        *shape[first + 2 :]])  # fmt: skip
        together: Any = 0
        for i, j in taps(geometry):
            part = tap_slice(padded(jnp.asarray(x), geometry), (i, j), geometry)
            cut[(slice(None),) * first + (slice(None), i, slice(None), j)] = part
            together = together + at_tap(part, (i, j), geometry)
        np.testing.assert_array_equal(from_tiles(jnp.asarray(cut), geometry), together)
    assert found == 3


def test_sums_of_narrow_floats_are_carried_in_float32() -> None:
    assert [accumulator(dtype) for dtype in (jnp.bfloat16, jnp.float16, jnp.int8)] == [jnp.float32] * 2 + [jnp.int8]
    assert [widened(jnp.zeros(1, dtype)).dtype for dtype in (jnp.float16, jnp.float64)] == [jnp.float32, jnp.float64]
