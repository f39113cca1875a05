"""Inputs of the linear-attention tests, and how large the summands of its results are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segfast.kernels.linear_attention import reference
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


def magnitudes(tensors: Sequence[Tensor], feature_map: str) -> list[float]:
    """max sum |a_i b_i| of o and of each gradient: results that cancel are no smaller errors."""
    q, k, v, grad = (x.double() for x in tensors)
    shift = reference.query_shift(q, feature_map)
    phi_q = reference.query_features(q, shift, feature_map)
    state = reference.state(k, v, feature_map)
    total, inverse, _ = reference._denominator(phi_q, state, feature_map, EPS)
    phi_q, phi_k = phi_q.abs(), reference.features(k, feature_map).abs()
    v, grad, inverse, total = v.abs(), grad.abs(), inverse.abs(), total.abs()

    def slope(g: Tensor, x: Tensor, backward: Callable[[Tensor], Tensor]) -> Tensor:
        if feature_map != "taylor":
            return backward(g)
        lengths = x.square().sum(-2, keepdim=True).sqrt().clamp(min=reference.SMALLEST_NORM)
        return 2 * g[:, :-1].sum(-2, keepdim=True) / lengths

    sums = phi_k @ v.mT  # [B, R, E]
    along = sums @ grad  # [B, R, N]
    numerator = (phi_q * along).sum(-2, keepdim=True)
    grad_q = slope(
        along * inverse + numerator * inverse.square() * total,
        q,
        lambda g: reference.query_features_backward(g, q, shift, feature_map),
    )
    grad_sums = (phi_q * inverse) @ grad.mT
    grad_ones = (phi_q * numerator * inverse.square()).sum(-1, keepdim=True)
    grad_k = slope(
        grad_sums @ v + grad_ones, k, lambda g: reference.features_backward(g, k, feature_map)
    )
    results = ((sums.mT @ phi_q) * inverse, grad_q, grad_k, grad_sums.mT @ phi_k)
    return [float(x.max()) if x.numel() else 0.0 for x in results]


def assert_right(tensors: Sequence[Tensor], feature_map: str, **labels: Any) -> None:
    """Values and gradients, by the rule of accuracy; the baseline is the reference itself."""
    oracle = with_gradients(theirs, [x.double() for x in tensors], feature_map)
    baseline = with_gradients(theirs, tensors, feature_map)
    actual = with_gradients(ours, tensors, feature_map)
    terms = max(max(x.shape[1:]) for x in tensors)
    sizes = magnitudes(tensors, feature_map)
    for name, a, o, b, size in zip(NAMES, actual, oracle, baseline, sizes, strict=True):
        label = f"{name} of {feature_map} {labels}"
        assert_as_good_as(a, o, b, terms=terms, magnitude=size, label=label)
