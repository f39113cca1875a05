"""What segfast::mean_field takes: seven tensors, then options."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, NamedTuple


class Each(NamedTuple):
    """Something of each tensor, in their order: itself, or whether its gradient is wanted.

    A mixing is -mu W: [], [L] or [L, L]. Deviations are float64: (y, x), and [1] or [C] of colours.
    """

    logits: Any
    image: Any
    spatial_mixing: Any
    bilateral_mixing: Any
    spatial_sigma: Any
    bilateral_sigma: Any
    color_sigma: Any

    @property
    def mixings(self) -> tuple[Any, Any]:
        return self.spatial_mixing, self.bilateral_mixing

    @property
    def sigmas(self) -> tuple[Any, Any, Any]:
        return self.spatial_sigma, self.bilateral_sigma, self.color_sigma

    @property
    def any_bilateral_place(self) -> bool:
        """Of what places pixels in the bilateral kernel."""
        return bool(self.image or self.bilateral_sigma or self.color_sigma)


NAMES = Each._fields
SIGMAS = NAMES[4:]
NONE = Each(*[False] * len(NAMES))


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

    def arguments(self) -> list[Any]:
        """(`dataclasses.astuple` copies; torch.compile of torch 2.11 does not follow it.)"""
        return [getattr(self, name) for name in _NAMES]


_NAMES = tuple(field.name for field in fields(Options))
