"""The gate that a benchmark's providers pass before anything is timed."""

from __future__ import annotations

from typing import Any

import torch


class WrongResult(AssertionError):
    """A provider is wrong, or two disagree, so nothing is timed."""


def gate(name: str, actual: Any, expected: Any, limit: float) -> dict[str, Any]:
    """max |actual - expected| must not exceed `limit`; NaN never passes."""
    actual, expected = (torch.as_tensor(each).double() for each in (actual, expected))
    if actual.shape != expected.shape:
        shapes = f"{tuple(actual.shape)} and {tuple(expected.shape)}"
        raise WrongResult(f"{name}: shapes {shapes} differ; nothing was timed")
    error = float((actual - expected).abs().max())
    if not error <= limit:
        raise WrongResult(f"{name}: max |difference| {error:.3g} > {limit:.3g}; nothing was timed")
    return {"name": name, "max_abs": error, "limit": limit}
