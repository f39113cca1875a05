"""Aligned Xception: blocks of three separable convolutions, strided instead of pooled."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segfast.models._layers import conv_bn_relu
from segfast.models.backbones._base import Backbone
from segfast.nn import SeparableDilatedConv2d
from segfast.ops import _check

# Channels of the three convolutions of blocks 1 to 20: entry, middle, exit flow. Chen et al.,
# "Encoder-Decoder with Atrous Separable Convolution", ECCV 2018, figure 4.
BLOCKS = (
    (128, 128, 128),
    (256, 256, 256),
    (728, 728, 728),
    *[(728, 728, 728)] * 16,
    (728, 1024, 1024),
)
LAST = (1536, 1536, 2048)

# output stride -> (stride of block 3, rate of blocks 4 to 20, stride of block 20, rate behind it)
PLANS = {8: (1, 2, 1, 4), 16: (2, 1, 1, 2), 32: (2, 1, 2, 1)}


class Xception(Backbone):
    """Two convolutions, twenty blocks, three convolutions: x [N, C, H, W] -> three maps.

    Args:
        in_channels: C.
        output_stride: 8, 16 or 32: blocks beyond it are dilated.
        wiring: "jfzhang".

    Shape:
        -> [block 1 (stride 4), block 19, the last map]; `channels` and `strides` are theirs. State:
        stem.0 and stem.3 (convolutions), stem.1 and stem.4 (norms); block{i}.convs.{j}, conv3,
        conv4 and conv5 (0 a SeparableDilatedConv2d with bn, 1 the norm); block{i}.skip.
    """

    channels = (128, 728, 2048)

    def __init__(
        self, in_channels: int = 3, output_stride: int = 32, wiring: str = "jfzhang"
    ) -> None:
        super().__init__()
        _check.require_choice("wiring", wiring, ("jfzhang",))
        if output_stride not in tuple(PLANS):
            raise ValueError(f"output_stride must be 8, 16 or 32; got {output_stride!r}")
        third, rate, last, last_rate = PLANS[output_stride]
        strides = [2, 2, third, *[1] * 16, last]
        self.in_channels, self.strides = in_channels, (4, 8 * third, output_stride)
        first = conv_bn_relu(in_channels, 32, 3, 2)
        self.stem = nn.Sequential(*first, *conv_bn_relu(32, 64, 3))
        channels = 64
        for number, (widths, stride) in enumerate(zip(BLOCKS, strides, strict=True), 1):
            rates = [rate if number > 3 else 1] * 3
            if number == len(BLOCKS):
                rates[-1] = 1  # as published, at every output stride
            self.add_module(f"block{number}", XceptionBlock(channels, widths, stride, rates))
            channels = widths[-1]
        for number, width in enumerate(LAST, 3):
            self.add_module(f"conv{number}", separable(channels, width, 1, last_rate))
            channels = width

    def maps(self, x: Tensor) -> list[Tensor]:
        """x [N, C, H, W] -> maps [N, c, h, w]."""
        x = self.stem(x)
        maps = []
        for number in range(1, 21):
            x = self.get_submodule(f"block{number}")(x)
            if number in (1, 19):
                x = torch.relu_(x)  # (the next block does it anyway)
                maps.append(x)
        for number in (3, 4, 5):
            x = torch.relu(self.get_submodule(f"conv{number}")(torch.relu(x)))
        return [*maps, x]


def separable(channels: int, width: int, stride: int, rate: int) -> nn.Sequential:
    """norm(conv_1x1(norm(depthwise x))): children 0 and 1."""
    conv = SeparableDilatedConv2d(channels, width, 3, stride, rate, rate, batch_norm=True)
    return nn.Sequential(conv, nn.BatchNorm2d(width))


class XceptionBlock(nn.Module):
    """y = skip(x') + f_3(relu(f_2(relu(f_1 x')))), x' = relu(x), f_j separable, the last strided.

    The published code rectifies in place: the shortcut, too, is of relu(x).

    Args:
        channels: of x.
        widths, rates: of the three convolutions.
        stride: of the third, and of the shortcut.
    """

    def __init__(
        self, channels: int, widths: Sequence[int], stride: int, rates: Sequence[int]
    ) -> None:
        super().__init__()
        self.convs = nn.ModuleList()
        self.skip: nn.Sequential | None = None
        if stride != 1 or widths[-1] != channels:
            conv = nn.Conv2d(channels, widths[-1], 1, stride, bias=False)
            self.skip = nn.Sequential(conv, nn.BatchNorm2d(widths[-1]))
        for j, (width, rate) in enumerate(zip(widths, rates, strict=True)):
            self.convs.append(separable(channels, width, stride if j == 2 else 1, rate))
            channels = width

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, widths[2], H / stride, W / stride]."""
        x = y = torch.relu(x)
        for conv in self.convs:
            y = conv(torch.relu(y))
        return y + (x if self.skip is None else self.skip(x))
