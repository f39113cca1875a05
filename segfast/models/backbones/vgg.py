"""VGG16's thirteen convolutions, under the names that every Caffe network gives them."""

from __future__ import annotations

import itertools
import operator
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segfast.models._inputs import Window, least_image
from segfast.models._layers import conv2d
from segfast.models.backbones._base import Backbone
from segfast.nn import MaxPool2d

# (convolutions, channels) of the five stages. Simonyan and Zisserman, ICLR 2015, table 1, column D.
VGG16_STAGES = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGG16(Backbone):
    """Five stages of 3 x 3 convolutions and ReLU; what lies between them, the network says.

        for i in range(5):
            x = pool(vgg.stage(i, x))

    Args:
        in_channels: C.
        batch_norm: a normalisation after every convolution, conv{i}_{j}_bn.
        rates: atrous rate of each stage.
        padding: of each stage, in units of its rate; None keeps sizes (1 everywhere).
        first_padding: of conv1_1; None means as its stage. FCN has 100.
        eps: of the normalisations.

    Shape:
        stage i: x [N, C_i, H, W] -> [N, C_{i+1}, H, W] with `padding` 1. State: conv{i}_{j}
        (weight, bias), i from 1.
    """

    def __init__(
        self,
        in_channels: int = 3,
        batch_norm: bool = False,
        rates: Sequence[int] = (1, 1, 1, 1, 1),
        padding: Sequence[int] = (1, 1, 1, 1, 1),
        first_padding: int | None = None,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.in_channels, self.batch_norm = in_channels, batch_norm
        channels = in_channels
        for i, (count, width) in enumerate(VGG16_STAGES):
            for j in range(count):
                pad = padding[i] * rates[i]
                if first_padding is not None and i == j == 0:
                    pad = first_padding
                conv = conv2d(channels, width, 3, dilation=rates[i], bias=True, padding=pad)
                self.add_module(f"conv{i + 1}_{j + 1}", conv)
                if batch_norm:
                    self.add_module(f"conv{i + 1}_{j + 1}_bn", nn.BatchNorm2d(width, eps))
                channels = width

    def stage(self, i: int, x: Tensor) -> Tensor:
        """The convolutions of stage i (from 0), each with its ReLU."""
        for j in range(VGG16_STAGES[i][0]):
            name = f"conv{i + 1}_{j + 1}"
            x = self.get_submodule(name)(x)
            if self.batch_norm:
                x = self.get_submodule(f"{name}_bn")(x)
            x = torch.relu_(x)
        return x


class PooledVGG16(VGG16):
    """VGG16 as a classifier has it, a max pool behind every stage: x -> the pooled maps.

    Args:
        in_channels: C.
        pools: (size, stride, padding) of each.
        ceil: the pools round their size up, as Caffe's do.
        options: of :class:`VGG16`.

    Shape:
        x [N, C, H, W] -> pool1 to pool5; `channels` and `strides` (2 to 32 by default) are theirs.
    """

    def __init__(
        self,
        in_channels: int = 3,
        pools: Sequence[tuple[int, int, int]] = ((2, 2, 0),) * 5,
        ceil: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(in_channels, **options)
        self.pools = nn.ModuleList(MaxPool2d(*pool, ceil_mode=ceil) for pool in pools)
        self.channels = tuple(width for _, width in VGG16_STAGES)
        self.strides = tuple(itertools.accumulate((pool[1] for pool in pools), operator.mul))
        convs = [conv for conv in self.children() if isinstance(conv, nn.Conv2d)]
        layers: list[Window] = []
        for (count, _), pool in zip(VGG16_STAGES, pools, strict=True):
            stage, convs = convs[:count], convs[count:]
            layers += [(2 * c.dilation[0] + 1, 1, int(c.padding[0]), False) for c in stage]
            layers.append((*pool, ceil))
        self.least = least_image(layers)

    def maps(self, x: Tensor) -> list[Tensor]:
        """x -> pool1 to pool5."""
        maps = []
        for i, pool in enumerate(self.pools):
            x = pool(self.stage(i, x))
            maps.append(x)
        return maps


# (size, stride, padding) of DeepLab's five pools: those that keep positions 8 i in place, and those
# of its first networks, whose score i is of pixel 8 i + 1.
DEEPLAB_POOLS = {
    3: ((3, 2, 1), (3, 2, 1), (3, 2, 1), (3, 1, 1), (3, 1, 1)),
    2: ((2, 2, 1), (2, 2, 1), (2, 2, 1), (2, 1, 0), (3, 1, 1)),
}


class DeepLabVGG16(PooledVGG16):
    """VGG16 at output stride 8: pool4 and pool5 have stride 1, the convolutions after pool4 rate 2.

    Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected
    CRFs", ICLR 2015, section 3.1.

    Args:
        in_channels: C.
        pool_size: of the strided pools, a row of DEEPLAB_POOLS.

    Shape:
        x [N, C, H, W] -> the five pooled maps, of strides 2, 4, 8, 8, 8.
    """

    def __init__(self, in_channels: int = 3, pool_size: int = 3) -> None:
        pools = DEEPLAB_POOLS[pool_size]
        super().__init__(in_channels, pools, ceil=True, rates=(1, 1, 1, 1, 2))


def fully_connected(
    in_channels: int,
    width: int = 4096,
    kernel_size: int = 7,
    *,
    dilation: int = 1,
    padding: int = 0,
    eps: float | None = None,
) -> nn.Sequential:
    """A classifier's hidden layers as convolutions: fc6, relu6, drop6, fc7, relu7, drop7.

    With `eps` both are normalised: fc6, bn6, relu6 and so on.
    """
    fc6 = conv2d(in_channels, width, kernel_size, dilation=dilation, bias=True, padding=padding)
    layers = OrderedDict[str, nn.Module]()
    for number, conv in ((6, fc6), (7, nn.Conv2d(width, width, 1))):
        layers[f"fc{number}"] = conv
        if eps is not None:
            layers[f"bn{number}"] = nn.BatchNorm2d(width, eps)
        layers[f"relu{number}"] = nn.ReLU(inplace=True)
        layers[f"drop{number}"] = nn.Dropout(0.5)
    return nn.Sequential(layers)
