"""MobileNetV2: inverted residuals with linear bottlenecks, in the wirings that were published."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._layers import conv_bn_relu
from segfast.models.backbones._mobilenet import Layer, MobileNet, inverted_residual, plan
from segfast.ops import _check

# (expansion, channels, blocks, stride). Sandler et al., "MobileNetV2: Inverted Residuals and Linear
# Bottlenecks", CVPR 2018, table 2.
STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


class Wiring(NamedTuple):
    """Where published MobileNetV2s differ.

    Attributes:
        last: channels of the last 1 x 1 convolution; None where it was left away.
        pad_first: a block pads its input, not that of its depthwise convolution: what a
            normalisation makes of the padding's zeros is not zero.
        delay: a stage that lost its stride has the atrous rate of the stage before.
    """

    last: int | None = 1280
    pad_first: bool = False
    delay: bool = False


WIRINGS = {
    "torchvision": Wiring(),
    "smp": Wiring(),
    "jfzhang": Wiring(last=None, pad_first=True, delay=True),
}


class MobileNetV2(MobileNet):
    """Stem, seventeen inverted residuals, 1 x 1: x [N, C, H, W] -> maps of some features.

    Args:
        in_channels: C.
        output_stride: 8, 16 or 32: stages beyond it are dilated.
        wiring: of "torchvision", "smp", "jfzhang".
        taps: the features whose maps are returned; None means the last of each stride, 2 to 32.

    Shape:
        -> [N, c, h, w] for c in `channels`, of `strides`. State as torchvision's: features.0
        (stem), features.i.conv of block i, features.18.
    """

    def __init__(
        self,
        in_channels: int = 3,
        output_stride: int = 32,
        wiring: str = "torchvision",
        taps: Sequence[int] | None = None,
    ) -> None:
        _check.require_choice("wiring", wiring, tuple(WIRINGS))
        last, pad_first, delay = WIRINGS[wiring]
        stem = partial(conv_bn_relu, kernel_size=3, stride=2, act=nn.ReLU6)
        layers: list[Layer] = [(stem, 32, 2)]
        steps = plan([stride for *_, stride in STAGES], output_stride, delay)
        for (expansion, width, blocks, _), (stride, rate) in zip(STAGES, steps, strict=True):
            for i in range(blocks):
                step = stride if i == 0 else 1
                block = partial(
                    InvertedResidual,
                    expansion=expansion,
                    stride=step,
                    rate=rate,
                    pad_first=pad_first,
                )
                layers.append((block, width, step))
        if last is not None:
            layers.append((partial(conv_bn_relu, kernel_size=1, act=nn.ReLU6), last, 1))
        super().__init__(in_channels, layers, taps, (1, 3, 6, 13, len(layers) - 1))


class InvertedResidual(nn.Module):
    """y = x' + norm(conv_1x1(act(norm(depthwise(act(norm(conv_1x1 x))))))), act = ReLU6.

    x' = x where the shapes agree, else zero. Without expansion the first convolution is left away.
    """

    def __init__(
        self, channels: int, width: int, expansion: int, stride: int, rate: int, pad_first: bool
    ) -> None:
        super().__init__()
        *before, project = inverted_residual(
            channels, channels * expansion, width, 3, stride, rate,
            act=nn.ReLU6, padding=0 if pad_first else rate,
        )  # fmt: skip
        self.conv = nn.Sequential(*before, *project)
        self.border = rate if pad_first else 0
        self.adds = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, width, H / stride, W / stride]."""
        y = self.conv(F.pad(x, [self.border] * 4) if self.border else x)
        return x + y if self.adds else y
