"""Launches the Triton kernel of the whole context module: allocation, tables, the grid."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from segfast.kernels.dilated_conv import triton_context_work as context
from segfast.kernels.dilated_conv.triton_configurations import Configuration
from segfast.kernels.dilated_conv.triton_context import context_kernel
from segfast.kernels.dilated_conv.triton_context_work import ContextWork, Layer
from segfast.kernels.dilated_conv.triton_work import padded
from segfast.ops._dilated_conv_chip import chip
from segfast.ops._dilated_conv_triton_tables import (
    DOT_DTYPES,
    require_no_capture,
    upload,
)
from segfast.ops._layout import channels_last, dtype_name, gapless
from segfast.ops._triton import on_device


class _Launch(NamedTuple):
    work: ContextWork
    products: Tensor  # int32, of each layer
    layers: Tensor  # int32


@functools.cache
def _launch(
    device: torch.device, dtype: str, batch: int, size: tuple[int, int], layers: tuple[Layer, ...],
    configuration: Configuration | None,
) -> _Launch | None:  # fmt: skip
    """None: a launch for each layer. With tiles of the table unless others are asked for."""
    here = chip(device)
    c = configuration or context.choose(layers, batch, size, dtype, here).configuration
    if c is None:
        return None
    require_no_capture(device)
    work = context.work(layers, batch, size, c, here)
    products, rows = upload(device, work.products, padded(work.layers))
    return _Launch(work, products, rows)


def one_launch(
    x: Tensor,  # [N, C, H, W]
    weights: Sequence[Tensor],  # [C_i, C_{i - 1}, kh, kw] each
    biases: Sequence[Tensor | None],
    dilations: Sequence[int],
    configuration: Configuration | None = None,  # to be taken whatever the sizes are
) -> Tensor | None:  # [N, C_n, H, W] in channels_last; None: the layers are too large for it
    """All layers in one launch."""
    layers, parameters = [], []
    for weight, bias, rate in zip(weights, biases, dilations, strict=True):
        last = not weight.is_contiguous() and channels_last(weight)
        outputs, inputs, *kernel = weight.shape
        layers.append(Layer(inputs, outputs, (kernel[0], kernel[1]), rate, bias is not None, last))
        parameters.append((weight.permute(0, 2, 3, 1) if last else weight).reshape(-1))
        if bias is not None:
            parameters.append(bias)
    (batch, channels, *size), device = x.shape, x.device
    facts = (dtype_name(x.dtype), batch, (size[0], size[1]), tuple(layers), configuration)
    if (launch := _launch(device, *facts)) is None:
        return None
    work, c = launch.work, launch.work.configuration
    rows = work.layers
    positions = batch * size[0] * size[1]
    inputs, outputs = rows[0][_INPUTS], rows[-1][_OUTPUTS]
    x = gapless(x)
    y = x.new_empty((batch, *size, outputs))
    with on_device(x):
        context_kernel[(1 if triton.knobs.runtime.interpret else work.programs,)](
            x,
            torch.cat(parameters),
            y,
            x.new_empty((2, work.largest)),
            x.new_empty(work.packed),
            torch.zeros(1, dtype=torch.int32, device=device),  # also whenever a graph is replayed
            launch.products,
            launch.layers,
            channels,
            size[0] * size[1],
            size[1],
            positions * inputs,
            work.largest,
            *x.stride(),
            work.blocks,
            len(rows),
            DOT_DTYPE=DOT_DTYPES[x.dtype],
            ROWS=len(work.products) // len(rows),
            LAYER_ROWS=len(launch.layers),
            BLOCK=context.BLOCK,
            BLOCK_M=c.block_m,
            BLOCK_N=c.block_n,
            BLOCK_K=c.block_k,
            num_warps=c.num_warps,
            num_stages=c.num_stages,
            launch_cooperative_grid=True,
        )
    return y[..., : weights[-1].shape[0]].permute(0, 3, 1, 2)


_INPUTS, _OUTPUTS = context.LAYER.index("inputs"), context.LAYER.index("outputs")
