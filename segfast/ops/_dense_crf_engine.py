"""Mean-field inference for one image, prepared once and stepped as often as wanted.

    scores = logits + sum_m M_m K~_m Q,     Q = softmax(scores)

M_m is the mixing of term m: -mu W_m (scalar, one weight per label, or a matrix).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference

StepCallback = Callable[[Tensor], None]


@dataclass(frozen=True)
class PairwiseTerm:
    """One pairwise kernel of the model.

    Attributes:
        features: [F, N] divided by the bandwidths; None for ``method="conv"``.
        mixing: [] | [L] | [L, L]; the scores gain ``mixing @ (K~ Q)``.
        normalization: "none" | "before" | "after" | "symmetric".
        method: "lattice" | "exact" | "conv" (separable Gaussian on the pixel grid).
        sigma: (sigma_y, sigma_x) in pixels, for "conv".
    """

    features: Tensor | None
    mixing: Tensor
    normalization: str = "symmetric"
    method: str = "lattice"
    sigma: tuple[float, float] | None = None


def mix(mixing: Tensor, message: Tensor) -> Tensor:
    """mixing ([] | [L] | [L, L]) applied to a message [L, N]."""
    if mixing.dim() == 2:
        return mixing @ message
    return mixing.reshape(-1, 1) * message


def filter_features(
    values: Tensor, features: Tensor, method: str, normalization: str, tolerance: float
) -> Tensor:
    """K~ values for values [C, N] and features [F, N] -> [C, N]."""
    filter_ = reference.lattice_filter if method == "lattice" else reference.gaussian_filter
    return filter_(values, features, normalization)


class Engine:
    """Mean field over one image: ``run`` all iterations, or ``step`` from a given belief."""

    def __init__(
        self,
        logits: Tensor,  # [L, N]
        terms: Sequence[PairwiseTerm],
        shape: tuple[int, int] | None = None,
        tolerance: float = 1e-7,
    ) -> None:
        self.logits = logits
        self.terms = terms
        self.shape = shape

    def messages(self, belief: Tensor) -> list[Tensor]:
        """Per term mixing_m (K~_m belief), each [L, N]."""
        return [mix(term.mixing, self._filter(term, belief)) for term in self.terms]

    def step(self, belief: Tensor) -> Tensor:
        """logits + sum of the messages sent by ``belief`` [L, N] -> scores [L, N]."""
        return self.logits + sum(self.messages(belief))

    def run(self, iterations: int, on_step: StepCallback | None = None) -> Tensor:
        scores = self.logits
        for _ in range(iterations):
            scores = self.step(torch.softmax(scores, 0))
            if on_step is not None:
                on_step(scores)
        return scores

    def _filter(self, term: PairwiseTerm, values: Tensor) -> Tensor:
        if term.method == "conv":
            assert self.shape is not None
            planes = values.reshape(-1, *self.shape)  # [L, H, W]
            return reference.spatial_filter(planes, term.sigma, term.normalization).reshape_as(
                values
            )
        assert term.features is not None
        return filter_features(values, term.features, term.method, term.normalization, 0.0)
