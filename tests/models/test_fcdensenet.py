"""FC-DenseNet: what the paper counts, sampling, edges."""

from __future__ import annotations

import pytest
import torch

from segfast.models import create_model
from segfast.models.fcdensenet import FCDenseNet


def test_channels_after_the_blocks() -> None:
    """The released code's list, which the paper's table misses by 16 here and there."""
    with torch.device("meta"):
        model = create_model("fcdensenet103")
    skips = [shrink[2].in_channels for shrink in model.shrink]  # type: ignore[union-attr, index]
    assert skips == [112, 192, 304, 464, 656]
    assert [conv.in_channels for conv in model.enlarge] == [240, 192, 160, 112, 80]  # type: ignore[union-attr]
    assert model.classifier.in_channels == 256  # type: ignore[union-attr]


def test_samples_without_dropout_agree() -> None:
    torch.manual_seed(0)
    model = FCDenseNet(3, depth=57, dropout=0.0).eval()
    x = torch.randn(1, 3, 33, 40)
    mean, variance = model.predict(x, 3)
    torch.testing.assert_close(mean, model(x).softmax(1))
    assert variance.max() < 1e-12


def test_samples_differ() -> None:
    torch.manual_seed(0)
    mean, variance = FCDenseNet(3, depth=57).eval().predict(torch.randn(1, 3, 33, 40), 3)
    assert variance.min() > 0
    entropy = -(mean * mean.log()).sum(1)
    assert entropy.min() >= 0
    assert entropy.max() <= torch.tensor(3.0).log() + 1e-6


def test_refusals() -> None:
    with pytest.raises(ValueError, match="depth must be one of 57, 67, 103; got 56"):
        FCDenseNet(depth=56)
    with pytest.raises(ValueError, match="x must be at least 32 pixels"):
        FCDenseNet(depth=57)(torch.randn(1, 3, 31, 64))
