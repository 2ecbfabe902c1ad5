"""Static shape algebra, integers only: `algebra` holds the sizes, `resolve` validates what a caller wrote."""

from jaxconv.geometry.algebra import INDICES, LAYOUTS, Axis, Geometry, Layout, largest_divisor, placed
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

__all__ = [
    "INDICES",
    "LAYOUTS",
    "Axis",
    "Geometry",
    "Layout",
    "check_layout",
    "conv_geometry",
    "conv_transpose_geometry",
    "hung_over",
    "integer",
    "largest_divisor",
    "names",
    "per_axis",
    "placed",
    "resolve_padding",
    "same_rank",
    "sizes",
    "spatial_rank",
    "window_geometry",
]
