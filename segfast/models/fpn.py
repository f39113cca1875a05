"""Semantic FPN: a pyramid from the top down, and what its levels say brought to stride 4.

    layer4 --> 1 x 1 ----------------> P5 --> 3 x 3, twice as large, three times -\\
    layer3 --> 1 x 1 -> + enlarged --> P4 --> 3 x 3, twice as large, twice -------- + -> scores
    layer2 --> 1 x 1 -> + enlarged --> P3 --> 3 x 3, twice as large --------------- |
    layer1 --> 1 x 1 -> + enlarged --> P2 --> 3 x 3 -------------------------------/
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._base import SegmentationModel, resize
from segfast.models._layers import conv_bn_relu
from segfast.models._registry import Entry
from segfast.models.backbones import ResNet
from segfast.models.layouts.fpn import LAYOUTS
from segfast.ops import _check


class Wiring(NamedTuple):
    """Where published networks differ.

    Attributes:
        backbone: wiring of the ResNet.
        smooth: 3 x 3 convolutions on the levels of the pyramid.
        norm: of the levels' heads.
        align_corners: of all bilinear resizes.
        dropout: of the sum; whole channels, or values.
    """

    backbone: str
    smooth: bool
    norm: Callable[[int], nn.Module]
    align_corners: bool
    dropout: Callable[[], nn.Module]


WIRINGS = {
    "mmseg": Wiring("mmseg", True, nn.BatchNorm2d, False, partial(nn.Dropout2d, 0.1)),
    "smp": Wiring(
        "torchvision", False, partial(nn.GroupNorm, 32), True, partial(nn.Dropout2d, 0.2)
    ),
}


class FPN(SegmentationModel):
    """Kirillov, Girshick, He and Dollar, "Panoptic Feature Pyramid Networks", CVPR 2019, figure 3.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        pyramid_channels, head_channels: of the pyramid, and of what is summed.
        align_corners: of all bilinear resizes; None as the layout has it.
        layout: "mmseg" (a deep stem) or "smp" (no 3 x 3 on the pyramid, group norm, aligned
            corners).

    Shape:
        x [N, C, H, W] -> [N, L, H, W], resized from stride 4.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import FPN
        >>> model = FPN(num_classes=2, depth=18).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    rules = LAYOUTS
    wirings = WIRINGS

    def __init__(
        self,
        num_classes: int = 19,
        in_channels: int = 3,
        depth: int = 50,
        pyramid_channels: int = 256,
        head_channels: int = 128,
        align_corners: bool | None = None,
        layout: str = "mmseg",
    ) -> None:
        super().__init__(num_classes, in_channels, layout, align_corners)
        _check.require_count("pyramid_channels", pyramid_channels, 1)
        _check.require_count("head_channels", head_channels, 1)
        wires = WIRINGS[layout]
        self.backbone = ResNet(depth, in_channels, wiring=wires.backbone)
        self.lateral = nn.ModuleList(
            nn.Conv2d(channels, pyramid_channels, 1) for channels in self.backbone.channels
        )
        self.smooth = nn.ModuleList(
            nn.Conv2d(pyramid_channels, pyramid_channels, 3, padding=1)
            if wires.smooth
            else nn.Identity()
            for _ in self.lateral
        )
        self.heads = nn.ModuleList(
            LevelHead(pyramid_channels, head_channels, i, wires.norm, self.align_corners)
            for i in range(4)
        )
        self.classifier = nn.Sequential(wires.dropout(), nn.Conv2d(head_channels, num_classes, 1))

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> "out" [N, L, H / 4, W / 4]."""
        levels = [conv(y) for conv, y in zip(self.lateral, self.backbone(x), strict=True)]
        for i in (3, 2, 1):
            levels[i - 1] = levels[i - 1] + F.interpolate(levels[i], levels[i - 1].shape[-2:])
        size = levels[0].shape[-2:]
        total = None
        for smooth, head, level in zip(self.smooth, self.heads, levels, strict=True):
            y = resize(head(smooth(level)), size, self.align_corners)
            total = y if total is None else total + y
        return {"out": self.classifier(total)}


class LevelHead(nn.Module):
    """relu(norm(conv_3x3)), twice as large, as often as needed: at least one convolution."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        doublings: int,
        norm: Callable[[int], nn.Module],
        align_corners: bool,
    ) -> None:
        super().__init__()
        self.doublings, self.align_corners = doublings, align_corners
        self.convs = nn.ModuleList(
            conv_bn_relu(in_channels if i == 0 else channels, channels, 3, norm=norm)
            for i in range(max(doublings, 1))
        )

    def forward(self, x: Tensor) -> Tensor:
        """x [N, P, h, w] -> [N, head_channels, h 2^doublings, w 2^doublings]."""
        for conv in self.convs:
            x = conv(x)
            if self.doublings:
                x = resize(x, (2 * x.shape[2], 2 * x.shape[3]), self.align_corners)
        return x


MODELS = tuple(
    Entry(
        f"fpn_resnet{depth}",
        FPN,
        "Kirillov et al., CVPR 2019; mmseg, segmentation_models.pytorch",
        {"depth": depth},
        num_classes=19,
    )
    for depth in (34, 50, 101)
)
