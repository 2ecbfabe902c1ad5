"""The one table of all ops but the convolutions, for tests of what every op promises; and what the tests share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxconv

Shape = tuple[int, ...]


def normal(shape: Sequence[int], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


class Op(NamedTuple):
    """An op as a function of arrays with a batch axis, of parameters without, and of integers with one."""

    name: str
    call: Callable[..., jax.Array]
    x: tuple[Shape, ...]
    parameters: tuple[Shape, ...] = ()
    integers: tuple[Shape, ...] = ()
    below: int = 0  # the integers are less than this

    def __str__(self) -> str:
        return self.name

    def arguments(self, batch: int, seed: int = 0) -> tuple[np.ndarray, ...]:
        """Arrays in general position: at no kink, without ties."""
        shapes = [*((batch, *s) for s in self.x), *self.parameters]
        floats = [1.5 * normal(s, seed + i) for i, s in enumerate(shapes)]
        integers = [np.random.default_rng(seed).integers(0, self.below, (batch, *s)) for s in self.integers]
        return *floats, *integers

    @property
    def argnums(self) -> tuple[int, ...]:
        """The differentiable arguments."""
        return tuple(range(len(self.x) + len(self.parameters)))


def _pads(x: Any, rules: str) -> jax.Array:
    """All modes, stacked last."""
    modes = ("zero", "circular", "reflect", "edge")
    return jnp.stack([jaxconv.pad(x, ((2, -1),), mode=mode, rules=rules) for mode in modes], -1)


def _activations(x: Any, rules: str) -> jax.Array:
    """All functions, stacked last."""
    plain = (jaxconv.relu, jaxconv.leaky_relu, jaxconv.elu, jaxconv.sigmoid, jaxconv.tanh, jaxconv.softplus)
    every = [*plain, jaxconv.silu, jaxconv.gelu, partial(jaxconv.gelu, approximate=False)]
    return jnp.stack([*(f(x, rules=rules) for f in every), jaxconv.relu6(6 * x, rules=rules)], -1)


def _batch_norm(x: Any, scale: Any, bias: Any, *, train: bool, **options: Any) -> jax.Array:
    dtype = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
    state = {"mean": jnp.array([0.1, -0.2], dtype), "var": jnp.array([0.5, 2], dtype)}
    return jaxconv.batch_norm(x, scale, bias, state, train=train, **options)[0]


def _max_unpool(y: Any, tap: Any, rules: str) -> jax.Array:
    """Overlapping windows of two."""
    starts = np.arange(4).reshape(1, 4, 1).astype(tap.dtype)
    return jaxconv.max_unpool(y, starts + tap, 2, 5, stride=1, rules=rules)


def _dropout(x: Any, rules: str) -> jax.Array:
    return jaxconv.dropout(x, 0.4, jax.random.key(3), rules=rules)


def _soft_cross_entropy(logits: Any, labels: Any, rules: str) -> jax.Array:
    return jaxconv.softmax_cross_entropy(logits, labels, rules=rules)


def _kept_cross_entropy(logits: Any, labels: Any, rules: str) -> jax.Array:
    return jaxconv.softmax_cross_entropy(logits, labels, where=labels != 2, rules=rules)


def _kept_squared_error(predictions: Any, targets: Any, mark: Any, rules: str) -> jax.Array:
    return jaxconv.mean_squared_error(predictions, targets, where=mark != 2, rules=rules)


_IMAGE, _CHANNELS = ((3, 3, 2),), ((2,), (2,))
_CEIL = {"padding": ((0, 1),), "ceil_mode": True}
_OVERLAP = {"stride": 1, "padding": ((1, 0), (0, 1))}

OPS = [
    Op("max_pool", partial(jaxconv.max_pool, window=2, **_OVERLAP), _IMAGE),
    Op("max_pool-NCHW", partial(jaxconv.max_pool, window=2, layout="NCHW"), ((2, 4),)),
    Op("max_unpool", _max_unpool, ((4, 2),), (), ((4, 2),), 2),
    Op("max_pool-ceil_mode", partial(jaxconv.max_pool, window=2, ceil_mode=True), _IMAGE),
    Op("avg_pool", partial(jaxconv.avg_pool, window=2, **_OVERLAP), _IMAGE),
    Op("avg_pool-ceil_mode", partial(jaxconv.avg_pool, window=3, count_padding=True, **_CEIL), ((4, 2),)),
    Op("lp_pool", partial(jaxconv.lp_pool, window=2, p=2.5, **_OVERLAP), _IMAGE),
    Op("global_avg_pool", jaxconv.global_avg_pool, _IMAGE),
    Op("pads", _pads, ((3, 2),)),
    Op("activations", _activations, ((5,),)),
    Op("dense", jaxconv.dense, ((2, 3),), ((3, 2), (2,))),
    Op("dropout", _dropout, ((5,),)),
    Op("batch_norm", partial(_batch_norm, train=True), ((3, 2),), _CHANNELS),
    Op("batch_norm-inference", partial(_batch_norm, train=False), ((3, 2),), _CHANNELS),
    Op("layer_norm", jaxconv.layer_norm, ((2, 3),), ((3,), (3,))),
    Op("rms_norm", jaxconv.rms_norm, ((2, 3),), ((3,), (3,))),
    Op("group_norm", lambda x, *p, rules: jaxconv.group_norm(x, 2, *p, rules=rules), ((2, 4),), ((4,), (4,))),
    Op("instance_norm", jaxconv.instance_norm, ((3, 2),), _CHANNELS),
    Op("cross_entropy", partial(jaxconv.softmax_cross_entropy, label_smoothing=0.1), ((4,),), (), ((),), 4),
    Op("cross_entropy-soft", _soft_cross_entropy, ((4,), (4,))),
    Op("cross_entropy-where", _kept_cross_entropy, ((4,),), (), ((),), 4),
    Op("mean_squared_error", jaxconv.mean_squared_error, ((3,), (3,))),
    Op("mean_squared_error-where", _kept_squared_error, ((3,), (3,)), (), ((1,),), 4),
]


def to_layout(x: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """An array (n, *spatial, c) in the layout of `options`."""
    return np.moveaxis(x, -1, 1) if options.get("layout") == "NCHW" else x


def in_nhwc(x: np.ndarray, options: Mapping[str, Any]) -> np.ndarray:
    """The inverse of `to_layout`."""
    return np.moveaxis(x, 1, -1) if options.get("layout") == "NCHW" else x


def assert_close(actual: Any, expected: Any, rtol: float = 1e-13) -> None:
    """The same structure and shapes, and every entry within `rtol` of the largest entry of its array."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected), strict=True):
        name, a, b = jax.tree_util.keystr(path), np.asarray(a), np.asarray(b)
        assert a.shape == b.shape, f"{name}: {a.shape} != {b.shape}"
        size = np.abs(b[np.isfinite(b)]).max(initial=0)
        np.testing.assert_allclose(a, b, rtol=0, atol=rtol * size, err_msg=name)
