"""MobileNetV3-Large: inverted residuals with gates and hard swish; dilated for segmentation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._layers import conv_bn_relu
from segfast.models.backbones._mobilenet import Layer, MobileNet, inverted_residual, padded, plan
from segfast.ops import _check

# (kernel, expanded channels, channels, gate, hard swish, stride). Howard et al., "Searching for
# MobileNetV3", ICCV 2019, table 1.
BLOCKS = (
    (3, 16, 16, False, False, 1),
    (3, 64, 24, False, False, 2),
    (3, 72, 24, False, False, 1),
    (5, 72, 40, True, False, 2),
    (5, 120, 40, True, False, 1),
    (5, 120, 40, True, False, 1),
    (3, 240, 80, False, True, 2),
    (3, 200, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 184, 80, False, True, 1),
    (3, 480, 112, True, True, 1),
    (3, 672, 112, True, True, 1),
    (5, 672, 160, True, True, 2),
    (5, 960, 160, True, True, 1),
    (5, 960, 160, True, True, 1),
)

# The padding of convolutions with a stride: None is the same on both sides.
WIRINGS = {"torchvision": None, "mmseg": "same"}

norm = partial(nn.BatchNorm2d, eps=1e-3, momentum=1e-2)


class MobileNetV3(MobileNet):
    """Stem, fifteen inverted residuals, 1 x 1: x [N, C, H, W] -> maps of some features.

    Args:
        in_channels: C.
        output_stride: 8 (mmseg's), 16 (torchvision's `dilated`) or 32: blocks beyond are dilated.
        wiring: of "torchvision" or "mmseg".
        taps: the features whose maps are returned; None means the last of each stride, 2 to 32.

    Shape:
        -> [N, c, h, w] for c in `channels`, of `strides`. State as torchvision's: features.0
        (stem), features.i.block of block i, features.16.
    """

    def __init__(
        self,
        in_channels: int = 3,
        output_stride: int = 32,
        wiring: str = "torchvision",
        taps: Sequence[int] | None = None,
    ) -> None:
        _check.require_choice("wiring", wiring, tuple(WIRINGS))
        strided = WIRINGS[wiring]
        unit: dict[str, Any] = {"norm": norm, "act": nn.Hardswish}
        stem = partial(padded, kernel_size=3, stride=2, padding=strided, **unit)
        layers: list[Layer] = [(stem, 16, 2)]
        steps = plan([stride for *_, stride in BLOCKS], output_stride)
        for (*form, gated, swish, _), (stride, rate) in zip(BLOCKS, steps, strict=True):
            kernel_size, inner, width = form
            block = partial(
                InvertedResidual,
                inner=inner,
                kernel_size=kernel_size,
                stride=stride,
                rate=rate,
                act=nn.Hardswish if swish else nn.ReLU,
                gated=gated,
                padding=None if stride == 1 else strided,
            )
            layers.append((block, width, stride))
        last = partial(conv_bn_relu, kernel_size=1, **unit)
        layers.append((last, 6 * BLOCKS[-1][2], 1))
        super().__init__(in_channels, layers, taps, (1, 3, 6, 12, 16))
        self.wiring = wiring


class InvertedResidual(nn.Module):
    """y = x' + norm(conv_1x1(gate(act(norm(depthwise(act(norm(conv_1x1 x)))))))).

    x' = x where the shapes agree, else zero. Without expansion the first convolution is left away.
    """

    def __init__(
        self,
        channels: int,
        width: int,
        inner: int,
        kernel_size: int,
        stride: int,
        rate: int,
        act: Callable[..., nn.Module],
        gated: bool,
        padding: str | None,
    ) -> None:
        super().__init__()
        layers = inverted_residual(
            channels, inner, width, kernel_size, stride, rate,
            act=act, norm=norm, gate=SqueezeExcitation(inner) if gated else None, padding=padding,
        )  # fmt: skip
        self.block = nn.Sequential(*layers)
        self.adds = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, width, H / stride, W / stride]."""
        return x + self.block(x) if self.adds else self.block(x)


class SqueezeExcitation(nn.Module):
    """y_c = g_c x_c, g = sigma(W_2 relu(W_1 mean(x))) with a hard sigmoid."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = divisible(channels // 4)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> the same shape."""
        z = self.fc1(x.mean((2, 3), keepdim=True)).relu_()  # [N, C', 1, 1]
        return x * F.hardsigmoid(self.fc2(z))


def divisible(count: int, by: int = 8) -> int:
    """The nearest multiple, at least one of them and at least 90 % of the count.

    Example:
        >>> from segfast.models.backbones.mobilenet_v3 import divisible
        >>> divisible(18), divisible(30)
        (24, 32)
    """
    found = max(by, (count + by // 2) // by * by)
    return found + by if 10 * found < 9 * count else found
