"""Static shape algebra, integers only: `algebra` holds the sizes, `resolve` validates what a caller wrote.

`shards` is about axes that are split over devices.
"""

from jaxconv.geometry.algebra import (
    INDICES,
    LAYOUTS,
    Axis,
    Geometry,
    Layout,
    channels_last_order,
    inverse,
    largest_divisor,
    placed,
    taps_first_order,
)
from jaxconv.geometry.resolve import (
    check_layout,
    conv_geometry,
    conv_transpose_geometry,
    hung_over,
    integer,
    names,
    per_axis,
    resolve_padding,
    same_rank,
    sizes,
    spatial_rank,
    window_geometry,
)
from jaxconv.geometry.shards import Halo, check_split, pieces, shard_geometry

__all__ = [
    "INDICES",
    "LAYOUTS",
    "Axis",
    "Geometry",
    "Halo",
    "Layout",
    "channels_last_order",
    "check_layout",
    "check_split",
    "conv_geometry",
    "conv_transpose_geometry",
    "hung_over",
    "integer",
    "inverse",
    "largest_divisor",
    "names",
    "per_axis",
    "pieces",
    "placed",
    "resolve_padding",
    "same_rank",
    "shard_geometry",
    "sizes",
    "spatial_rank",
    "taps_first_order",
    "window_geometry",
]
