"""Linear attention in plain PyTorch: the oracle in float64, and what serves without kernels.

    o_n = sum_j sim(q_n, k_j) v_j / sum_j sim(q_n, k_j),   sim(q, k) = phi(q) . phi(k)

`quadratic` says exactly that. Everything else uses that the sums over j do not depend on n:

    state   S = sum_j phi(k_j) [v_j, 1]^T
    read    o_n = phi(q_n)^T S_v / phi(q_n) . (S_1 + eps)

All tensors are [B, channels, positions], the layout of a flattened feature map. D channels of q and
k, E of v, N positions of q and o, M of k and v, R = D rows of S (taylor: D + 1, its features are
[x / |x|, 1], and only the first D get eps). Sums are in float32 for half precision.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FEATURE_MAPS = ("softplus", "taylor", "relu", "elu", "identity")
SMALLEST_NORM = 1e-6  # taylor: shorter vectors are divided by this, and have no gradient


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums over positions."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def features(x: Tensor, feature_map: str) -> Tensor:  # [B, D, N] -> [B, R, N]
    """phi(x)."""
    if feature_map == "softplus":
        return F.softplus(x)
    if feature_map == "relu":
        return F.relu(x)
    if feature_map == "elu":
        return torch.where(x > 0, x + 1, _below_zero(x).exp())
    if feature_map == "identity":
        return x
    squares = x.square().sum(-2, keepdim=True)  # [B, 1, N]
    short = squares < SMALLEST_NORM**2
    unit = x * torch.where(short, 1, squares).rsqrt()
    unit = torch.where(short, x.detach() / SMALLEST_NORM, unit)
    return torch.cat([unit, torch.ones_like(squares)], -2)


def features_backward(grad: Tensor, x: Tensor, feature_map: str) -> Tensor:
    """grad [B, R, N] of phi(x) -> that of x [B, D, N]."""
    if feature_map == "softplus":
        return grad * x.sigmoid()
    if feature_map == "relu":
        return torch.where(x <= 0, 0, grad)  # NaN: of any slope
    if feature_map == "elu":
        return grad * _below_zero(x).exp()
    if feature_map == "identity":
        return grad
    grad = grad[:, :-1]
    squares = x.square().sum(-2, keepdim=True)  # [B, 1, N]
    short = squares < SMALLEST_NORM**2
    inverse = torch.where(short, 1, squares).rsqrt()
    unit = x * inverse
    along = (grad * unit).sum(-2, keepdim=True)  # [B, 1, N]
    return torch.where(short, 0, (grad - unit * along) * inverse)


def _below_zero(x: Tensor) -> Tensor:
    """min(x, 0); unlike clamp's, its derivative at NaN is not 0."""
    return torch.where(x > 0, 0, x)


def query_shift(q: Tensor, feature_map: str) -> Tensor:  # [B, D, N] -> [B, 1, N]
    """m <= 0 such that phi(q) e^{-m} does not underflow.

    `read` does not change when phi(q_n) is multiplied by a number: where all of q_n is far below
    zero, softplus and elu are exp(q_n), and exp(q_n - m) serves as well.
    """
    if feature_map not in ("softplus", "elu"):
        return torch.zeros_like(q[:, :1])
    largest = q.detach().amax(-2, keepdim=True)
    return torch.where(largest.isfinite(), largest, 0).clamp(max=0)


def query_features(q: Tensor, shift: Tensor, feature_map: str) -> Tensor:
    """phi(q) e^{-shift}: [B, D, N], [B, 1, N] -> [B, R, N]."""
    if feature_map == "softplus":  # below -20, log(1 + e^q) = e^q (1 - e^q / 2)
        low = q.clamp(max=-20)  # what is not chosen must not overflow: its derivative would be NaN
        small = torch.exp(low - shift) * (1 - 0.5 * low.exp())
        return torch.where(q < -20, small, F.softplus(q) * torch.exp(-shift.clamp(min=-20)))
    if feature_map == "elu":
        return torch.where(q > 0, q + 1, torch.exp(_below_zero(q) - shift))
    return features(q, feature_map)


def query_features_backward(grad: Tensor, q: Tensor, shift: Tensor, feature_map: str) -> Tensor:
    """grad [B, R, N] of phi(q) e^{-shift} -> that of q [B, D, N]."""
    if feature_map in ("softplus", "elu"):
        grad = grad * torch.exp(_below_zero(q) - shift)
        # Not |q|, whose slope at 0 is 0: second derivatives need that of a side.
        return grad * torch.where(q > 0, q, -q).sigmoid() if feature_map == "softplus" else grad
    return features_backward(grad, q, feature_map)


