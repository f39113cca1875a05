"""Gradients of the exact dense CRF on a GPU: mean field run backwards, all images at once.

    scores^(t+1) = logits + sum_m M_m K~_m Q^t,   Q^t = softmax(scores^t),   g^t = dL/dscores^t
    R = K~^T g^(t+1);   dM = sum_t R (Q^t)^T;   dQ^t = sum_m M_m^T R_m
    g^t = Q^t (dQ^t - <dQ^t, Q^t>);   dlogits = sum_t g^t

With K~ = A K B, A and B powers of n = K 1, V = B Q and G = A M^T g of all iterations move what
places the pixels: dL/dK_ij = sum_t G_i . V_j, dL/dn = -rho / n ("after"), -kappa / n ("before") or
half of both, for rho_i = G_i . (K V)_i and kappa_i = V_i . (K G)_i.

Scores of all iterations are computed again, and kept with G and V: 3 [B, L, N] for each iteration.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from segfast.kernels.dense_crf.reference_grad import belief_gradient, norm_gradient
from segfast.ops._dense_crf_exact_cuda import Call, ExactModel, GridGaussian, launchers
from segfast.ops._dense_crf_look import nan_where_undefined
from segfast.ops._dense_crf_terms import Kernel, mix, scaled


@dataclass(frozen=True)
class Gradients:
    """Of `mean_field`'s arguments; None where a term is not there or was not asked for."""

    logits: Tensor  # [B, L, H, W]
    features: Tensor | None  # [B, F, N]
    mixings: tuple[Tensor | None, Tensor | None]  # float64, of their shapes
    spatial_sigma: Tensor | None  # [2] float64: y, x


class _Trace:
    """A term on the way back."""

    def __init__(self, term: Kernel, mixing: Tensor, moves: bool) -> None:
        self.term, self.mixing, self.moves = term, mixing, moves
        self.grad = mixing.double() * 0
        self.sent: list[Tensor] = []  # V, [B, L, N] for each iteration
        self.pulled: list[Tensor] = []  # G
        self.kappa: Tensor | float = 0.0  # [B, 1, N]

    def step(self, g: Tensor, belief: Tensor) -> Tensor:
        """g^(t+1) and Q^t, [B, L, N] -> M^T R."""
        r = self.term.transpose(g)
        if self.mixing.dim() == 2:
            columns = [(r * q).sum((0, 2), dtype=torch.float64) for q in belief.split(1, dim=1)]
            self.grad += torch.stack(columns, 1)
        else:
            product = (r * belief).sum((0, 2), dtype=torch.float64)
            self.grad += product if self.mixing.dim() == 1 else product.sum()
        transposed = self.mixing.t()  # of a scalar or vector: itself
        back = mix(transposed, r)
        if self.moves:
            self.sent.append(scaled(belief, self.term.before))
            self.pulled.append(scaled(mix(transposed, g), self.term.after))
            self.kappa = self.kappa + (belief * back).sum(1, keepdim=True)
        return back


def mean_field(
    grad: Tensor, call: Call, of_features: bool = True, of_sigma: bool = True
) -> Gradients:
    """From dL/dsteps [S, B, L, H, W]; a kernel that is learned must be among those present."""
    iterations, normalization = call.options.iterations, call.options.normalization
    model, unary = ExactModel(call), call.unary()
    upstream = grad.float().flatten(3)  # [S, B, L, N]
    states = [unary, *model.run(unary, iterations)]
    traces = [
        None if term is None else _Trace(term, mixing, moves)
        for term, mixing, moves in zip(
            model.terms, model.mixings, (of_sigma, of_features), strict=True
        )
    ]
    g = torch.zeros_like(unary) if len(upstream) == 0 else upstream[-1]
    if call.options.softmax:
        g = belief_gradient(torch.softmax(states[-1], 1), g)
    total = g.clone()
    for t in reversed(range(iterations)):
        belief = torch.softmax(states[t], 1)
        sent = torch.zeros_like(g)
        for trace in filter(None, traces):
            sent += trace.step(g, belief)
        g = belief_gradient(belief, sent)
        if t > 0 and call.options.keep_steps:
            g = g + upstream[t - 1]
        total += g
    moved, slopes = None, None
    spatial, bilateral = traces
    if bilateral is not None and bilateral.sent:
        g, v = torch.cat(bilateral.pulled, 1), torch.cat(bilateral.sent, 1)
        moved = _moved(model.exact, bilateral.term, g, v, bilateral.kappa, normalization)
    if spatial is not None and spatial.sent and model.spatial is not None:
        slopes = _slopes(model.spatial, spatial, normalization)
    of_spatial = None if spatial is None else spatial.grad
    of_bilateral = (
        None if bilateral is None else nan_where_undefined(model.undefined, bilateral.grad)
    )
    total = total.unflatten(2, call.size)
    return Gradients(total, moved, (of_spatial, of_bilateral), slopes)


def _moved(
    kernel: object, term: Kernel, g: Tensor, v: Tensor, kappa: Tensor | float, normalization: str
) -> Tensor:
    """dL/df [B, F, N] from G and V [B, C, N], through K and through n = K 1."""
    assert isinstance(kernel, launchers().ExactFilter)
    moved = kernel.feature_gradient(g, v)  # [B, F + 1, N]
    moved, rho = moved[:, :-1], moved[:, -1:]
    if term.norm is None:
        return moved
    d_norm = norm_gradient(normalization, term.norm, rho, kappa)
    return moved + kernel.feature_gradient(d_norm, torch.ones_like(d_norm))[:, :-1]


def _slopes(kernel: GridGaussian, trace: _Trace, normalization: str) -> Tensor:
    """dL/d(sigma_y, sigma_x) [2] float64."""
    pairs = list(zip(trace.pulled, trace.sent, strict=True))
    if trace.term.norm is not None:
        rho = sum((g * kernel(v)).sum(1, keepdim=True) for g, v in pairs)
        assert isinstance(rho, Tensor)
        d_norm = norm_gradient(normalization, trace.term.norm, rho, trace.kappa)
        pairs.append((d_norm, torch.ones_like(d_norm)))
    (y, x), (dy, dx) = kernel.taps, kernel.slopes
    slopes = [
        torch.stack([(g * kernel.convolve(v, *taps)).sum(dtype=torch.float64) for g, v in pairs])
        for taps in ((dy, x), (y, dx))
    ]
    return torch.stack(slopes).sum(1)


def gaussian_filter(
    grad: Tensor,
    values: Tensor,
    features: Tensor,
    normalization: str,
    tolerance: float,
    of_features: bool = True,
) -> tuple[Tensor, Tensor | None]:
    """From dL/dy [B, C, N]: of values [B, C, N] and of features [B, F, N]."""
    f = features.float().contiguous()
    kernel = launchers().ExactFilter(f, tolerance)
    term = Kernel(kernel, kernel, f.new_ones(len(f), 1, f.shape[2]), normalization)
    grad, values = grad.float(), values.float()
    back = term.transpose(grad)
    if not of_features:
        return back, None
    kappa = (values * back).sum(1, keepdim=True)
    g, v = scaled(grad, term.after), scaled(values, term.before)
    return back, _moved(kernel, term, g, v, kappa, normalization)
