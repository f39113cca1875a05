"""Several dilated convolutions in one call of the kernels, where nothing differentiates.

The pyramid's branches: on the CPU by csrc/cpu/dilated_conv_dense.cpp, on CUDA in one Triton launch;
the context module's layers on CUDA with their ReLU. Elsewhere, and where a gradient, a compiler or
torch.func looks on, they are composed of convolutions (dilated_conv.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from segfast._native import native
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops._autocast import autocast
from segfast.ops._dilated_conv_cuda import launchers
from segfast.ops._dilated_conv_geometry import Branch
from segfast.ops._dilated_conv_kernels import available, choose, problem
from segfast.ops._dilated_conv_plan import Problem, candidates
from segfast.ops._function import compiled, needs_graph, transformed
from segfast.ops._layout import dense

PYRAMID = "_atrous_pyramid_dense"
torch.library.define(
    f"segfast::{PYRAMID}",
    "(Tensor x, Tensor[] weights, Tensor? bias, int[] rates, Tensor? scale, Tensor? shift, "
    "bool relu) -> Tensor",
)


@torch.library.register_fake(f"segfast::{PYRAMID}")
def _(x: Tensor, weights: list[Tensor], *rest: Any) -> Tensor:
    n, _, height, width = x.shape
    return x.new_empty((n, sum(weight.shape[0] for weight in weights), height, width))


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
    sums = torch.promote_types(x.dtype, torch.float32)
    scale, shift = (None if f is None else f.to(sums).contiguous() for f in factors)
    weights = [autocast(weight) for weight, _, _ in branches]
    biases = [None if bias is None else autocast(bias) for _, bias, _ in branches]
    rates = [rate for _, _, rate in branches]
    bias = _side_by_side(x, weights, biases)
    asked = [_problem(x, weight, rate) for weight, rate in zip(weights, rates, strict=True)]
    kernels = {choose("forward", each).kernel for each in asked}
    if "triton" in kernels and all(map(_triton_can, asked)):
        y: Tensor = launchers().pyramid(x, weights, bias, rates, scale, shift, relu)
        return dense(y, like=x)
    if "dense" not in kernels or native() is None or not compiled(PYRAMID, x.device.type):
        return None
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
    if x.dtype.itemsize > 2 or not all(_triton_can(_problem(*each)) for each in maps):
        return None
    return dense(launchers().context_module(x, weights, biases, rates), like=x)


def _plain(tensors: Iterable[Tensor | None]) -> bool:
    """Whether nothing looks on, no gradient is wanted, and there is something to compute."""
    given = [t for t in tensors if t is not None]
    if transformed() or torch._C._len_torch_dispatch_stack() or needs_graph(*given):
        return False  # modes (fake tensors, tracing) see the convolutions
    return all(t.numel() and type(t) in (Tensor, torch.nn.Parameter) for t in given)


def _triton_can(problem: Problem) -> bool:
    return "triton" in candidates("forward", problem, available(problem.device))


def _problem(x: Tensor, weight: Tensor, rate: int) -> Problem:
    size, kernel = (x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])
    padding = (rate * (kernel[0] // 2), rate * (kernel[1] // 2))
    geometry = Geometry.of(size, size, kernel, (1, 1), padding, (rate, rate))
    return problem(x, weight.shape, geometry, 1)


def _side_by_side(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor | None:
    """[O_1 + O_2 + ...], zeros for the branches without; None where no branch has one."""
    if all(bias is None for bias in biases):
        return None
    pairs = zip(weights, biases, strict=True)
    return torch.cat([x.new_zeros(w.shape[0]) if b is None else b for w, b in pairs])
