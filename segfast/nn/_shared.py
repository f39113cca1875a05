"""What several modules need: checks of their arguments, the dtype of sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from segfast.ops import _check
from segfast.ops._autocast import autocast_dtype


def require_map(x: Tensor, channels: int | None = None, weight: Any = None) -> None:
    """Refuses what is not a batch of maps of that many channels and of the dtype of a weight."""
    shape = f"[B, {'C' if channels is None else channels}, H, W]"
    _check.require_floating("x", x, shape)
    wrong = channels is not None and x.dim() == 4 and x.shape[1] != channels
    if wrong or x.dim() != 4 or x.shape[1] < 1:
        raise ValueError(f"x must be {shape}, got {_check.describe(x)}")
    if isinstance(weight, Tensor) and autocast_dtype(x) != autocast_dtype(weight):
        raise TypeError(
            f"x must have the dtype of the module, {weight.dtype}, got {_check.describe(x)}"
        )


def wide(x: Tensor) -> Tensor:
    """x in the dtype that sums over positions are in."""
    return x if x.dtype == torch.float64 else x.float()


def chosen(
    name: str, value: str | Sequence[int], presets: Mapping[str, tuple[int, ...]]
) -> tuple[int, ...]:
    """Integers >= 1, given or by the name of a preset."""
    if not isinstance(value, str):
        return _check.require_counts(name, value)
    _check.require_choice(name, value, tuple(presets))
    return presets[value]
