"""Mean field run backwards, for one image. Derivation: kernels/dense_crf/README.md, "Gradients".

scores^(t+1) = logits + sum_m M_m K~_m Q^t,   Q^t = softmax(scores^t),   g^t = dL/dscores^t
R_m = K~_m^T g^(t+1);   dM_m += R_m (Q^t)^T;   dQ = sum_m M_m^T R_m
g^t = Q^t (dQ - <dQ, Q^t>);   dlogits = sum_t g^t
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference_grad
from segfast.ops._dense_crf_engine import Engine, Kernel, PairwiseTerm, mix, scaled

SIGMAS = ("spatial_sigma", "bilateral_sigma", "color_sigma")


@dataclass(frozen=True)
class Record:
    """What a run leaves for its gradient.

    Attributes:
        terms: by name, "spatial" and "bilateral", in the engine's order.
        states: scores after iterations 1, 2, ... (the last may be missing), [S, L, N]; None: none.
        belief: the result, where a belief was asked for, [L, N].
    """

    engine: Engine
    terms: dict[str, PairwiseTerm]
    iterations: int
    states: Tensor | None
    belief: Tensor | None

    def scores(self, t: int) -> Tensor:
        """After t iterations, [L, N]."""
        if t == 0:
            return self.engine.logits
        assert self.states is not None
        return self.states[t - 1]


@dataclass
class _Trace:
    """One term on the way back. Filled per iteration where its pixels may move: V and G."""

    kernel: Kernel
    mixing: Tensor
    moves: bool
    grad: Tensor  # dL/dM
    sent: list[Tensor] = field(default_factory=list)  # V = before Q, [L, N]
    pulled: list[Tensor] = field(default_factory=list)  # G = after (M^T g), [L, N]

    def step(self, g: Tensor, belief: Tensor) -> Tensor:
        """dL/dscores and the belief that was sent, [L, N] -> M^T R."""
        r = self.kernel.transpose(g)
        if self.grad.dim() == 2:
            self.grad += r.double() @ belief.double().T
        else:
            product = (r.double() * belief).sum(1)
            self.grad += product if self.grad.dim() == 1 else product.sum()
        transposed = self.mixing.t()  # of a scalar or vector: itself
        if self.moves:
            self.sent.append(scaled(belief, self.kernel.before))
            self.pulled.append(scaled(mix(transposed, g), self.kernel.after))
        return mix(transposed, r)


def pull_back(
    record: Record, upstream: Tensor, wanted: Sequence[bool], sigmas: Sequence[Tensor]
) -> list[Tensor | None]:
    """From dL/dsteps [S, L, N] to the seven tensors of segfast::mean_field; None is zero.

    The image's is [C, N].
    """
    engine = record.engine
    if record.iterations > 0 and engine.undefined:
        return [upstream.new_tensor(math.nan)] * len(wanted)
    moves = {"spatial": wanted[4], "bilateral": wanted[1] or wanted[5] or wanted[6]}
    traces = {
        name: _Trace(kernel, term.mixing, moves[name], term.mixing.double() * 0)
        for (name, term), kernel in zip(record.terms.items(), engine.kernels(), strict=True)
    }
    g = upstream[-1]
    if record.belief is not None:
        g = reference_grad.belief_gradient(record.belief, g)
    logits = g.clone()
    for t in reversed(range(record.iterations)):
        belief = engine.belief(record.scores(t))
        d_belief = torch.zeros_like(g)
        for trace in traces.values():
            d_belief += trace.step(g, belief)
        g = reference_grad.belief_gradient(belief, d_belief)
        if t > 0 and len(upstream) > 1:
            g = g + upstream[t - 1]
        logits += g
    found: dict[str, Tensor | None] = {"logits": logits}
    for name in moves:
        # A term that is not there has weight 0 and, if its weight is learned, no finite positions.
        found[name] = traces[name].grad if name in traces else logits.new_tensor(math.nan)
    for name, trace in traces.items():
        if trace.moves and record.iterations:
            found |= _moved(name, record, trace, sigmas)
    order = ("logits", "image", "spatial", "bilateral", *SIGMAS)
    return [found.get(name) for name in order]


def _moved(
    name: str, record: Record, trace: _Trace, sigmas: Sequence[Tensor]
) -> dict[str, Tensor | None]:
    """The gradients of what places the pixels of a term."""
    term = record.terms[name]
    g, v = torch.cat(trace.pulled), torch.cat(trace.sent)  # [T L, N]
    if name == "spatial":
        assert record.engine.shape is not None
        assert term.sigma is not None
        slope = reference_grad.sigma_gradient(
            g, v, record.engine.shape, term.sigma, term.normalization
        )
        return {SIGMAS[0]: slope}
    assert term.features is not None
    grad = features_gradient(trace.kernel, g, v, term.features, term.normalization)
    image, *slopes = reference_grad.image_gradients(grad, term.features, sigmas[1], sigmas[2])
    return {"image": image, **dict(zip(SIGMAS[1:], slopes, strict=True))}


def features_gradient(
    kernel: Kernel, g: Tensor, v: Tensor, features: Tensor, normalization: str
) -> Tensor:
    """dL/df [F, N] of A K B from G and V [C, N], through K and through n = K 1."""
    grad, rho = reference_grad.feature_gradient(g, v, features).split([len(features), 1])
    if kernel.norm is None:
        return grad
    kappa = (v * kernel.transposed(g)).sum(0, keepdim=True)
    d_norm = reference_grad.norm_gradient(normalization, kernel.norm, rho, kappa)  # [1, N]
    ones = torch.ones_like(d_norm)
    return grad + reference_grad.feature_gradient(d_norm, ones, features)[:-1]


def filter_gradients(
    grad: Tensor, values: Tensor, features: Tensor, method: str, normalization: str,
    tolerance: float, wanted: Sequence[bool],
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """Of K~ values from dL/dy [C, N]: of values [C, N] and, by the exact method, of features."""
    term = PairwiseTerm(features, torch.ones((), dtype=values.dtype), normalization, method)
    engine = Engine(torch.zeros_like(values), [term], None, tolerance)
    if engine.undefined:
        nan = values.new_tensor(math.nan)
        return nan, nan
    (kernel,) = engine.kernels()
    moved = None
    if wanted[1]:
        g, v = scaled(grad, kernel.after), scaled(values, kernel.before)
        moved = features_gradient(kernel, g, v, features, normalization)
    return kernel.transpose(grad), moved
