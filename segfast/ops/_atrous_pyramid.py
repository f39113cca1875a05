"""The branches of an atrous pyramid in one call of the dense kernels, where nothing differentiates.

csrc/cpu/dilated_conv_dense.cpp registers the operator. Everywhere else the pyramid is composed of
convolutions (dilated_conv.py).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from segfast._native import native
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops._autocast import autocast
from segfast.ops._dilated_conv_geometry import Branch
from segfast.ops._dilated_conv_op import choose, problem
from segfast.ops._function import compiled, transformed

NAME = "_atrous_pyramid_dense"
torch.library.define(
    f"segfast::{NAME}",
    "(Tensor x, Tensor[] weights, Tensor? bias, int[] rates, Tensor? scale, Tensor? shift, "
    "bool relu) -> Tensor",
)


def fused(
    x: Tensor,  # [N, C, H, W]
    branches: list[Branch],
    scale: Tensor | None,  # [O]
    shift: Tensor | None,  # [O]
    relu: bool,
) -> Tensor | None:  # [N, O, H, W]
    """act(scale ([w_1 *_{r_1} x + b_1, ...] + shift), or None where the composition must serve."""
    weights = [weight for weight, _, _ in branches]
    biases = [bias for _, bias, _ in branches]
    factors = [factor for factor in (scale, shift) if factor is not None]
    if x.device.type != "cpu" or not x.is_contiguous() or x.numel() == 0 or transformed():
        return None
    if _differentiated([x, *weights, *factors, *(bias for bias in biases if bias is not None)]):
        return None
    if native() is None or not compiled(NAME, "cpu"):
        return None
    x = autocast(x)
    if not any(_dense_serves(x, weight, rate) for weight, _, rate in branches):
        return None
    if any(autocast(factor).dtype != x.dtype for factor in factors):
        return None  # the composition's result has another dtype
    sums = torch.float64 if x.dtype == torch.float64 else torch.float32
    return getattr(torch.ops.segfast, NAME)(
        x,
        [autocast(weight).contiguous() for weight in weights],
        _side_by_side(x, weights, biases),
        [rate for _, _, rate in branches],
        None if scale is None else autocast(scale).to(sums).contiguous(),
        None if shift is None else autocast(shift).to(sums).contiguous(),
        relu,
    )


def _dense_serves(x: Tensor, weight: Tensor, rate: int) -> bool:
    size, kernel = (x.shape[2], x.shape[3]), (weight.shape[2], weight.shape[3])
    padding = (rate * (kernel[0] // 2), rate * (kernel[1] // 2))
    geometry = Geometry.of(size, size, kernel, (1, 1), padding, (rate, rate))
    return choose("forward", problem(x, weight.shape, geometry, 1)).kernel == "dense"


def _differentiated(tensors: list[Tensor]) -> bool:
    needs_graph = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    return needs_graph or forward_ad._current_level >= 0


def _side_by_side(x: Tensor, weights: list[Tensor], biases: list[Tensor | None]) -> Tensor | None:
    """[O_1 + O_2 + ...], zeros for the branches without; None where no branch has one."""
    if all(bias is None for bias in biases):
        return None
    pairs = zip(weights, biases, strict=True)
    return torch.cat([x.new_zeros(w.shape[0]) if b is None else autocast(b) for w, b in pairs])
