"""Mean-field inference for one image, prepared once and stepped as often as wanted."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from segfast._native import native, why_not_native
from segfast._warn import warn
from segfast.ops._dense_crf_terms import (
    Kernel,
    NativeTerms,
    PairwiseTerm,
    exact_kernel,
    mix,
    reference_kernel,
    require_reach,
)

# Measured on one core, in seconds per pixel and label (lattice) or per pair of pixels (exact).
SECONDS = {
    ("reference", "lattice"): 2e-7,
    ("reference", "exact"): 2e-8,
    ("native", "lattice"): 5e-9,
    ("native", "exact"): 4e-10,
}
WITH_GRADIENTS = 2.5  # times the forward: 1.8 to 3.5 by the exact method, 1.3 to 2.5 by lattices


def warn_if_slow(
    work: str,
    shape: torch.Size,  # [L, N], of one image
    exact: bool,
    iterations: int = 1,
    images: int = 1,
    gradients: bool = False,
    names: tuple[str, str] = ("labels", "pixels"),
) -> None:
    """Says so, with the remedy, before ``work`` that will take more than a minute."""
    kind = "reference" if native() is None else "native"
    labels, pixels = shape
    seconds = SECONDS[kind, "exact" if exact else "lattice"] * iterations * images
    seconds *= pixels * (pixels if exact else labels)
    seconds *= WITH_GRADIENTS if gradients else 1
    if seconds < 60:
        return
    remedies = [f"compiled kernels are missing: {why_not_native()}"] if native() is None else []
    if exact:
        remedies.append('method="lattice" takes time in proportion to the pixels')
    batch = f"{images} images of " if images > 1 else ""
    backward = ", forward and backward" if gradients else ""
    # The exact method leaves out pairs that are far apart: the fewer, the smaller the sigmas.
    about = "up to about" if exact else "about"
    warn(
        f"{work} of {batch}{pixels} {names[1]}, {labels} {names[0]}{backward}: {about} "
        f"{_readable(seconds)}. {'; '.join(remedies) or 'Use a smaller image'}."
    )


def _readable(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds / 60:.0f} minutes"


class Engine:
    """Mean field over one image: ``run`` all iterations, or ``step`` from a given belief.

    Args:
        logits: [L, N], float32 or float64, on the CPU.
        terms: the pairwise kernels.
        shape: (H, W) with H * W = N; "conv" terms need it.
        tolerance: of the exact method.
    """

    def __init__(
        self,
        logits: Tensor,
        terms: Sequence[PairwiseTerm],
        shape: tuple[int, int] | None = None,
        tolerance: float = 1e-7,
    ) -> None:
        self.logits = logits.contiguous()
        self.terms = terms
        self.shape = shape
        # Terms that one native call fuses, and terms whose messages are added to them.
        self.fused: NativeTerms | None = None
        self.separate: list[tuple[Tensor, Kernel]] = []
        # A NaN or infinite position has a NaN or no distance to everything: so has the message.
        self.undefined = self.logits.numel() == 0 or not self._positions_are_finite()
        if self.undefined:
            return
        if native() is not None:
            self.fused = NativeTerms(self.logits, shape)
        for term in terms:
            if self.fused is not None and term.method != "exact":
                self.fused.add(term)
                continue
            if self.fused is not None and term.features is not None:
                kernel = exact_kernel(term.features, term.normalization, tolerance)
            else:
                kernel = reference_kernel(term, self.logits, shape)
            self.separate.append((term.mixing.to(logits.dtype), kernel))

    def _positions_are_finite(self) -> bool:
        for term in self.terms:
            if term.method == "lattice" and term.features is not None:
                if not term.span.isfinite().all():
                    return False
                require_reach(term.span, term.features.dtype)
        return True

    def step(self, belief: Tensor) -> Tensor:
        """logits + sum of the messages sent by ``belief`` [L, N] -> scores [L, N]."""
        if self.undefined:
            return torch.full_like(self.logits, math.nan)
        belief = belief.contiguous()
        if self.fused is None:
            scores = self.logits.clone()
        else:
            scores = self.fused.mean_field(self.logits, belief, 1)
        for mixing, kernel in self.separate:
            scores += mix(mixing, kernel(belief))
        return scores

    def transposed(self, values: Tensor) -> Tensor:
        """K~^T values, for a single term whose mixing is 1."""
        if self.fused is None or self.separate:
            return self.separate[0][1].transpose(values)
        zero = torch.zeros_like(values)
        return self.fused.mean_field(zero, values.contiguous(), 1, transposed=True)

    def belief(self, scores: Tensor) -> Tensor:
        """softmax over labels [L, N], bit for bit what ``run`` computes between iterations."""
        if native() is None or scores.numel() == 0:
            # Down the columns PyTorch's chunks, and so the bits, depend on the number of threads.
            return torch.softmax(scores.t().contiguous(), 1).t().contiguous()
        return torch.ops.segfast._softmax(scores.contiguous())

    def run(self, iterations: int, states: Tensor | None = None, softmax: bool = False) -> Tensor:
        """Mean field from softmax(logits) -> scores, or belief if ``softmax``.

        ``states`` [S, L, N] takes the scores after iterations 1 to S <= ``iterations``.
        """
        if self.fused is not None and not self.separate:
            early = None if states is None else states[: max(0, iterations - 1)]
            last = self.fused.mean_field(self.logits, None, iterations, softmax, early)
            if states is not None and len(states) == iterations:
                states[-1] = last
            return last
        scores = self.logits.clone()
        for i in range(iterations):
            scores = self.step(self.belief(scores))
            if states is not None and i < len(states):
                states[i] = scores
        return self.belief(scores) if softmax else scores


def filter_features(
    values: Tensor, features: Tensor, method: str, normalization: str, tolerance: float
) -> Tensor:
    """K~ values for values [C, N] and features [F, N] -> [C, N]."""
    term = PairwiseTerm(features, torch.ones((), dtype=values.dtype), normalization, method)
    return Engine(torch.zeros_like(values), [term], None, tolerance).step(values)
