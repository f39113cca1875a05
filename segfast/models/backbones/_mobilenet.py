"""What MobileNetV2 and MobileNetV3 share: a chain of inverted residuals, maps of some of them."""

from __future__ import annotations

import itertools
import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._layers import conv_bn_relu
from segfast.models.backbones._base import Backbone

# What makes a layer of the channels before and behind it; those behind it; its stride.
Layer = tuple[Callable[[int, int], nn.Module], int, int]


class MobileNet(Backbone):
    """A chain of layers: x [N, C, H, W] -> the maps behind some of them.

    Args:
        in_channels: C.
        layers: the chain.
        taps: whose maps are wanted; None means `published`.
        published: the last of each stride, 2 to 32.
    """

    def __init__(
        self,
        in_channels: int,
        layers: Sequence[Layer],
        taps: Sequence[int] | None,
        published: Sequence[int],
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        taps = published if taps is None else taps
        for tap in taps:
            if not 0 <= tap < len(layers):
                raise ValueError(f"taps must be among 0..{len(layers) - 1}, got {tap}")
        widths = [in_channels, *(width for _, width, _ in layers)]
        self.features = nn.Sequential(
            *(make(c, width) for c, (make, width, _) in zip(widths, layers, strict=False))
        )
        self.taps = tuple(sorted(taps))
        self.channels = tuple(widths[tap + 1] for tap in self.taps)
        reached = list(itertools.accumulate((stride for *_, stride in layers), operator.mul))
        self.strides = tuple(reached[tap] for tap in self.taps)

    def maps(self, x: Tensor) -> list[Tensor]:
        """x [N, C, H, W] -> the maps of `taps`, in the order of the chain."""
        maps = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in self.taps:
                maps.append(x)
        return maps


def plan(strides: Sequence[int], output_stride: int, delay: bool = False) -> list[tuple[int, int]]:
    """(stride, atrous rate) of stages behind a stem of stride 2.

    A stage that would exceed `output_stride` loses its stride; it and all behind it have their
    rates multiplied by it, with `delay` only those behind it.

    Example:
        >>> from segfast.models.backbones._mobilenet import plan
        >>> plan((1, 2, 2, 2, 1, 2, 1), 16)[-3:]
        [(1, 1), (1, 2), (1, 2)]
        >>> plan((1, 2, 2, 2, 1, 2, 1), 16, delay=True)[-3:]
        [(1, 1), (1, 1), (1, 2)]
    """
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride!r}")
    reached, rate, found = 2, 1, []
    for stride in strides:
        before = rate
        if reached * stride > output_stride:
            rate, stride = rate * stride, 1
        reached *= stride
        found.append((stride, before if delay else rate))
    return found


def inverted_residual(
    channels: int,
    inner: int,
    width: int,
    kernel_size: int,
    stride: int,
    rate: int,
    *,
    act: Callable[..., nn.Module],
    norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
    gate: nn.Module | None = None,
    padding: int | str | None = None,
) -> list[Any]:
    """Its layers: expansion (where it expands), depthwise convolution, gate (if any), projection.

    x [N, channels, H, W] -> [N, inner, H, W] -> [N, inner, h, w] -> [N, width, h, w]
    """
    layers: list[Any] = []
    if inner != channels:
        layers.append(conv_bn_relu(channels, inner, 1, norm=norm, act=act))
    layers.append(
        padded(
            inner, inner, kernel_size, stride,
            norm=norm, act=act, dilation=rate, groups=inner, padding=padding,
        )
    )  # fmt: skip
    if gate is not None:
        layers.append(gate)
    return [*layers, conv_bn_relu(inner, width, 1, norm=norm, act=None)]


def padded(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int,
    padding: int | str | None = None,
    **options: Any,
) -> nn.Sequential:
    """conv_bn_relu; `padding` "same" is TensorFlow's, with strides: more behind than before."""
    if padding != "same":
        return conv_bn_relu(
            in_channels, out_channels, kernel_size, stride, padding=padding, **options
        )
    layer = conv_bn_relu(in_channels, out_channels, kernel_size, stride, padding=0, **options)
    pad = SamePad(options.get("dilation", 1) * (kernel_size - 1) + 1, stride)
    return nn.Sequential(OrderedDict(pad=pad, **layer._modules))


class SamePad(nn.Module):
    """Zeros for ceil(H / stride) positions of a kernel: half of them before, the odd one behind."""

    def __init__(self, extent: int, stride: int) -> None:
        super().__init__()
        self.extent, self.stride = extent, stride

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C, H', W']."""
        border: list[int] = []
        for size in (x.shape[3], x.shape[2]):
            positions = -(-size // self.stride)
            zeros = max((positions - 1) * self.stride + self.extent - size, 0)
            border += [zeros // 2, zeros - zeros // 2]
        return F.pad(x, border)
