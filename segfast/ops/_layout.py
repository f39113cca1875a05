"""Memory formats of maps [N, C, H, W]: which one, tensors without gaps in it; names of dtypes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def dtype_name(dtype: torch.dtype) -> str:
    """torch.float32 -> "float32" """
    return str(dtype).removeprefix("torch.")


def channels_last(x: Tensor) -> bool:
    """Whether PyTorch's operators would give their result for x in channels_last."""
    return x.stride(1) == 1 and torch._prims_common.suggest_memory_format(x) == torch.channels_last


def _pixels(x: Tensor) -> bool:
    """Whether x is dense in channels_last, its strides along sizes of 1, too (channels_last looks).

    Empty maps, and those of one element, may be so and still count as contiguous.
    """
    _, c, h, w = x.shape
    return x.stride() == (h * w * c, 1, w * c, c)


def gapless(x: Tensor, like: Tensor | None = None) -> Tensor:
    """x without gaps, in its own memory format or in that of `like`; x itself where it is so."""
    if like is None:
        like = x
    if like.stride(1) != 1:  # the usual cases first: this is part of every call
        return x.contiguous()
    if _pixels(x) and (like is x or (_pixels(like) and like.stride(0) > 1 and like.shape[0] > 0)):
        return x
    if not channels_last(like):
        return x.contiguous()
    return x.movedim(1, 3).contiguous().movedim(3, 1)  # contiguous(channels_last) fails in vmap


def empty(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    """[N, channels, *size] in the memory format of `like` [N, C, H, W]."""
    layout = torch.channels_last if channels_last(like) else torch.contiguous_format
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)
