"""Dilated convolution and its gradients as sums over taps: the oracle in float64.

    y[n, o, p]     = bias[o] + sum_{c, t} w[o, c, t] x[n, c, p s - b + t d]
    grad_x[n, c, q] = sum_{o, t, p: p s - b + t d = q} w[o, c, t] g[n, o, p]
    grad_w[o, c, t] = sum_{n, p} g[n, o, p] x[n, c, p s - b + t d]

with stride s, padding b, dilation d (the atrous rate); x beyond the map is 0; o and c of one group.
Each is bilinear, and the three are each other's derivatives.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from .geometry import Axis, Geometry


def conv(
    x: Tensor,  # [N, G * C, H, W]
    weight: Tensor,  # [G * O, C, kh, kw]
    bias: Tensor | None,  # [G * O]
    geometry: Geometry,
    groups: int,
) -> Tensor:  # [N, G * O, Ho, Wo]
    size = geometry.rows.output, geometry.columns.output
    y = x.new_zeros((x.shape[0], groups, weight.shape[0] // groups, *size))
    x, weight = x.unflatten(1, (groups, -1)), weight.unflatten(0, (groups, -1))
    for i, j, outputs, inputs in _live_taps(geometry):
        y[outputs] += torch.einsum("ngchw,goc->ngohw", x[inputs], weight[..., i, j])
    y = y.flatten(1, 2)
    return y if bias is None else y + bias[:, None, None]


def grad_input(
    grad: Tensor,  # [N, G * O, Ho, Wo]
    weight: Tensor,  # [G * O, C, kh, kw]
    geometry: Geometry,
    groups: int,
) -> Tensor:  # [N, G * C, H, W]
    size = geometry.rows.input, geometry.columns.input
    x = grad.new_zeros((grad.shape[0], groups, weight.shape[1], *size))
    grad, weight = grad.unflatten(1, (groups, -1)), weight.unflatten(0, (groups, -1))
    for i, j, outputs, inputs in _live_taps(geometry):
        x[inputs] += torch.einsum("ngohw,goc->ngchw", grad[outputs], weight[..., i, j])
    return x.flatten(1, 2)


def grad_weight(
    grad: Tensor,  # [N, G * O, Ho, Wo]
    x: Tensor,  # [N, G * C, H, W]
    geometry: Geometry,
    groups: int,
) -> Tensor:  # [G * O, C, kh, kw]
    grad, x = grad.unflatten(1, (groups, -1)), x.unflatten(1, (groups, -1))
    kernel = geometry.rows.taps, geometry.columns.taps
    weight = x.new_zeros((groups, grad.shape[2], x.shape[2], *kernel))
    for i, j, outputs, inputs in _live_taps(geometry):
        weight[..., i, j] = torch.einsum("ngohw,ngchw->goc", grad[outputs], x[inputs])
    return weight.flatten(0, 1)


_Index = Any


def _live_taps(geometry: Geometry) -> Iterator[tuple[int, int, _Index, _Index]]:
    """Every tap (i, j) with the outputs it is live for and the inputs that it reads there."""
    for i in range(geometry.rows.taps):
        rows = geometry.rows.live(i)
        for j in range(geometry.columns.taps):
            columns = geometry.columns.live(j)
            if rows and columns:
                outputs = ..., _slice(rows), _slice(columns)
                inputs = ..., _inputs(geometry.rows, i, rows), _inputs(geometry.columns, j, columns)
                yield i, j, outputs, inputs


def _slice(outputs: range) -> slice:
    return slice(outputs.start, outputs.stop)


def _inputs(axis: Axis, tap: int, outputs: range) -> slice:
    first = axis.first_input(tap, outputs.start)
    return slice(first, first + (len(outputs) - 1) * axis.stride + 1, axis.stride)
