"""Launches the Triton kernels of dilated convolution: allocation, tables, grids.

Imported by the first call on a GPU. The tables of a geometry are copied to the device once and kept
for good, since CUDA graphs hold their address; nothing here looks at values. Dense kernels work in
channels_last: other maps are converted once, and results come in channels_last.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton.language as tl
from torch import Tensor

from segfast.kernels.dilated_conv import triton_work
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.kernels.dilated_conv.triton_configurations import ALIGNMENT, SUM_ROWS
from segfast.kernels.dilated_conv.triton_dense import dense_kernel, grad_weight_kernel
from segfast.kernels.dilated_conv.triton_tiles import sum_pieces_kernel
from segfast.kernels.dilated_conv.triton_work import Branch, Work
from segfast.ops._dilated_conv_plan import Strides
from segfast.ops._dilated_conv_triton_context import one_launch
from segfast.ops._dilated_conv_triton_depthwise import depthwise, depthwise_grad_weight
from segfast.ops._dilated_conv_triton_tables import (
    DOT_DTYPES,
    require_no_capture,
    upload,
)
from segfast.ops._layout import dtype_name
from segfast.ops._triton import index_type, multiprocessors, on_device

# ------------------------------------------------------------------------------ tables


class _Launch(NamedTuple):
    work: Work
    table: Tensor  # [rows, columns] int32
    sums: Tensor | None  # the same of what is in pieces


@functools.cache
def _launch(make: Callable[..., Work], device: torch.device, *facts: Any) -> _Launch:
    require_no_capture(device)
    work = make(*facts, multiprocessors(device))
    rows = map(triton_work.padded, filter(None, (work.table, work.sums)))
    tables = upload(device, *rows)
    return _Launch(work, tables[0], tables[1] if work.sums else None)


# ------------------------------------------------------------------------------ dense


def _positions_first(x: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H, W, C] contiguous, a view of channels_last; C padded to ALIGNMENT."""
    missing = -x.shape[1] % ALIGNMENT
    x = x.permute(0, 2, 3, 1)
    return F.pad(x, (0, missing)) if missing else x.contiguous()


def _partial(launch: _Launch, like: Tensor) -> Tensor | None:
    c, slots = launch.work.configuration, launch.work.slots
    shape = (slots, c.block_m, c.block_n)
    return like.new_empty(shape, dtype=torch.float32) if slots else None


def _tiles(launch: _Launch) -> dict[str, Any]:
    c = launch.work.configuration
    return {
        "ROWS": launch.table.shape[0],
        "BLOCK_M": c.block_m,
        "BLOCK_N": c.block_n,
        "BLOCK_K": c.block_k,
        "num_warps": c.num_warps,
        "num_stages": c.num_stages,
    }


def _sum_pieces(
    launch: _Launch,
    partial: Tensor | None,
    epilogue: Sequence[Tensor | None],  # bias, scale, shift
    out: Tensor,  # [..., channels]
    filled: int | None,
    steps: tuple[int, int, int],  # positions from an image to the next, a line, an element
    **options: Any,
) -> None:
    if launch.sums is None:
        return
    sum_pieces_kernel[(launch.work.sum_programs,)](
        partial,
        launch.sums,
        *epilogue,
        out,
        out.shape[-1],
        filled,
        *steps,
        **options,
        ROWS=launch.sums.shape[0],
        COLUMNS=launch.sums.shape[1],
        BLOCK_M=launch.work.configuration.block_m,
        BLOCK_N=launch.work.configuration.block_n,
        SUM_ROWS=SUM_ROWS,
    )


def _dense(
    x: Tensor,  # [N, H, W, C]
    weight: Tensor,  # [O, taps, C] of every branch, one after another
    branches: tuple[Branch, ...],
    stride: tuple[int, int] = (1, 1),
    bias: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    relu: bool = False,
    filled: int | None = None,  # channels of y from here on are 0
) -> Tensor:  # [N, Ho, Wo, sum O]
    batch, height, width, channels = x.shape
    rows, columns = branches[0].geometry
    out_height, out_width = rows.output, columns.output
    y = x.new_empty((batch, out_height, out_width, sum(b.channels for b in branches)))
    if not y.numel():
        return y
    launch = _launch(triton_work.dense, x.device, branches, batch, channels, dtype_name(x.dtype))
    partial, c = _partial(launch, x), launch.work.configuration
    epilogue = [None if f is None else f.contiguous() for f in (bias, scale, shift)]
    options = {
        "RELU": relu,
        "ALIGNED": all(b.channels % ALIGNMENT == 0 for b in branches),
        "INDEX": index_type(x, y),
    }
    with on_device(x):
        dense_kernel[(launch.work.programs,)](
            x,
            weight,
            *epilogue,
            y,
            partial,
            launch.table,
            channels,
            y.shape[3],
            filled,
            height * width,
            stride[0] * width,
            stride[1],
            out_height * out_width,
            out_width,
            **options,
            WHOLE=channels % c.block_k == 0,
            DOT_DTYPE=DOT_DTYPES[x.dtype],
            **_tiles(launch),
        )
        steps = (out_height * out_width, out_width, 1)
        _sum_pieces(launch, partial, epilogue, y, filled, steps, **options)
    return y


