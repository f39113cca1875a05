"""AlexNet in its two published forms: Caffe's, which FCN is built on, and torchvision's."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from segfast.models._inputs import least_image
from segfast.models._layers import LocalResponseNorm, conv2d
from segfast.models.backbones._base import Backbone
from segfast.nn import MaxPool2d
from segfast.ops import _check


class Wiring(NamedTuple):
    """Where the two differ.

    Attributes:
        widths: channels of the five convolutions.
        groups: of the second, fourth and fifth: two GPUs in 2012.
        padding: of the first convolution.
        local_norm: local response normalisation behind the first two pools.
        ceil: the pools round their size up.
    """

    widths: tuple[int, int, int, int, int]
    groups: int
    padding: int
    local_norm: bool
    ceil: bool


WIRINGS = {
    # Krizhevsky, "One weird trick for parallelizing convolutional neural networks", 2014
    "torchvision": Wiring((64, 192, 384, 256, 256), 1, 2, local_norm=False, ceil=False),
    # Krizhevsky, Sutskever and Hinton, NIPS 2012; norm behind the pool as in BVLC's CaffeNet
    "caffe": Wiring((96, 256, 384, 384, 256), 2, 0, local_norm=True, ceil=True),
}


class AlexNet(Backbone):
    """Five convolutions, three pools: x [N, C, H, W] -> the pooled maps.

    image -> conv1 11 x 11 / 4 -> pool -> norm -> conv2 5 x 5 -> pool -> norm
          -> conv3, conv4, conv5 3 x 3 -> pool

    Args:
        in_channels: C.
        wiring: "torchvision" or "caffe".
        first_padding: of conv1; None means as published. FCN has 100.

    Shape:
        -> maps of `channels` and `strides` (8, 16, 32). State: conv1 to conv5.
    """

    def __init__(
        self,
        in_channels: int = 3,
        wiring: str = "torchvision",
        first_padding: int | None = None,
    ) -> None:
        super().__init__()
        _check.require_choice("wiring", wiring, tuple(WIRINGS))
        (w1, w2, w3, w4, w5), groups, padding, local_norm, ceil = WIRINGS[wiring]
        padding = padding if first_padding is None else first_padding
        self.in_channels = in_channels
        self.conv1 = conv2d(in_channels, w1, 11, 4, bias=True, padding=padding)
        self.conv2 = conv2d(w1, w2, 5, groups=groups, bias=True)
        self.conv3 = conv2d(w2, w3, 3, bias=True)
        self.conv4 = conv2d(w3, w4, 3, groups=groups, bias=True)
        self.conv5 = conv2d(w4, w5, 3, groups=groups, bias=True)
        self.pool1, self.pool2, self.pool5 = (MaxPool2d(3, 2, ceil_mode=ceil) for _ in range(3))
        norm = LocalResponseNorm if local_norm else nn.Identity
        self.norm1, self.norm2 = norm(), norm()
        self.channels, self.strides = (w1, w2, w5), (8, 16, 32)
        pool = 3, 2, 0, ceil  # the other convolutions keep sizes
        self.least = least_image([(11, 4, padding, False), pool, pool, pool])

    def maps(self, x: Tensor) -> list[Tensor]:
        """x [N, C, H, W] -> the three pools' maps."""
        first = self.norm1(self.pool1(torch.relu_(self.conv1(x))))
        second = self.norm2(self.pool2(torch.relu_(self.conv2(first))))
        y = torch.relu_(self.conv3(second))
        y = torch.relu_(self.conv4(y))
        return [first, second, self.pool5(torch.relu_(self.conv5(y)))]
