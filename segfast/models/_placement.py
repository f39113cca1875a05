"""Where in the image the scores of a strided network are, and what lies beyond its border."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def spread(y: Tensor, stride: int, size: Sequence[int], first: int = 0) -> Tensor:
    """Bilinear between scores that are those of the pixels first + stride i; the nearest outside.

    Args:
        y: [N, L, h, w].
        stride: pixels from one score to the next.
        size: (H, W) of the result.
        first: the pixel of y[..., 0, 0], on both axes.

    Returns:
        [N, L, H, W].

    Example:
        >>> import torch
        >>> from segfast.models._placement import spread
        >>> spread(torch.tensor([[[[0.0, 4.0]]]]), 4, (1, 7), first=1)
        tensor([[[[0., 0., 1., 2., 3., 4., 4.]]]])
    """
    height, width = (stride * (n - 1) + 1 for n in y.shape[-2:])
    y = F.interpolate(y, (height, width), mode="bilinear", align_corners=True)
    below, right = (n - first - have for n, have in zip(size, (height, width), strict=True))
    return F.pad(y, (first, right, first, below), mode="replicate")  # negative: cut off


def reflected(x: Tensor, dim: int, before: int, behind: int) -> Tensor:
    """Padded along an axis by reflection about the first and the last element, any number of times.

    Example:
        >>> import torch
        >>> from segfast.models._placement import reflected
        >>> reflected(torch.tensor([1, 2, 3]), 0, 3, 1)
        tensor([2, 3, 2, 1, 2, 3, 2])
    """
    length = x.shape[dim]
    period = max(2 * (length - 1), 1)
    i = torch.arange(-before, length + behind, device=x.device).remainder(period)
    return x.index_select(dim, torch.minimum(i, period - i))
