"""The arithmetic of shards: what each has to read, and when all of them are alike. Integers only."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from jaxconv.geometry import Geometry, conv_geometry, pieces, shard_geometry
from tests.support.refusal import refusal

OPTIONS = [*itertools.product((1, 2, 3), (1, 2, 3, 5), (1, 2), range(-2, 5), range(-2, 5))]  # s, k, d, lo, hi


def line(n: int, k: int, **options: Any) -> Geometry:
    return conv_geometry("conv", (1, n, 1), (k, 1, 1), **options)


def reads(geometry: Geometry, outputs: range) -> list[list[int]]:
    """The positions that each output reads, counted from the first element."""
    (a,) = geometry.axes
    return [[p * a.stride + j * a.dilation - a.lo for j in range(a.k)] for p in outputs]


def legal(n: int) -> list[tuple[int, int, int, int, int]]:
    """What does not crop more than there is."""
    return [options for options in OPTIONS if n + options[3] + options[4] >= 0]


def even(parts: int, m: int, s: int, k: int, d: int, lo: int, hi: int) -> bool:
    """Whether all shards read alike: output i·q + r of the whole from i·m on, whatever i."""
    out = line(parts * m, k, stride=s, dilation=d, padding=((lo, hi),)).out[0]
    return m > 0 and out * s == parts * m and m % s == 0


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("m", [1, 2, 3, 4, 6])
def test_a_shard_reads_what_its_outputs_read_of_the_whole(parts: int, m: int) -> None:
    aligned = [options for options in legal(parts * m) if even(parts, m, *options)]
    assert aligned
    for s, k, d, lo, hi in aligned:
        whole = line(parts * m, k, stride=s, dilation=d, padding=((lo, hi),))
        own, (halo,) = shard_geometry("conv", whole, (("i",),), (parts,))
        q = whole.out[0] // parts
        assert own.out == (q,) and own.spatial == (m + halo.lo + halo.hi,) and own.unread == (0,)
        held = [j * m + r for j, start, stop in pieces(m, halo.lo, halo.hi) for r in range(start, stop)]
        for i in range(parts):
            mine = [[i * m + held[position] for position in window] for window in reads(own, range(q))]
            assert mine == reads(whole, range(i * q, (i + 1) * q))


@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize("m", [0, 1, 2, 3, 5])
def test_shards_that_are_not_alike_are_refused(parts: int, m: int) -> None:
    others = [options for options in legal(parts * m) if not even(parts, m, *options)]
    assert others
    for s, k, d, lo, hi in others:
        whole = line(parts * m, k, stride=s, dilation=d, padding=((lo, hi),))
        with pytest.raises(ValueError, match="along spatial axis 0"):
            shard_geometry("conv", whole, (("i",),), (parts,))


@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", "CAUSAL"])
def test_words_keep_shards_alike_wherever_the_stride_divides_them(padding: str) -> None:
    for s, k, d in itertools.product((1, 2, 3), (1, 2, 3, 5), (1, 2)):
        shard_geometry("conv", line(12 * s, k, stride=s, dilation=d, padding=padding), (("i",),), (4,))


def test_the_equation_is_the_one_on_padding() -> None:
    """s·out = n if and only if span − s ≤ lo + hi < span, where the stride divides n."""
    for s, k, d, lo, hi in OPTIONS:
        whole = line(12, k, stride=s, dilation=d, padding=((lo, hi),))
        (span,) = whole.span
        assert (whole.out[0] * s == 12) == (span - s <= lo + hi < span)


def test_an_axis_of_one_shard_is_whole() -> None:
    whole = line(7, 3, stride=2, padding="VALID")
    own, (halo,) = shard_geometry("conv", whole, (("i",),), (1,))
    assert own == whole and (halo.lo, halo.hi) == (0, 0)


def test_what_is_said_of_a_shard_that_begins_between_two_windows() -> None:
    message = refusal(lambda: shard_geometry("sharded.conv", line(20, 3, stride=2), (("i",),), (4,)), ValueError)
    assert message == (
        "sharded.conv: every shard must begin where a window does, so its size must be a positive multiple of the "
        "stride, but along spatial axis 0, 4 shards of 5, 5 % 2 = 1. Pad x before it is split, or split it over fewer "
        "devices."
    )


def test_what_is_said_of_outputs_that_are_too_few() -> None:
    whole = conv_geometry("sharded.conv", (1, 3, 16, 1), (3, 3, 1, 1), padding="VALID")
    message = refusal(lambda: shard_geometry("sharded.conv", whole, ((), ("i",)), (1, 4)), ValueError)
    assert message == (
        "sharded.conv: the shards of y must lie over those of x, so out * stride must equal n, but along spatial axis "
        "1, 4 shards of 4, 14 * 1 != 16. With windows of span 3, lo + hi must be from 2 to 2, but padding is (0, 0). "
        'Take padding="SAME" and crop y once it is whole, or split another axis.'
    )