def state(k: Tensor, v: Tensor, feature_map: str) -> Tensor:
    """S = sum_j phi(k_j) [v_j, 1]^T: [B, D, M], [B, E, M] -> [B, R, E + 1]."""
    dtype = accumulator(k.dtype)
    phi = features(k.to(dtype), feature_map)
    return torch.cat([phi @ v.to(dtype).mT, phi.sum(-1, keepdim=True)], -1)


def state_backward(grad: Tensor, k: Tensor, v: Tensor, feature_map: str) -> tuple[Tensor, Tensor]:
    """Gradient of S -> those of k and v."""
    dtype = accumulator(k.dtype)
    grad_values, grad_ones = grad[..., :-1], grad[..., -1:]  # [B, R, E], [B, R, 1]
    keys = k.to(dtype)
    grad_phi = grad_values @ v.to(dtype) + grad_ones  # [B, R, M]
    grad_v = grad_values.mT @ features(keys, feature_map)
    return features_backward(grad_phi, keys, feature_map).to(k.dtype), grad_v.to(v.dtype)


def _denominator(
    phi: Tensor, state: Tensor, feature_map: str, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """S_1 + eps [B, R, 1]; 1 / (phi . (S_1 + eps)), and whether that is fixed [B, 1, N]."""
    ones = state[..., -1:]
    if feature_map == "taylor":
        total = ones + torch.cat(
            [torch.full_like(ones[:, :-1], eps), torch.zeros_like(ones[:, -1:])], 1
        )
    else:
        total = ones + eps
    sums = (phi * total).sum(-2, keepdim=True)
    below = sums.clamp(min=eps) if feature_map == "taylor" else sums
    empty = below == 0
    inverse = torch.where(empty, 0, 1 / torch.where(empty, 1, below))
    return total, inverse, empty | (sums < below)


def read(
    q: Tensor,
    state: Tensor,
    feature_map: str,
    eps: float,
    gamma: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """o = residual + gamma phi(q)^T S_v / phi(q) . (S_1 + eps), 0 / 0 being 0.

    q [B, D, N], S [B, R, E + 1], gamma [B], residual [B, E, N] -> [B, E, N].
    """
    queries = q.to(state.dtype)
    phi = query_features(queries, query_shift(queries, feature_map), feature_map)
    _, inverse, _ = _denominator(phi, state, feature_map, eps)
    o = (state[..., :-1].mT @ phi) * inverse
    if gamma is not None:
        o = o * gamma[:, None, None]
    if residual is not None:
        o = o + residual
    return o.to(q.dtype)


def read_backward(
    grad: Tensor,
    q: Tensor,
    state: Tensor,
    feature_map: str,
    eps: float,
    gamma: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradient of o [B, E, N] -> those of q [B, D, N], S [B, R, E + 1] and gamma [B]."""
    queries, grad = q.to(state.dtype), grad.to(state.dtype)
    shift = query_shift(queries, feature_map)
    phi = query_features(queries, shift, feature_map)
    total, inverse, fixed = _denominator(phi, state, feature_map, eps)
    along = state[..., :-1] @ grad  # [B, R, N]
    numerator = (phi * along).sum(-2, keepdim=True)  # [B, 1, N] grad . numerator of o
    grad_gamma = (numerator * inverse).sum((1, 2))
    slope = torch.where(fixed, 0, -(numerator * inverse) * inverse)  # by what is inverted
    grad_phi = along * inverse + slope * total  # [B, R, N]
    grad_values = (phi * inverse) @ grad.mT
    grad_ones = (phi * slope).sum(-1, keepdim=True)
    grad_state = torch.cat([grad_values, grad_ones], -1)
    if gamma is not None:
        scale = gamma[:, None, None]
        grad_phi, grad_state = grad_phi * scale, grad_state * scale
    grad_q = query_features_backward(grad_phi, queries, shift, feature_map)
    return grad_q.to(q.dtype), grad_state, grad_gamma


def linear(q: Tensor, k: Tensor, v: Tensor, feature_map: str, eps: float) -> Tensor:
    """[B, D, N], [B, D, M], [B, E, M] -> [B, E, N], in time proportional to N + M."""
    return read(q, state(k, v, feature_map), feature_map, eps)


def quadratic(q: Tensor, k: Tensor, v: Tensor, feature_map: str, eps: float) -> Tensor:
    """The same by its definition, every pair: sim(q, k) = phi(q) . phi(k), 1 + q.k for taylor."""
    phi_q, phi_k = features(q, feature_map), features(k, feature_map)
    sim = phi_q.mT @ phi_k  # [B, N, M]
    with_eps = phi_q[:, : q.shape[1]].sum(-2).unsqueeze(-1) * eps  # [B, N, 1] phi(q) . eps
    total = sim.sum(-1, keepdim=True) + with_eps
    if feature_map == "taylor":
        total = total.clamp(min=eps)
    weights = torch.where(total == 0, 0, sim / torch.where(total == 0, 1, total))
    return v @ weights.mT
