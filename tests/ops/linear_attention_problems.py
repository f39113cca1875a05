"""Problems, oracles and baselines for the raw operators of linear attention.

For float32 the baseline is the reference in float32. For half precision it is the published
formula in the inputs' dtype with autograd's derivative: PyTorch without float32 states.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segfast.kernels.linear_attention import reference
from segfast.testing import assert_as_good_as

EPS = 1e-6
OPERATORS = ("state", "state_backward", "read", "read_backward")
NAMES = {
    "state": ("state",),
    "state_backward": ("grad k", "grad v"),
    "read": ("o",),
    "read_backward": ("grad q", "grad state", "grad gamma"),
}


@dataclass(frozen=True)
class Problem:
    """Maps [B, channels, N] in one dtype; state and its gradient [B, R, E + 1] float32."""

    feature_map: str
    q: Tensor
    k: Tensor
    v: Tensor
    residual: Tensor | None
    grad: Tensor  # of o
    state: Tensor
    grad_state: Tensor
    gamma: Tensor | None  # [B]

    @property
    def index(self) -> int:
        return reference.FEATURE_MAPS.index(self.feature_map)

    def to(self, where: torch.dtype | str) -> Problem:
        values = {
            name: x.to(where) if isinstance(x, Tensor) else x for name, x in vars(self).items()
        }
        return Problem(**values)

    def arguments(self, operator: str) -> tuple[object, ...]:
        """Of the raw operator."""
        return {
            "state": (self.k, self.v, self.index),
            "state_backward": (self.grad_state, self.k, self.v, self.index),
            "read": (self.q, self.state, self.gamma, self.residual, self.index, EPS),
            "read_backward": (self.grad, self.q, self.state, self.gamma, self.index, EPS),
        }[operator]


def make(
    shape: tuple[int, int, int, int],  # B, D, E, N
    feature_map: str,
    dtype: torch.dtype = torch.float32,
    *,
    fused: bool = True,  # gamma and residual
    strided: bool = False,
) -> Problem:
    batch, channels, values, positions = shape
    generator = torch.Generator().manual_seed(sum(shape))

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    def map_of(rows: int, mean: float) -> Tensor:
        if not strided:
            return (normal(batch, rows, positions) + mean).to(dtype)
        wide = (normal(batch, 2 * rows + 1, positions + 3) + mean).to(dtype)
        return wide[:, 1 : 1 + 2 * rows : 2, 2 : 2 + positions]

    q, k = map_of(channels, 0.0), map_of(channels, 0.0)
    if feature_map == "identity":
        q, k = q.abs(), k.abs()
    v, residual, grad = map_of(values, 0.5), map_of(values, 0.0), map_of(values, 0.0)
    # What another set of keys would give: o is an average, as it is in use.
    keys = normal(batch, channels, 2 * positions)
    keys = keys.abs() if feature_map == "identity" else keys
    state = reference.state(keys, normal(batch, values, 2 * positions) + 0.5, feature_map)
    gamma = normal(batch)
    if strided:
        v, gamma = v[:1].expand(batch, -1, -1), gamma[:1].expand(batch)
    return Problem(
        feature_map,
        q,
        k,
        v,
        residual if fused else None,
        grad,
        state,
        torch.randn(state.shape, generator=generator),
        gamma if fused else None,
    )


def by_reference(operator: str, p: Problem) -> tuple[Tensor, ...]:
    """In the dtype of the problem's tensors (state: its accumulator's)."""
    name = p.feature_map
    if operator == "state":
        return (reference.state(p.k, p.v, name),)
    if operator == "state_backward":
        return reference.state_backward(p.grad_state, p.k, p.v, name)
    if operator == "read":
        return (reference.read(p.q, p.state, name, EPS, p.gamma, p.residual),)
    return reference.read_backward(p.grad, p.q, p.state, name, EPS, p.gamma)


def by_formula(operator: str, p: Problem) -> tuple[Tensor, ...]:
    """The published formula and its gradient, all in the dtype of q; states come as float32."""
    dtype = p.q.dtype
    scale = None if p.gamma is None else p.gamma.to(dtype)

    def state(k: Tensor, v: Tensor) -> Tensor:
        phi = reference.features(k, p.feature_map)
        return torch.cat([phi @ v.mT, phi.sum(-1, keepdim=True)], -1)

    def read(q: Tensor, cells: Tensor, gamma: Tensor | None) -> Tensor:
        phi = reference.features(q, p.feature_map)
        eps = torch.full_like(cells[..., -1:], EPS)
        if p.feature_map == "taylor":
            eps[:, -1] = 0
        total = (phi * (cells[..., -1:] + eps)).sum(-2, keepdim=True)
        weights = torch.where(total == 0, 0, phi / torch.where(total == 0, 1, total))
        o = cells[..., :-1].mT @ weights
        return o if gamma is None else o * gamma[:, None, None]

    cells = p.state.to(dtype)
    if operator == "state":
        return (state(p.k, p.v).float(),)
    if operator == "state_backward":
        return torch.func.vjp(state, p.k, p.v)[1](p.grad_state.to(dtype))
    if operator == "read":
        o = read(p.q, cells, scale)
        return (o if p.residual is None else o + p.residual,)
    given = torch.ones(len(p.q), dtype=dtype) if scale is None else scale
    grad_q, grad_state, grad_gamma = torch.func.vjp(read, p.q, cells, given)[1](p.grad)
    return grad_q, grad_state.float(), grad_gamma.float()


def magnitudes(operator: str, p: Problem) -> tuple[float, ...]:
    """The largest sum of absolute products in each result, of a float64 problem."""
    rows = reference.features(p.k, p.feature_map).abs()
    if operator == "state":
        ones = torch.ones_like(p.v[:, :1])
        return (float((rows @ torch.cat([p.v.abs(), ones], 1).mT).max()),)
    if operator == "state_backward":
        slopes = p.grad_state.abs()
        grad_phi = slopes[..., :-1] @ p.v.abs() + slopes[..., -1:]
        if p.feature_map == "taylor":
            grad_phi = grad_phi[:, :-1] / p.k.norm(dim=1, keepdim=True)
        return float(grad_phi.max()), float((slopes[..., :-1].mT @ rows).max())
    shift = reference.query_shift(p.q, p.feature_map)
    phi = reference.query_features(p.q, shift, p.feature_map)
    total, inverse, _ = reference._denominator(phi, p.state, p.feature_map, EPS)
    weights, cells = (phi * inverse).abs(), p.state.abs()
    scale = 1.0 if p.gamma is None else float(p.gamma.abs().max())
    values = cells[..., :-1].mT @ weights
    if operator == "read":
        extra = 0.0 if p.residual is None else float(p.residual.abs().max())
        return (scale * float(values.max()) + extra,)
    along = cells[..., :-1] @ p.grad.abs()
    product = (weights * along).sum(1, keepdim=True)
    grad_phi = (along + product * total.abs()) * inverse.abs()
    grad_q = reference.query_features_backward(grad_phi, p.q, shift, p.feature_map)
    if p.feature_map == "taylor":
        grad_q = grad_phi[:, :-1] / p.q.norm(dim=1, keepdim=True)
    grad_state = torch.cat([weights @ p.grad.abs().mT, (weights * product).sum(-1, True)], -1)
    return (
        scale * float(grad_q.abs().max()),
        scale * float(grad_state.max()),
        float(product.sum((1, 2)).max()),
    )


def check(operator: str, results: tuple[Tensor, ...], problem: Problem) -> None:
    """Every result as good as the baseline; the problem lies on the CPU."""
    exact = problem.to(torch.float64)
    half = problem.q.dtype in (torch.float16, torch.bfloat16)
    baseline = (by_formula if half else by_reference)(operator, problem)
    terms = max(problem.q.shape[2], problem.v.shape[1], problem.state.shape[1])
    for name, actual, truth, plain, size in zip(
        NAMES[operator],
        results,
        by_reference(operator, exact),
        baseline,
        magnitudes(operator, exact),
        strict=True,
    ):
        assert_as_good_as(
            actual.cpu(), truth, plain, terms=terms, magnitude=size, label=f"{operator}: {name}"
        )
