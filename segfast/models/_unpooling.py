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
    stages: Iterable[Callable[[Tensor], Tensor]],
    pool: nn.Module,
    after: Iterable[Callable[[Tensor], Tensor]],
) -> tuple[Tensor, list[Pooled]]:
    """x -> after_n(pool(stage_n(... after_1(pool(stage_1 x))))), and what unpooling needs."""
    pools = []
    for stage, last in zip(stages, after, strict=True):
        x = stage(x)
        size = x.shape
        x, indices = pool(x)
        x = last(x)
        pools.append((indices, size))
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
