"""What mean field takes beside its tensors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """What segfast::mean_field takes after its tensors, in its order."""

    iterations: int
    normalization: str = "symmetric"
    method: str = "lattice"
    spatial: str = "conv"
    tolerance: float = 1e-7
    keep_steps: bool = False
    softmax: bool = False
    capacity: int | None = None
