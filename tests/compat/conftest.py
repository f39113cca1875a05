"""A small problem with known features, and the model's equations written out in float64."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference


@dataclass(frozen=True)
class Term:
    """One pairwise term: float32 features [F, N], pydensecrf's compat, normalisation, method."""

    features: np.ndarray
    compat: Any
    normalization: str = "symmetric"
    method: str = "lattice"

    def energy(self, belief: Tensor) -> Tensor:
        """-w K~Q | +v * K~Q | +1/2 (A + A^T) K~Q, in the dtype of `belief` [L, N]."""
        exact = self.method == "exact"
        kernel = reference.gaussian_filter if exact else reference.lattice_filter
        features = torch.from_numpy(self.features).to(belief.dtype)
        message = kernel(belief, features, self.normalization)  # [L, N]
        compat = torch.as_tensor(self.compat).to(belief.dtype)
        if compat.ndim == 0:
            return -compat * message
        if compat.ndim == 1:
            return compat[:, None] * message
        return (compat + compat.T) / 2 @ message


@dataclass(frozen=True)
class Problem:
    """A patchy noisy image with four labels."""

    width: int
    height: int
    labels: int
    energy: np.ndarray  # [L, N] float32
    image: np.ndarray  # [H, W, 3] uint8

    def positions(self, sx: float, sy: float) -> np.ndarray:
        """(x / sx, y / sy) in float32, pixel after pixel along the rows: [2, N]."""
        pixels = [(x, y) for y in range(self.height) for x in range(self.width)]
        return np.array(pixels, np.float32).T.copy() / np.array([[sx], [sy]], np.float32)

    def bilateral(self, sx: float, sy: float, *colors: float) -> np.ndarray:
        """(x / sx, y / sy, r / sr, g / sg, b / sb) in float32: [5, N]."""
        pixels = self.image.reshape(-1, 3).T.astype(np.float32)
        return np.concatenate(
            [self.positions(sx, sy), pixels / np.array(colors, np.float32)[:, None]]
        )

    def term(self, *arguments: Any, **options: Any) -> Term:
        return Term(*arguments, **options)

    def belief(
        self, terms: Sequence[Term], iterations: int, dtype: torch.dtype = torch.float64
    ) -> Tensor:
        """Q after so many parallel updates [L, N]."""
        unary = torch.from_numpy(self.energy).to(dtype)
        belief = torch.softmax(-unary, 0)
        for _ in range(iterations):
            total = sum((term.energy(belief) for term in terms), torch.zeros_like(unary))
            belief = torch.softmax(-unary - total, 0)
        return belief

    def crf(self, module: Any) -> Any:
        """A DenseCRF2D of `module` (ours or pydensecrf's) with the unary energies set."""
        crf = module.DenseCRF2D(self.width, self.height, self.labels)
        crf.setUnaryEnergy(self.energy)
        return crf


@pytest.fixture(scope="session")
def problem() -> Problem:
    rng = np.random.default_rng(7)
    # pydensecrf adds phantom pixels unless 4 divides their number
    height, width, labels = 20, 23, 4
    patches = rng.integers(0, 256, (5, 6, 3)).repeat(4, 0).repeat(4, 1)[:height, :width]
    image = np.clip(patches + rng.normal(0, 6, patches.shape), 0, 255).astype(np.uint8)
    energy = (3 * rng.random((labels, height * width))).astype(np.float32)
    return Problem(width, height, labels, energy, image)
