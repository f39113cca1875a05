"""DeconvNet without weights: sizes, and proposals put together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from segfast.models import DeconvNet, aggregate
from segfast.nn import BilinearUpsample2d

BOXES = [(-3, 2, 9, 11), (4, -5, 20, 6), (0, 0, 13, 10), (6, 3, 7, 5)]
SIZE = (10, 13)


@pytest.mark.parametrize("size", [(193, 193), (224, 224), (200, 257)])
def test_scores_are_at_input_size(size: tuple[int, int]) -> None:
    with torch.device("meta"):
        model = DeconvNet(num_classes=3, in_channels=4)
        assert model(torch.empty(2, 4, *size)).shape == (2, 3, *size)


def test_refusals_of_sizes() -> None:
    with torch.device("meta"):
        model = DeconvNet()
        with pytest.raises(ValueError, match=r"at least 193 pixels high and wide, got .*192, 300"):
            model(torch.empty(2, 3, 192, 300))
        with pytest.raises(ValueError, match=r"N > 1 in training, or of larger images"):
            model(torch.empty(1, 3, 224, 224))
        model(torch.empty(1, 3, 224, 225))
        model.eval()(torch.empty(1, 3, 224, 224))


def naive(score_maps: Tensor, mode: str) -> Tensor:
    """G_i pixel by pixel, then the maximum or the sum."""
    each = torch.zeros(len(BOXES), score_maps.shape[1], *SIZE)
    for i, (left, top, right, bottom) in enumerate(BOXES):
        y = BilinearUpsample2d()(score_maps[i : i + 1], (bottom - top, right - left))[0]
        for row in range(max(top, 0), min(bottom, SIZE[0])):
            for column in range(max(left, 0), min(right, SIZE[1])):
                each[i, :, row, column] = y[:, row - top, column - left]
    return each.amax(0) if mode == "max" else each.sum(0)


@pytest.mark.parametrize("mode", ["max", "sum"])
def test_proposals_are_put_together_by_the_formula(mode: str) -> None:
    torch.manual_seed(0)
    score_maps = torch.randn(len(BOXES), 2, 7, 5, requires_grad=True)
    out = aggregate(score_maps, BOXES, SIZE, mode)
    torch.testing.assert_close(out, naive(score_maps.detach(), mode))
    assert torch.equal(out, aggregate(list(score_maps), torch.tensor(BOXES), SIZE, mode))
    out.sum().backward()
    assert score_maps.grad.abs().sum((1, 2, 3)).min() > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((torch.ones(0, 1, 2, 2)), [], SIZE), "score_maps must be one or more"),
        ((torch.ones(1, 1, 2, 2), [(0, 0, 1, 1)] * 2, SIZE), "boxes must be 1, one for each map"),
        ((torch.ones(1, 1, 2, 2), [(3, 0, 3, 1)], SIZE), "left < right and top < bottom"),
        ((torch.ones(1, 1, 2, 2), [(13, 0, 15, 1)], SIZE), "boxes must overlap the image of 10 x"),
        ((torch.ones(1, 1, 2, 2), [(0, 0, 1, 1)], SIZE, "mean"), "mode must be one of max, sum"),
    ],
)
def test_refusals_of_proposals(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aggregate(*arguments)


def test_boxes_are_of_integers() -> None:
    with pytest.raises(TypeError, match="boxes must be of four integers"):
        aggregate(torch.ones(1, 1, 2, 2), [(0.0, 0.0, 1.0, 1.0)], SIZE)  # type: ignore[list-item]
