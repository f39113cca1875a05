"""Inputs of the linear-attention tests, and the rule of accuracy for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segfast.kernels.linear_attention import reference
from segfast.kernels.linear_attention.magnitudes import magnitudes
from segfast.ops import linear_attention
from segfast.testing import assert_as_good_as

EPS = 1e-6
Shape = tuple[int, int, int, int, int]  # B, D, E, N, M
NAMES = ("o", "grad q", "grad k", "grad v")


def inputs(
    shape: Shape, feature_map: str, dtype: torch.dtype = torch.float64, seed: int = 0
) -> list[Tensor]:
    """q [B, D, N], k [B, D, M], v [B, E, M] and the gradient of o [B, E, N]."""
    generator = torch.Generator().manual_seed(seed)
    batch, d, e, n, m = shape
    sizes = ((d, n), (d, m), (e, m), (e, n))
    q, k, v, grad = (torch.randn(batch, *size, generator=generator) for size in sizes)
    if feature_map == "identity":
        q, k = q.abs(), k.abs()
    return [x.to(dtype) for x in (q, k, v, grad)]


def block_weights(channels: int, d: int, dtype: torch.dtype) -> list[Tensor]:
    """Weight and bias of q, k and v, and gamma."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((d, channels), (d,), (d, channels), (d,), (channels, channels), (channels,), (1,))
    return [
        (torch.randn(shape, generator=generator) / max(1, shape[-1]) ** 0.5).to(dtype)
        for shape in shapes
    ]


def ours(q: Tensor, k: Tensor, v: Tensor, feature_map: str) -> Tensor:
    return linear_attention(q.mT, k.mT, v.mT, feature_map, EPS).mT


def theirs(q: Tensor, k: Tensor, v: Tensor, feature_map: str) -> Tensor:
    return reference.linear(q, k, v, feature_map, EPS)


def with_gradients(
    function: Callable[..., Tensor], tensors: Sequence[Tensor], feature_map: str
) -> list[Tensor]:
    """o and the gradients of q, k and v, for (q, k, v, gradient of o)."""
    q, k, v = (x.detach().requires_grad_() for x in tensors[:3])
    o = function(q, k, v, feature_map)
    return [o.detach(), *torch.autograd.grad(o, (q, k, v), tensors[3])]


def kinds(x: Tensor) -> Tensor:
    """1 for infinity, -1 for its negative, 2 for NaN, 0 for all else."""
    return torch.where(x.isnan(), 2, torch.where(x.isinf(), x.sign(), 0)).to(torch.int8)


def assert_right(tensors: Sequence[Tensor], feature_map: str, **labels: Any) -> None:
    """Values and gradients, by the rule of accuracy; the baseline is the reference itself."""
    oracle = with_gradients(theirs, [x.double() for x in tensors], feature_map)
    baseline = with_gradients(theirs, tensors, feature_map)
    actual = with_gradients(ours, tensors, feature_map)
    terms = max(max(x.shape[1:]) for x in tensors)
    sizes = [float(x.max()) if x.numel() else 0.0 for x in magnitudes(*tensors, feature_map, EPS)]
    for name, a, o, b, size in zip(NAMES, actual, oracle, baseline, sizes, strict=True):
        label = f"{name} of {feature_map} {labels}"
        assert_as_good_as(a, o, b, terms=terms, magnitude=size, label=label)
