"""PyTorch: the layers of the table, forward and either gradient alone."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import torch

from experiments.benchmark.layers import Conv, Pool
from experiments.benchmark.race import Contestant

aten = torch.ops.aten
_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def device() -> torch.device:
    """Where JAX is."""
    return torch.device("cpu" if jax.default_backend() == "cpu" else "cuda")


def configure() -> None:
    """The fast settings; on a GPU the precision that JAX has by default."""
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")


def wait(_: Any) -> None:
    if device().type == "cuda":
        torch.cuda.synchronize()


def images(x: np.ndarray, dtype: str, layout: str = "NCHW") -> torch.Tensor:
    """(n, *spatial, c) as PyTorch's (n, c, *spatial), in memory as the layout says."""
    moved = torch.from_numpy(np.ascontiguousarray(np.moveaxis(x, -1, 1))).to(device(), getattr(torch, dtype))
    return moved.contiguous(memory_format=_FORMATS[x.ndim] if layout == "channels_last" else torch.contiguous_format)


def kernel(w: np.ndarray, dtype: str, layout: str = "NCHW") -> torch.Tensor:
    """(*taps, i, o) as PyTorch's (o, i, *taps)."""
    return images(np.moveaxis(w, -1, 0), dtype, layout)


def _back(result: torch.Tensor, program: str) -> np.ndarray:
    """A result in the order of axes that JAX has."""
    y = np.moveaxis(result.float().cpu().numpy(), 1, -1)
    return np.moveaxis(y, 0, -1) if program == "kernel_grad" else y


def _layouts(rank: int) -> tuple[str, ...]:
    return ("channels_last", "NCHW") if rank in (2, 3) else ("NCHW",)


def conv(layer: Conv, program: str, dtype: str) -> dict[str, Contestant]:
    """A contestant per memory layout."""
    found = {}
    for layout in _layouts(layer.rank):
        x, w, g = layer.arrays()
        call = functools.partial(
            _dense if layer.rank == 0 else _conv, layer, program,
            images(x, dtype, layout), kernel(w, dtype, layout), images(g, dtype, layout),
        )  # fmt: skip
        found[layout] = Contestant(call, wait, {"result": _back(call(), program)})
    return found


@torch.inference_mode()
def _conv(layer: Conv, program: str, x: torch.Tensor, w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    per_axis = [
        [value] * layer.rank
        for value in (layer.stride, layer.border, layer.dilation, layer.output_padding if layer.transposed else 0)
    ]
    stride, padding, dilation, output_padding = per_axis
    options = (stride, padding, dilation, layer.transposed, output_padding, layer.groups)
    if program == "forward":
        return aten.convolution(x, w, None, *options)
    which = [program == "input_grad", program == "kernel_grad", False]
    return aten.convolution_backward(g, x, w, None, *options, which)[which.index(True)]


@torch.inference_mode()
def _dense(layer: Conv, program: str, x: torch.Tensor, w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    if program == "forward":
        return torch.nn.functional.linear(x, w)
    return g @ w if program == "input_grad" else g.T @ x


def pool(layer: Pool, program: str, dtype: str) -> dict[str, Contestant]:
    """A contestant per memory layout."""
    found = {}
    for layout in _layouts(2):
        x, g = (images(a, dtype, layout) for a in layer.arrays())
        forward, backward = _max_pool(layer) if layer.kind == "max" else _avg_pool(layer)
        call = functools.partial(_pool, program, forward, backward, x, g, forward(x))
        results = call()
        both = results if isinstance(results, tuple) else (results,)
        parts = tuple(_back(result, program) for result in both)
        found[layout] = Contestant(call, wait, {"result": parts})
    return found


@torch.inference_mode()
def _pool(program: str, forward: Any, backward: Any, x: torch.Tensor, g: torch.Tensor, saved: Any) -> Any:
    if program == "forward":
        return forward(x)[0]
    if program == "backward":
        return backward(x, g, saved)
    saved = forward(x)
    return saved[0], backward(x, g, saved)


def _max_pool(layer: Pool) -> tuple[Any, Any]:
    # SAME pads at the high end where one window too few would fit: PyTorch's ceil_mode.
    options = [layer.window] * 2, [layer.stride] * 2, [0, 0], [1, 1], layer.padding == "SAME"
    return (
        lambda x: aten.max_pool2d_with_indices(x, *options),
        lambda x, g, saved: aten.max_pool2d_with_indices_backward(g, x, *options, saved[1]),
    )


def _avg_pool(layer: Pool) -> tuple[Any, Any]:
    border = (layer.window - 1) // 2 if layer.padding == "SAME" else 0
    options = [layer.window] * 2, [layer.stride] * 2, [border] * 2, False, False, None
    return (
        lambda x: (aten.avg_pool2d(x, *options),),
        lambda x, g, saved: aten.avg_pool2d_backward(g, x, *options),
    )
