"""What the ops on shards refuse, and what they say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from jaxconv import sharded
from tests.support.devices import cpu_mesh
from tests.support.refusal import refusal

X, W = np.ones((1, 8, 4, 2)), np.ones((3, 3, 2, 3))
OPS: dict[str, Callable[..., Any]] = {
    "conv": lambda x, **options: sharded.conv(x, W, **options),
    "max_pool": lambda x, **options: sharded.max_pool(x, 2, **options),
    "avg_pool": lambda x, **options: sharded.avg_pool(x, 2, **options),
    "halo": lambda x, **options: sharded.halo(x, 1, **options),
}
EVERY = pytest.mark.parametrize("name", OPS)


def refused(op: Callable[..., Any], **options: Any) -> str:
    """What is said of a call on a shard of a 2×2 mesh."""
    mesh = cpu_mesh(AxisType.Auto, rows=2, columns=2)
    mapped = jax.shard_map(lambda x: op(x, **options), mesh=mesh, in_specs=P(None, "rows"), out_specs=P(None, "rows"))
    return refusal(lambda: mapped(X), ValueError, TypeError)


@EVERY
def test_a_split_has_an_entry_for_every_axis(name: str) -> None:
    message = refused(OPS[name], split=("rows",))
    assert message.startswith(f"sharded.{name}: split must have one entry per spatial axis: the name of the mesh axis")
    assert message.endswith("but len(split) = 1 != 2.")


@EVERY
@pytest.mark.parametrize("split", ["rows", 1, None])
def test_a_split_is_a_tuple(name: str, split: Any) -> None:
    assert refused(OPS[name], split=split).endswith(f"but is {split!r}. Write a tuple.")


@EVERY
def test_a_mesh_axis_splits_one_axis(name: str) -> None:
    message = refused(OPS[name], split=("rows", ("columns", "rows")))
    assert "a mesh axis can split only one axis of x, but" in message and "has 'rows' 2 times." in message


@EVERY
def test_a_mesh_axis_has_to_be_there(name: str) -> None:
    assert "'depth' is none of these (here: 'rows', 'columns')" in refused(OPS[name], split=("depth", None))


@pytest.mark.parametrize("name, whole", [("conv", "conv"), ("max_pool", "max_pool"), ("halo", "pad")])
def test_outside_of_shard_map_there_is_another_op(name: str, whole: str) -> None:
    message = refusal(lambda: OPS[name](X, split=("rows", None)), ValueError)
    assert "(here: none)" in message and message.endswith(f"there is jaxconv.{whole}.")


@EVERY
def test_the_other_arguments_are_checked_as_ever(name: str) -> None:
    op, split = OPS[name], ("rows", None)
    assert f"sharded.{name}: rules must be one of" in refused(op, split=split, rules="slow")
    assert f"sharded.{name}: layout must be one of" in refused(op, split=split, layout="HWC")
    assert f"sharded.{name}: padding" in refused(
        lambda x, **o: sharded.halo(x, "SAME", **o) if name == "halo" else op(x, padding="FULL", **o), split=split
    )


def test_sizes_are_those_of_the_whole() -> None:
    conv, pool = (OPS[name] for name in ("conv", "max_pool"))
    assert "2 shards of 4, 4 % 3 = 1" in refused(conv, split=("rows", None), stride=3)
    assert "2 shards of 4, 6 * 1 != 8" in refused(conv, split=("rows", None), padding="VALID")
    assert "4 shards of 4, 15 * 1 != 16" in refused(pool, split=(("columns", "rows"), None), stride=1)


def test_a_halo_needs_something_to_be_a_halo_of() -> None:
    empty = refused(lambda x, **options: sharded.halo(x[:, :0], 1, **options), split=("rows", None))
    assert "every spatial size of a shard must be at least 1, but x.shape = (1, 0, 4, 2)" in empty
    assert "padding must not crop more than there is" in refused(
        lambda x, **options: sharded.halo(x, ((-3, -2), (0, 0)), **options), split=("rows", None)
    )
