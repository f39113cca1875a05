"""Mean field run backwards, for one image. Derivation: kernels/dense_crf/README.md, "Gradients".

scores^(t+1) = logits + sum_m M_m K~_m Q^t,   Q^t = softmax(scores^t),   g^t = dL/dscores^t
R_m = K~_m^T g^(t+1);   dM_m += R_m (Q^t)^T;   dQ = sum_m M_m^T R_m
g^t = Q^t (dQ - <dQ, Q^t>);   dlogits = sum_t g^t
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference_grad
from segfast.ops._dense_crf_engine import Engine
from segfast.ops._dense_crf_options import SIGMAS, Each
from segfast.ops._dense_crf_terms import Kernel, PairwiseTerm, SpatialParts, mix, scaled, spatial


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

    def names(self, *methods: str) -> list[str]:
        """Of the terms by one of the methods, those of the first method first."""
        return [name for m in methods for name, term in self.terms.items() if term.method == m]

    def scores(self, t: int) -> Tensor:
        """After t iterations, [L, N]."""
        if t == 0:
            return self.engine.logits
        assert self.states is not None
        return self.states[t - 1]


class _Moved:
    """A term whose pixels want a gradient: what every iteration sends through it."""

    def __init__(self, name: str, record: Record) -> None:
        engine = record.engine
        self.term = record.terms[name]
        self.kernel: Kernel | SpatialParts
        if self.term.method == "exact":
            self.kernel = engine.separate[-1][1]  # the bilateral term is the last
        else:
            assert engine.shape is not None
            self.kernel = spatial(self.term, engine.logits, engine.shape)
        self.sent: list[Tensor] = []  # V = before Q, [L, N]
        self.pulled: list[Tensor] = []  # G = after (M^T g), [L, N]

    def note(self, g: Tensor, belief: Tensor) -> None:
        mixing = self.term.mixing.t()
        self.sent.append(scaled(belief, self.kernel.before))
        self.pulled.append(scaled(mix(mixing, g), self.kernel.after))

    def gradients(self, sigmas: Sequence[Tensor]) -> dict[str, Tensor | None]:
        """By name: of the image [C, N] and of the sigmas."""
        g, v = torch.cat(self.pulled), torch.cat(self.sent)  # [T L, N]
        normalization = self.term.normalization
        if isinstance(self.kernel, SpatialParts):
            by_sigma = reference_grad.sigma_gradient(
                g, v, self.kernel.kernel, self.kernel.slopes, normalization
            )
            return {SIGMAS[0]: by_sigma}
        assert self.term.features is not None
        grad = features_gradient(self.kernel, g, v, normalization)
        each = reference_grad.image_gradients(grad, self.term.features, *sigmas[1:])
        return dict(zip(("image", *SIGMAS[1:]), each, strict=True))


def pull_back(
    record: Record, upstream: Tensor, wanted: Each, sigmas: Sequence[Tensor]
) -> list[Tensor | None]:
    """From dL/dsteps [S, L, N] to the seven tensors of segfast::mean_field; None is zero.

    The image's is [C, N].
    """
    if record.iterations > 0 and record.engine.undefined:
        return [upstream.new_tensor(math.nan)] * len(wanted)
    upstream = upstream.contiguous()
    moves = {"spatial": wanted.spatial_sigma, "bilateral": wanted.any_bilateral_place}
    moved = {name: _Moved(name, record) for name in record.terms if moves[name]}
    engine, weights = record.engine, any(wanted.mixings)
    if engine.fused is None:
        logits, mixings = _reference_backward(record, upstream, moved)
    elif engine.separate or moved:
        logits, mixings = _mixed_backward(record, upstream, moved, weights)
    else:
        logits, *each = engine.fused.run_backward(
            upstream, record.belief, engine.logits, record.states, record.iterations,
            weights=weights,
        )  # fmt: skip
        mixings = dict(zip(record.names("lattice", "conv"), each, strict=False))
    found: dict[str, Tensor | None] = {"logits": logits}
    if record.iterations > 0:
        # A term that is not there has weight 0 and, if it is learned, no finite positions.
        found |= dict.fromkeys(("spatial", "bilateral"), logits.new_tensor(math.nan)) | mixings
        for term in moved.values():
            found |= term.gradients(sigmas)
    return [found.get(name) for name in ("logits", "image", "spatial", "bilateral", *SIGMAS)]


def _reference_backward(
    record: Record, upstream: Tensor, moved: dict[str, _Moved]
) -> tuple[Tensor, dict[str, Tensor]]:
    """In plain PyTorch: dL/dlogits, and dL/dM by name."""
    engine, g = record.engine, upstream[-1]
    if record.belief is not None:
        g = reference_grad.belief_gradient(record.belief, g)
    logits = g.clone()
    mixings = {name: term.mixing.double() * 0 for name, term in record.terms.items()}
    for t in reversed(range(record.iterations)):
        belief = engine.belief(record.scores(t))
        d_belief = torch.zeros_like(g)
        for (name, term), (_, kernel) in zip(record.terms.items(), engine.separate, strict=True):
            r = kernel.transpose(g)
            full = r.double() @ belief.double().T if term.mixing.dim() == 2 else r * belief
            while full.dim() > term.mixing.dim():
                full = full.sum(-1)
            mixings[name] += full
            d_belief += mix(term.mixing.t(), r)
            if name in moved:
                moved[name].note(g, belief)
        g = reference_grad.belief_gradient(belief, d_belief)
        if t > 0 and len(upstream) > 1:
            g = g + upstream[t - 1]
        logits += g
    return logits, mixings


def _mixed_backward(
    record: Record, upstream: Tensor, moved: dict[str, _Moved], weights: bool
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compiled, step by step: messages of the exact method are among them, or terms are moved."""
    engine = record.engine
    assert engine.fused is not None
    logits = engine.fused.run_backward(
        upstream[-1:], record.belief, engine.logits, None, 0, weights=False
    )[0]  # fmt: skip
    g = logits.clone()
    mixings: dict[str, Tensor] = {}
    for t in reversed(range(record.iterations)):
        scores = record.scores(t)
        if moved:
            belief = engine.belief(scores)
            for notes in moved.values():
                notes.note(g, belief)
        g, *each = engine.fused.run_backward(
            g[None], None, scores, None, 1,
            planes=[kernel.transpose(g) for _, kernel in engine.separate],
            mixings=[mixing for mixing, _ in engine.separate], start=False, weights=weights,
        )  # fmt: skip
        for name, part in zip(record.names("lattice", "conv", "exact"), each, strict=False):
            mixings[name] = part if name not in mixings else mixings[name] + part
        if t > 0 and len(upstream) > 1:
            g = g + upstream[t - 1]
        logits += g
    return logits, mixings


def features_gradient(kernel: Kernel, g: Tensor, v: Tensor, normalization: str) -> Tensor:
    """dL/df [F, N] of A K B from G and V [C, N], through K and through n = K 1."""
    assert kernel.moments is not None
    *grad, rho, kappa = kernel.moments(g, v)
    moved = torch.stack(grad)
    if kernel.norm is None:
        return moved
    d_norm = reference_grad.norm_gradient(normalization, kernel.norm, rho, kappa)  # [1, N]
    return moved + kernel.moments(d_norm, torch.ones_like(d_norm))[:-2]


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
    moved = None
    if wanted[1]:
        ((_, kernel),) = engine.separate
        g, v = scaled(grad, kernel.after), scaled(values, kernel.before)
        moved = features_gradient(kernel, g, v, normalization)
    return engine.transposed(grad), moved
