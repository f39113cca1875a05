"""Launches the Triton kernels of depthwise dilated convolution, in the memory format of maps."""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from segfast.kernels.dilated_conv import triton_configurations as configurations
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.kernels.dilated_conv.triton_depthwise import (
    depthwise_grad_weight_kernel,
    depthwise_kernel,
    sum_splits_kernel,
)
from segfast.ops._dilated_conv_plan import Strides
from segfast.ops._triton import index_type, multiprocessors, on_device

SUM_BLOCK = 256


def _empty_like(x: Tensor, height: int, width: int) -> Tensor:
    layout = torch.channels_last if x.stride(1) == 1 else torch.contiguous_format
    shape = (*x.shape[:2], height, width)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout)


def _taps_first(weight: Tensor) -> Tensor:
    """[C, 1, kh, kw] -> [kh kw, C]"""
    return weight.flatten(1).t().contiguous()


def depthwise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    size: tuple[int, int],
    strides: Strides,
    transposed: bool = False,
) -> Tensor:
    batch, channels, height, width = x.shape
    y = _empty_like(x, *size)
    positions = batch * size[0] * size[1]
    block = configurations.DEPTHWISE["depthwise", x.stride(1) == 1]
    programs = triton.cdiv(positions, block.positions) * triton.cdiv(channels, block.channels)
    if not programs:
        return y
    with on_device(x):
        depthwise_kernel[(programs,)](
            x,
            _taps_first(weight),
            None if bias is None else bias.contiguous(),
            y,
            channels,
            height,
            width,
            *size,
            positions,
            *x.stride(),
            *y.stride(),
            *weight.shape[2:],
            *strides[:6],
            TRANSPOSED=transposed,
            INDEX=index_type(x, y),
            BLOCK_P=block.positions,
            BLOCK_C=block.channels,
            num_warps=block.num_warps,
        )
    return y


def depthwise_grad_weight(grad: Tensor, x: Tensor, geometry: Geometry, strides: Strides) -> Tensor:
    batch, channels, height, width = x.shape
    rows, columns = geometry
    taps = rows.taps * columns.taps
    positions = batch * rows.output * columns.output
    block = configurations.DEPTHWISE["grad_weight", x.stride(1) == 1]
    blocks = triton.cdiv(channels, block.channels)
    block_t = min(configurations.MOST_TAPS, triton.next_power_of_2(taps))
    tap_blocks = triton.cdiv(taps, block_t)
    span, splits = configurations.spans(
        positions, block.positions, blocks * tap_blocks, 4 * multiprocessors(x.device)
    )
    partial = x.new_empty((splits, taps, channels), dtype=torch.float32)
    out = x.new_empty((taps, channels))
    with on_device(x):
        depthwise_grad_weight_kernel[(splits * blocks * tap_blocks,)](
            grad,
            x,
            partial,
            channels,
            height,
            width,
            rows.output,
            columns.output,
            positions,
            *grad.stride(),
            *x.stride(),
            taps,
            columns.taps,
            *strides[:6],
            span,
            blocks,
            tap_blocks,
            INDEX=index_type(grad, x),
            BLOCK_T=block_t,
            BLOCK_P=block.positions,
            BLOCK_C=block.channels,
            num_warps=block.num_warps,
        )
        programs = triton.cdiv(out.numel(), SUM_BLOCK)
        sum_splits_kernel[(programs,)](partial, out, out.numel(), splits, BLOCK=SUM_BLOCK)
    return out.t().reshape(channels, 1, rows.taps, columns.taps)
