"""Several dilated convolutions in one call of the kernels, where nothing differentiates.

The pyramid's branches: on the CPU by csrc/cpu/dilated_conv_dense.cpp, on CUDA in one Triton launch;
the context module's layers on CUDA with their ReLU. Elsewhere, and where a gradient, a compiler or
torch.func looks on, they are composed of convolutions (dilated_conv.py).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from segfast._native import native
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops._autocast import autocast
from segfast.ops._dilated_conv_cuda import launchers
from segfast.ops._dilated_conv_geometry import Branch
from segfast.ops._dilated_conv_op import choose, problem
from segfast.ops._function import compiled, needs_graph, transformed
from segfast.ops._layout import dense

PYRAMID = "_atrous_pyramid_dense"
torch.library.define(
    f"segfast::{PYRAMID}",
    "(Tensor x, Tensor[] weights, Tensor? bias, int[] rates, Tensor? scale, Tensor? shift, "
    "bool relu) -> Tensor",
)


def pyramid(
    x: Tensor,  # [N, C, H, W]
    branches: list[Branch],
    scale: Tensor | None,  # [O]
    shift: Tensor | None,  # [O]
    relu: bool,
) -> Tensor | None:  # [N, O, H, W]
    """act(scale ([w_1 *_{r_1} x + b_1, ...]) + shift), or None where the composition must serve."""
    factors = [scale, shift]
    if not _plain([x, *factors, *(t for weight, bias, _ in branches for t in (weight, bias))]):
        return None
    x = autocast(x)
    if any(factor is not None and autocast(factor).dtype != x.dtype for factor in factors):
        return None  # the composition's result has another dtype
    weights = [autocast(weight) for weight, _, _ in branches]
    biases = [None if bias is None else autocast(bias) for _, bias, _ in branches]
    rates = [rate for _, _, rate in branches]
    bias = _side_by_side(x, weights, biases)
    scale, shift = (None if factor is None else autocast(factor) for factor in factors)
    kernels = [_kernel(x, weight, rate) for weight, rate in zip(weights, rates, strict=True)]
    if set(kernels) == {"triton"}:
        y: Tensor = launchers().pyramid(x, weights, bias, rates, scale, shift, relu)
        return dense(y, like=x)
    if "dense" not in kernels or native() is None or not compiled(PYRAMID, x.device.type):
        return None
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    scale, shift = (None if f is None else f.to(sums).contiguous() for f in (scale, shift))
    given = [weight.contiguous() for weight in weights]
    return getattr(torch.ops.segfast, PYRAMID)(dense(x), given, bias, rates, scale, shift, relu)


def context_module(x: Tensor, layers: list[Branch]) -> Tensor | None:
    """x [N, C, H, W] through all layers, or None where the composition must serve."""
    if not _plain([x, *(t for weight, bias, _ in layers for t in (weight, bias))]):
        return None
    x = autocast(x)
    weights = [autocast(weight) for weight, _, _ in layers]
    biases = [None if bias is None else autocast(bias) for _, bias, _ in layers]
    rates = [rate for _, _, rate in layers]
    like = (x[:, :1].expand(-1, weight.shape[1], -1, -1) for weight in weights)
    maps = zip(like, weights, rates, strict=True)
    if {_kernel(*each) for each in maps} != {"triton"}:
        return None
    return dense(launchers().context_module(x, weights, biases, rates), like=x)


def _plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nothing looks on, no gradient is wanted, and there is something to compute."""
    given = [t for t in tensors if t is not None]
    return not transformed() and not needs_graph(*given) and all(t.numel() for t in given)


def _kernel(x: Tensor, weight: Tensor, rate: int) -> str:
    """What would compute one of the convolutions by itself."""
    size, kernel = (x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])
    padding = (rate * (kernel[0] // 2), rate * (kernel[1] // 2))
    geometry = Geometry.of(size, size, kernel, (1, 1), padding, (rate, rate))
    return choose("forward", problem(x, weight.shape, geometry, 1)).kernel


def _side_by_side(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor | None:
    """[O_1 + O_2 + ...], zeros for the branches without; None where no branch has one."""
    if all(bias is None for bias in biases):
        return None
    pairs = zip(weights, biases, strict=True)
    return torch.cat([x.new_zeros(w.shape[0]) if b is None else b for w, b in pairs])
