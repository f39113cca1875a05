"""Encoders whose pools keep where their maxima were, and decoders that put values back there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Pooled = tuple[Tensor, torch.Size]  # packed indices, and the shape that was pooled


def encode(
    x: Tensor,
    stages: Sequence[Callable[[Tensor], Tensor]],
    pool: nn.Module,
    after: Any = None,
) -> tuple[Tensor, list[Pooled]]:
    """x -> pool(stage_n(... pool(stage_1 x))), and what unpooling needs.

    With `after`, a module for every stage, that comes behind its pool.
    """
    pools = []
    for i, stage in enumerate(stages):
        x = stage(x)
        size = x.shape
        x, indices = pool(x)
        pools.append((indices, size))
        if after is not None:
            x = after[i](x)
    return x, pools


def decode(
    x: Tensor,
    stages: Iterable[Callable[[Tensor], Tensor]],
    unpool: nn.Module,
    pools: Sequence[Pooled],
) -> Tensor:
    """x -> stage_1(unpool_1(... stage_n(unpool_n x))): `stages` begins with the deepest."""
    for stage, (indices, size) in zip(stages, reversed(pools), strict=True):
        x = stage(unpool(x, indices, size))
    return x


def mirrored(stages: Sequence[tuple[int, int]], last: int) -> list[tuple[int, list[int]]]:
    """(number, channels of its input and of every output) of a decoder's stages, deepest first.

    `stages` are the encoder's: (convolutions, channels); `last` is what the decoder ends in.

    Example:
        >>> from segfast.models._unpooling import mirrored
        >>> mirrored(((2, 64), (2, 128)), 11)
        [(2, [128, 128, 64]), (1, [64, 64, 11])]
    """
    ends = [last, *(width for _, width in stages)]
    return [
        (i, [width] * count + [ends[i - 1]])
        for i, (count, width) in reversed([*enumerate(stages, 1)])
    ]


def named_layers(
    names: Sequence[str],
    channels: Sequence[int],
    conv: Callable[[int, int], nn.Module],
    *,
    eps: float = 1e-5,
    relu: bool = True,
    plain: Iterable[str] = (),
) -> nn.Sequential:
    """Convolutions NAME, each followed by NAME_bn and NAME_relu, but for those that are `plain`.

    `channels` are those of the input and of every convolution's output.
    """
    layers: Any = nn.Sequential()
    for name, (inputs, outputs) in zip(names, itertools.pairwise(channels), strict=True):
        layers.add_module(name, conv(inputs, outputs))
        if name not in plain:
            layers.add_module(f"{name}_bn", nn.BatchNorm2d(outputs, eps))
            if relu:
                layers.add_module(f"{name}_relu", nn.ReLU(inplace=True))
    return layers
