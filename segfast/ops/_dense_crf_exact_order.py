"""Pixels in an order that keeps near ones together, by PyTorch operations that wait for no GPU.

As the CPU's exact_tiles.h: ranges are split at the median of their widest feature until each is one
row of tiles, here all ranges of a level by one stable sort.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from segfast.kernels.dense_crf.triton_configurations import (
    CENTRE,
    LARGEST_CENTRE,
    LARGEST_PART,
    PART,
    RADIUS_SQUARED,
    ROW,
    TILE,
    axes,
    depth,
)

SAMPLE = 256  # pixels of a range that say which axis is widest


def kd_order(features: Tensor) -> Tensor:
    """`features` [B, F, N] float32 -> the pixel in each slot, int64 [B, N]."""
    batch, dims, pixels = features.shape
    rows = -(-pixels // ROW)
    order = torch.arange(pixels, device=features.device).expand(batch, pixels)
    row = order[0] // ROW  # [N], of a slot
    for level in range((rows - 1).bit_length() + 1):  # the last splits rows into tiles
        ranges = 1 << level
        segment = ((row + 1) * ranges - 1) // rows  # [N]: rows are shared out evenly
        sorted_features = features.gather(2, order[:, None].expand(-1, dims, -1))
        axis = _widest(sorted_features, segment, ranges)  # [B, ranges]
        own = axis.gather(1, segment.expand(batch, -1))  # [B, N]
        x = sorted_features.gather(1, own[:, None])[:, 0]
        key = _sortable(x) + (segment << 32)
        order = order.gather(1, torch.sort(key, dim=1, stable=True).indices)
    return order


def _widest(features: Tensor, segment: Tensor, ranges: int) -> Tensor:
    """The feature [B, ranges] of largest extent in each range, judged by a sample."""
    batch, dims, pixels = features.shape
    step = max(1, pixels // (ranges * SAMPLE))
    sample = features[..., ::step]
    at = segment[::step].expand(sample.shape)
    low, high = (
        features.new_zeros(batch, dims, ranges).scatter_reduce(
            2, at, sample, reduction, include_self=False
        )
        for reduction in ("amin", "amax")
    )
    return (high - low).argmax(1)


def _sortable(x: Tensor) -> Tensor:
    """An int64 in [-2^31, 2^31) that orders as the float32 does."""
    bits = x.contiguous().view(torch.int32)
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()


def in_order(features: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """Sorted features [B, F, slots], the last repeated to fill a row, and tiles' boxes.

    Boxes: [B, 2, F, tiles], lower and upper corners; unbounded where a feature is not finite, so
    that no bound leaves out what the full sum would turn into NaN.
    """
    _, dims, pixels = features.shape
    slots = -(-pixels // ROW) * ROW
    last = order[:, -1:].expand(-1, slots - pixels)
    filled = torch.cat([order, last], 1)[:, None].expand(-1, dims, -1)  # [B, F, slots]
    tiled = features.gather(2, filled)
    lower, upper = torch.aminmax(tiled.unflatten(2, (-1, TILE)), dim=3)  # [B, F, tiles]
    bad = ~(lower.isfinite() & upper.isfinite()).all(1, keepdim=True)
    lower = lower.masked_fill(bad, -torch.inf)
    upper = upper.masked_fill(bad, torch.inf)
    return tiled, torch.stack([lower, upper], 1)


def centred_parts(tiled: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What distances by products of matrices need of sorted features [B, F, slots].

    a = sqrt(log2 e) (f - centre of its row), rounded to the sum of two float16, a multiple of PART
    and one of PART^2 / 4: what the kernel makes of it is exact, or rounded once.

    Returns:
        centres of the rows [B, F, rows], times sqrt(log2 e), NaN where a row is too large;
        a, -|a|^2 / 2 as a multiple of PART and the rest, zeros, [B, slots, AXES] float32;
        a in parts: low, high, low and high, low, low, [B, slots, DEPTH] float16 each.
    """
    dims, width = tiled.shape[1], depth(tiled.shape[1])
    by_row = tiled.double().unflatten(2, (-1, ROW)) * math.sqrt(math.log2(math.e))
    low, high = torch.aminmax(by_row, dim=3)  # [B, F, rows]
    centres = _rounded(low + (high - low) / 2, CENTRE)
    a = by_row - centres[..., None]  # [B, F, rows, ROW]
    far = centres.abs().amax(1) > LARGEST_CENTRE  # [B, rows]
    small = (a.abs().amax((1, 3)) <= LARGEST_PART) & (a.square().sum(1).amax(2) <= RADIUS_SQUARED)
    small = (small & ~far if width else torch.zeros_like(far))[:, None]  # NaN is not
    a = torch.where(small[..., None], a, 0.0).flatten(2)  # large ones would overflow float16
    head = _rounded(a, PART)
    tail = _rounded(a - head, PART**2 / 4)
    norms = -0.5 * (head + tail).square().sum(1, keepdim=True)  # [B, 1, slots]
    whole = _rounded(norms, PART)
    return (
        centres.masked_fill(~small, math.nan).float(),
        _by_pixel(axes(dims), head + tail, whole, norms - whole).float(),
        _by_pixel(width, tail, head, tail).half(),
        _by_pixel(width, head, tail, tail).half(),
    )


def _rounded(x: Tensor, step: float) -> Tensor:
    """To a multiple of `step`, a power of 2."""
    return (x / step).round() * step


def _by_pixel(width: int, *parts: Tensor) -> Tensor:
    """[B, D, slots] each -> [B, slots, width], filled with zeros."""
    joined = torch.cat(parts, 1).transpose(1, 2)[..., :width]  # [B, slots, D]
    return torch.nn.functional.pad(joined, (0, width - joined.shape[2])).contiguous()