def _dense_grad_weight(grad: Tensor, x: Tensor, geometry: Geometry, strides: Strides) -> Tensor:
    """Maps [N, H, W, channels], padded channels -> [O, taps, C]"""
    (batch, height, width, channels), outputs = x.shape, grad.shape[3]
    rows, columns = geometry
    taps = rows.taps * columns.taps
    out = x.new_empty((outputs, taps, channels))
    launch = _launch(
        triton_work.grad_weight, x.device, geometry, batch, (outputs, channels), dtype_name(x.dtype)
    )
    partial = _partial(launch, x)
    with on_device(x):
        grad_weight_kernel[(launch.work.programs,)](
            grad,
            x,
            out,
            partial,
            launch.table,
            outputs,
            channels,
            taps,
            height * width,
            strides.sh * width,
            strides.sw,
            rows.output * columns.output,
            columns.output,
            INDEX=index_type(grad, x),
            DOT_DTYPE=DOT_DTYPES[x.dtype],
            **_tiles(launch),
        )
        _sum_pieces(
            launch, partial, (None,) * 3, out, None, (0, 0, taps),
            RELU=False, ALIGNED=True, INDEX=tl.int32,
        )  # fmt: skip
    return out


# ------------------------------------------------------------------------------ the operators


def conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, strides: Strides
) -> Tensor:
    if x.shape[1] == weight.shape[0] == strides.groups:
        size = geometry.rows.output, geometry.columns.output
        return depthwise(x, weight, bias, size, strides)
    branches = (Branch(geometry, weight.shape[0], False),)
    y = _dense(
        _positions_first(x), _positions_first(weight), branches, (strides.sh, strides.sw), bias
    )
    return y.permute(0, 3, 1, 2)


def grad_input(grad: Tensor, weight: Tensor, geometry: Geometry, strides: Strides) -> Tensor:
    """Dense: at stride 1 only."""
    if weight.shape[1] == 1 and weight.shape[0] == strides.groups:
        size = geometry.rows.input, geometry.columns.input
        return depthwise(grad, weight, None, size, strides, transposed=True)
    branches = (Branch(triton_work.mirrored(geometry), weight.shape[1], True),)
    x = _dense(_positions_first(grad), _positions_first(weight.transpose(0, 1)), branches)
    return x.permute(0, 3, 1, 2)


def grad_weight(grad: Tensor, x: Tensor, geometry: Geometry, strides: Strides) -> Tensor:
    if x.shape[1] == grad.shape[1] == strides.groups:
        return depthwise_grad_weight(grad, x, geometry, strides)
    weight = _dense_grad_weight(_positions_first(grad), _positions_first(x), geometry, strides)
    kernel = geometry.rows.taps, geometry.columns.taps
    weight = weight[: grad.shape[1], :, : x.shape[1]]
    return weight.unflatten(1, kernel).permute(0, 3, 1, 2)


def _same(x: Tensor, weight: Tensor, rate: int) -> Branch:
    """A convolution of x [N, H, W, C] that keeps its size, by weight [O, C, kh, kw]."""
    size, kernel = (x.shape[1], x.shape[2]), (weight.shape[2], weight.shape[3])
    return Branch(Geometry.same(size, kernel, rate), weight.shape[0], False)


def pyramid(
    x: Tensor,  # [N, C, H, W]
    weights: Sequence[Tensor],  # [O_b, C, kh, kw] each, kh and kw odd
    bias: Tensor | None,  # [O], O = sum O_b
    rates: Sequence[int],
    scale: Tensor | None,  # [O]
    shift: Tensor | None,  # [O]
    relu: bool,
) -> Tensor:  # [N, O, H, W], in channels_last
    """All branches in one launch, side by side: act(scale (conv_b(x) + bias) + shift)."""
    x = _positions_first(x)
    branches = tuple(_same(x, w, rate) for w, rate in zip(weights, rates, strict=True))
    weight = torch.cat([_positions_first(w).flatten() for w in weights])
    y = _dense(x, weight, branches, bias=bias, scale=scale, shift=shift, relu=relu)
    return y.permute(0, 3, 1, 2)


def context_module(
    x: Tensor,  # [N, C, H, W]
    weights: Sequence[Tensor],  # [C_i, C_{i - 1}, kh, kw] each, kh and kw odd
    biases: Sequence[Tensor | None],
    dilations: Sequence[int],
) -> Tensor:  # in channels_last
    """One launch for all layers where that is faster, else one for each, its ReLU included."""
    y = one_launch(x, weights, biases, dilations)
    return layer_by_layer(x, weights, biases, dilations) if y is None else y


def layer_by_layer(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor | None], dilations: Sequence[int]
) -> Tensor:
    """As context_module; channels stay padded, with zeros, from layer to layer."""
    x = _positions_first(x)
    layers = list(zip(weights, biases, dilations, strict=True))
    for i, (w, bias, rate) in enumerate(layers):
        filled, missing = None, -w.shape[0] % ALIGNMENT
        if missing:
            filled = w.shape[0]
            w = F.pad(w, (0, 0, 0, 0, 0, 0, 0, missing))
            bias = None if bias is None else F.pad(bias, (0, missing))
        branches, relu = (_same(x, w, rate),), i + 1 < len(layers)
        x = _dense(x, _positions_first(w), branches, bias=bias, relu=relu, filled=filled)
    return x[..., : weights[-1].shape[0]].permute(0, 3, 1, 2)
