"""High-resolution networks: maps of several strides side by side, which keep telling each other.

stride 4   -- layer1 --+-- stage2 --+-- stage3 --+-- stage4 -->  C channels
stride 8               \\-- stage2 --+-- stage3 --+-- stage4 --> 2 C
stride 16                           \\-- stage3 --+-- stage4 --> 4 C
stride 32                                        \\-- stage4 --> 8 C
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._base import resize
from segfast.models._layers import conv2d, conv_bn_relu
from segfast.models.backbones._base import Backbone
from segfast.models.backbones.resnet import BasicBlock, Bottleneck
from segfast.ops import _check

Enlarge = Callable[[Tensor, Any], Tensor]  # x [N, C, h, w], size -> [N, C, *size]


class Size(NamedTuple):
    """C, blocks of layer1, blocks of each branch, modules of the stages 2 to 4."""

    width: int
    first_blocks: int = 4
    blocks: int = 4
    modules: tuple[int, int, int] = (1, 4, 3)


# Sun et al., "High-Resolution Representations for Labeling Pixels and Regions", 2019, section 3.
HRNETS = {
    "w18_small": Size(18, 2, 2, (1, 3, 2)),  # version 2 of the small network
    "w18": Size(18),
    "w32": Size(32),
    "w40": Size(40),
    "w48": Size(48),
}


class HRNet(Backbone):
    """The stem, layer1 and three stages: x [N, C, H, W] -> maps of strides 4, 8, 16 and 32.

    Args:
        size: "w18_small", "w18", "w32", "w40" or "w48".
        in_channels: C.
        align_corners: of the bilinear resizes between strides.
        nearest: these take the nearest value instead, as in the classifiers.

    Shape:
        -> four maps of `channels` and `strides`. State as published by HRNet's authors.
    """

    def __init__(
        self,
        size: str,
        in_channels: int = 3,
        align_corners: bool = False,
        nearest: bool = False,
    ) -> None:
        super().__init__()
        _check.require_choice("size", size, tuple(HRNETS))
        width, first_blocks, blocks, modules = HRNETS[size]
        self.in_channels = in_channels
        self.channels, self.strides = tuple(width * 2**i for i in range(4)), (4, 8, 16, 32)
        enlarge = _nearest if nearest else partial(resize, align_corners=align_corners)
        self.conv1, self.bn1 = conv2d(in_channels, 64, 3, 2), nn.BatchNorm2d(64)
        self.conv2, self.bn2 = conv2d(64, 64, 3, 2), nn.BatchNorm2d(64)
        layer1 = [Bottleneck(64, 64, 1, 1)]
        layer1 += [Bottleneck(256, 64, 1, 1) for _ in range(first_blocks - 1)]
        self.layer1 = nn.Sequential(*layer1)
        before: Sequence[int] = (256,)
        for i, count in enumerate(modules, 1):
            after = self.channels[: i + 1]
            self.add_module(f"transition{i}", transition(before, after))
            stage = (Exchange(after, blocks, enlarge) for _ in range(count))
            self.add_module(f"stage{i + 1}", nn.Sequential(*stage))
            before = after

    def maps(self, x: Tensor) -> list[Tensor]:
        """x [N, C, H, W] -> the four maps."""
        x = torch.relu_(self.bn1(self.conv1(x)))
        x = torch.relu_(self.bn2(self.conv2(x)))
        maps = [self.layer1(x)]
        for i in (1, 2, 3):
            changes = self.get_submodule(f"transition{i}")
            # a branch goes on from its own map, a new one from the smallest
            maps = [
                changes[str(j)](maps[min(j, len(maps) - 1)]) if str(j) in changes else maps[j]  # type: ignore[index, operator]
                for j in range(i + 1)
            ]
            maps = self.get_submodule(f"stage{i + 1}")(maps)
        return maps


def transition(before: Sequence[int], after: Sequence[int]) -> nn.ModuleDict:
    """What changes from stage to stage: branch -> module; one that keeps its channels has none."""
    changes = nn.ModuleDict()
    for j, width in enumerate(after):
        if j >= len(before):
            changes[str(j)] = nn.Sequential(conv_bn_relu(before[-1], width, 3, 2))
        elif before[j] != width:
            changes[str(j)] = conv_bn_relu(before[j], width, 3)
    return changes


class Exchange(nn.Module):
    """Residual blocks on every branch, then every map becomes a sum over all of them.

    y_i = relu(sum_j f_ij(x_j))     f_ii the identity; j > i: 1 x 1 and resized; j < i: 3 x 3
                                    with stride 2, i - j times
    """

    def __init__(self, channels: Sequence[int], blocks: int, enlarge: Enlarge) -> None:
        super().__init__()
        self.enlarge = enlarge
        self.branches = nn.ModuleList(
            nn.Sequential(*(BasicBlock(c, c, 1, 1) for _ in range(blocks))) for c in channels
        )
        self.fuse_layers = nn.ModuleList(
            nn.ModuleDict({str(j): _fuse(channels, i, j) for j in range(len(channels)) if j != i})
            for i in range(len(channels))
        )

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Maps of all strides -> maps of all strides."""
        maps = [branch(x) for branch, x in zip(self.branches, maps, strict=True)]
        fused = []
        for i, layers in enumerate(self.fuse_layers):
            total: Tensor | None = None
            for j, x in enumerate(maps):
                y = x if j == i else layers[str(j)](x)  # type: ignore[index]
                y = self.enlarge(y, maps[i].shape[-2:])
                total = y if total is None else total + y
            fused.append(torch.relu(total))  # type: ignore[arg-type]
        return fused


def _fuse(channels: Sequence[int], to: int, source: int) -> nn.Sequential:
    if source > to:
        return conv_bn_relu(channels[source], channels[to], 1, act=None)
    width = channels[source]
    steps = [conv_bn_relu(width, width, 3, 2) for _ in range(to - source - 1)]
    return nn.Sequential(*steps, conv_bn_relu(width, channels[to], 3, 2, act=None))


def _nearest(x: Tensor, size: Any) -> Tensor:
    """x [N, C, h, w] -> [N, C, *size]"""
    return x if x.shape[-2:] == size else F.interpolate(x, size)
