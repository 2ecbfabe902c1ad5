"""Static shape algebra, integers only: `algebra` holds the sizes, `resolve` validates what a caller wrote."""

from jaxconv.geometry.algebra import (
    LAYOUTS,
    Axis,
    Geometry,
    Layout,
    channels_last,
    inverse,
    largest_divisor,
    placed,
    taps_first,
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
    sizes,
    spatial_rank,
    window_geometry,
)

__all__ = [
    "LAYOUTS",
    "Axis",
    "Geometry",
    "Layout",
    "channels_last",
    "check_layout",
    "conv_geometry",
    "conv_transpose_geometry",
    "hung_over",
    "integer",
    "inverse",
    "largest_divisor",
    "names",
    "per_axis",
    "placed",
    "resolve_padding",
    "sizes",
    "spatial_rank",
    "taps_first",
    "window_geometry",
]
