"""Problems and oracles for the tests of the dense CRF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference


def make_problem(
    labels: int, channels: int, height: int, width: int, batch: int = 1, noise: float = 20.0
) -> tuple[Tensor, Tensor]:
    """Logits float32 [B, L, H, W], and a uint8 image [B, C, H, W]: two tones, a slope, noise."""
    generator = torch.Generator().manual_seed(labels + 1000 * channels + height * width)
    logits = 2 * torch.randn(batch, labels, height, width, generator=generator)
    tones = torch.rand(batch, channels, 3, 1, 1, generator=generator) * 128
    y = torch.linspace(0, 1, height)[:, None]
    x = torch.linspace(0, 1, width)
    image = tones[:, :, 0] + tones[:, :, 1] * (x + y > 0.9) + tones[:, :, 2] * x * y
    image = image + noise * torch.randn(batch, channels, height, width, generator=generator)
    return logits, image.round().clamp(0, 255).to(torch.uint8)


def reference_mean_field(
    logits: Tensor, image: Tensor, dtype: torch.dtype = torch.float64, **options: Any
) -> Tensor:
    """Scores [B, L, H, W] of the reference computed in `dtype`."""
    each = [
        reference.mean_field(x.to(dtype), y, **options) for x, y in zip(logits, image, strict=True)
    ]
    return torch.stack(each)


@pytest.fixture
def problem() -> Callable[..., tuple[Tensor, Tensor]]:
    return make_problem


@pytest.fixture
def oracle() -> Callable[..., Tensor]:
    return reference_mean_field


@pytest.fixture(autouse=True)
def _poisoned(poisoned_empty: None) -> None:
    """Fresh memory holds NaN, and a kernel that runs past the end of its scratch memory dies."""
