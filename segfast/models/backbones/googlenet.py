"""GoogLeNet in its two published forms: BVLC's, as in the paper, and torchvision's.

Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, table 1.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from segfast.models._inputs import least_image
from segfast.models._layers import LocalResponseNorm, conv2d
from segfast.models.backbones._base import Backbone
from segfast.nn import MaxPool2d
from segfast.ops import _check

# channels: 1 x 1; 3 x 3 reduced, 3 x 3; 5 x 5 reduced, 5 x 5; of what is pooled
INCEPTIONS = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class Wiring(NamedTuple):
    """Where the two differ.

    Attributes:
        batch_norm: after every convolution, in place of its bias and of local normalisation.
        large: size of the kernels that the paper calls 5 x 5.
        last_pool: size of the pool between inception4e and 5a.
    """

    batch_norm: bool
    large: int
    last_pool: int


WIRINGS = {
    "torchvision": Wiring(batch_norm=True, large=3, last_pool=2),
    "caffe": Wiring(batch_norm=False, large=5, last_pool=3),
}


class GoogLeNet(Backbone):
    """Three convolutions, nine inceptions, four pools: x [N, C, H, W] -> maps.

    Args:
        in_channels: C.
        wiring: "torchvision" or "caffe".
        first_padding: of the first convolution, 7 x 7 / 2.

    Shape:
        -> the maps behind the first three pools (strides 4, 8, 16), inception4a and inception4d
        (16; auxiliary classifiers were trained on them), inception5b (32); `channels` and `strides`
        are theirs. State as torchvision's: conv1.conv, conv1.bn, inception3a.branch2.1.conv ...
    """

    def __init__(
        self, in_channels: int = 3, wiring: str = "torchvision", first_padding: int = 3
    ) -> None:
        super().__init__()
        _check.require_choice("wiring", wiring, tuple(WIRINGS))
        wires = WIRINGS[wiring]
        norm = wires.batch_norm
        local_norm = nn.Identity if norm else LocalResponseNorm
        self.in_channels = in_channels
        self.conv1 = Unit(in_channels, 64, 7, norm, 2, first_padding)
        self.maxpool1 = MaxPool2d(3, 2, ceil_mode=True)
        self.norm1 = local_norm()
        self.conv2 = Unit(64, 64, 1, norm)
        self.conv3 = Unit(64, 192, 3, norm)
        self.norm2 = local_norm()
        self.maxpool2 = MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool3 = MaxPool2d(3, 2, ceil_mode=True)
        self.maxpool4 = MaxPool2d(wires.last_pool, 2, ceil_mode=True)
        channels = 192
        for name, widths in INCEPTIONS.items():
            inception = Inception(channels, widths, wires.large, norm)
            self.add_module(f"inception{name}", inception)
            channels = inception.channels
        self.channels = (64, 192, 480, 512, 528, channels)
        self.strides = (4, 8, 16, 16, 16, 32)
        sizes = 3, 3, 3, wires.last_pool  # of the pools
        self.least = least_image([(7, 2, first_padding, False), *((k, 2, 0, True) for k in sizes)])

    def inception(self, name: str, x: Tensor) -> Tensor:
        """The block of that name on x."""
        return self.get_submodule(f"inception{name}")(x)

    def maps(self, x: Tensor) -> list[Tensor]:
        """x [N, C, H, W] -> six maps."""
        pool1 = self.norm1(self.maxpool1(self.conv1(x)))
        pool2 = self.maxpool2(self.norm2(self.conv3(self.conv2(pool1))))
        pool3 = self.maxpool3(self.inception("3b", self.inception("3a", pool2)))
        first = self.inception("4a", pool3)
        second = self.inception("4d", self.inception("4c", self.inception("4b", first)))
        pool4 = self.maxpool4(self.inception("4e", second))
        last = self.inception("5b", self.inception("5a", pool4))
        return [pool1, pool2, pool3, first, second, last]


class Unit(nn.Module):
    """relu(conv x), or relu(norm(conv x)) with a convolution that has no bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        batch_norm: bool,
        stride: int = 1,
        padding: int | None = None,
    ) -> None:
        super().__init__()
        self.conv = conv2d(
            in_channels, out_channels, kernel_size, stride, bias=not batch_norm, padding=padding
        )
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001) if batch_norm else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, out_channels, h, w]."""
        return torch.relu_(self.bn(self.conv(x)))


class Inception(nn.Module):
    """Four branches, concatenated: 1 x 1; 1 x 1, 3 x 3; 1 x 1, 5 x 5; 3 x 3 pool, 1 x 1."""

    def __init__(
        self, channels: int, widths: tuple[int, ...], large: int, batch_norm: bool
    ) -> None:
        super().__init__()
        one, reduced3, three, reduced5, five, pooled = widths
        self.branch1 = Unit(channels, one, 1, batch_norm)
        self.branch2 = nn.Sequential(
            Unit(channels, reduced3, 1, batch_norm), Unit(reduced3, three, 3, batch_norm)
        )
        self.branch3 = nn.Sequential(
            Unit(channels, reduced5, 1, batch_norm), Unit(reduced5, five, large, batch_norm)
        )
        self.branch4 = nn.Sequential(
            MaxPool2d(3, 1, padding=1, ceil_mode=True), Unit(channels, pooled, 1, batch_norm)
        )
        self.channels = one + three + five + pooled

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, channels, H, W]."""
        branches = (self.branch1, self.branch2, self.branch3, self.branch4)
        return torch.cat([branch(x) for branch in branches], 1)
