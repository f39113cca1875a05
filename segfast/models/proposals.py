"""Scores of an image from those of its proposals, parts that hold an object each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.ops import _check

REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"max": torch.maximum, "sum": torch.add}


def aggregate(
    score_maps: Tensor | Sequence[Tensor],  # [P, L, h, w], or P of [L, h_i, w_i]
    boxes: Tensor | Sequence[Sequence[int]],
    size: Sequence[int],
    mode: str = "max",
) -> Tensor:
    r"""Scores of the whole image from those of proposals: before softmax.

    .. math:: S = \max_i G_i \quad \text{or} \quad S = \sum_i G_i

    with G_i the scores of proposal i, resized to its box and zero outside it. DeconvNet, section
    4.3, equations 1 and 2.

    Args:
        score_maps: of every proposal.
        boxes: (left, top, right, bottom) of every proposal in pixels of the image, right and bottom
            exclusive; they may reach beyond the image.
        size: (H, W) of the image.
        mode: "max" or "sum".

    Returns:
        S [L, H, W].

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import aggregate
        >>> aggregate(torch.ones(2, 1, 4, 4), [(0, 0, 2, 1), (1, 0, 4, 1)], (1, 4), mode="sum")
        tensor([[[1., 2., 1., 1.]]])
    """
    for name, values in (("score_maps", score_maps), ("boxes", boxes)):
        if not isinstance(values, (Tensor, list, tuple)):
            raise TypeError(f"{name} must be a tensor or a list, got {_check.describe(values)}")
    maps = list(score_maps)
    for y in maps:
        _check.require_floating("score_maps", y, "[L, h, w]")
    corners = boxes.tolist() if isinstance(boxes, Tensor) else list(boxes)
    height, width = _check.pair("size", size, 1)
    _check.require_choice("mode", mode, tuple(REDUCTIONS))
    if not maps or any(y.dim() != 3 or len(y) != len(maps[0]) for y in maps):
        raise ValueError("score_maps must be one or more of [L, h, w], with one L")
    if len(corners) != len(maps):
        raise ValueError(f"boxes must be {len(maps)}, one for each map; got {len(corners)}")
    placed = (_placed(y, box, height, width) for y, box in zip(maps, corners, strict=True))
    return functools.reduce(REDUCTIONS[mode], placed)


def _placed(y: Tensor, corner: Sequence[int], height: int, width: int) -> Tensor:
    """G_i: y [L, h, w] in its box, zero elsewhere: [L, height, width]."""
    left, top, right, bottom = _box(corner, height, width)
    y = F.interpolate(y[None], (bottom - top, right - left), mode="bilinear")[0]
    return F.pad(y, (left, width - right, top, height - bottom))  # negative: cut off


def _box(corner: Sequence[int], height: int, width: int) -> tuple[int, int, int, int]:
    if not isinstance(corner, (list, tuple)) or len(corner) != 4:
        raise TypeError(f"boxes must be of four integers, got {_check.describe(corner)}")
    if any(not isinstance(n, int) for n in corner):
        raise TypeError(f"boxes must be of four integers, got {_check.describe(corner)}")
    left, top, right, bottom = corner
    if not (left < right and top < bottom):
        raise ValueError(f"boxes must have left < right and top < bottom, got {corner}")
    if left >= width or right <= 0 or top >= height or bottom <= 0:
        raise ValueError(f"boxes must overlap the image of {height} x {width}, got {corner}")
    return left, top, right, bottom
