"""U-Net's decoder on a ResNet, as segmentation_models.pytorch has it.

image -> stem -> layer1 -> layer2 -> layer3 -> layer4
           |       |         |         |         |
scores <- up <--- up <----- up <----- up <----- up     twice as large, beside the skip, 2 conv
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._layers import conv_bn_relu
from segfast.models._registry import Entry
from segfast.models.backbones import ResNet
from segfast.models.layouts.unet_resnet import LAYOUTS
from segfast.ops import _check


class UNetResNet(SegmentationModel):
    """Ronneberger et al.'s decoder (MICCAI 2015) on a ResNet, with nearest-neighbour enlarging.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        widths: channels of the five decoder levels, from the bottom.
        layout: "smp".

    Shape:
        x [N, C, H, W] -> [N, L, H, W], any size.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import UNetResNet
        >>> model = UNetResNet(num_classes=2, depth=18).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    rules = LAYOUTS

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        depth: int = 34,
        widths: Sequence[int] = (256, 128, 64, 32, 16),
        layout: str = "smp",
    ) -> None:
        super().__init__(num_classes, in_channels, layout)
        widths = _check.require_counts("widths", widths)
        if len(widths) != 5:
            raise ValueError(f"widths must be five integers, got {widths}")
        self.backbone = ResNet(depth, in_channels)
        *skips, below = 64, *self.backbone.channels
        self.blocks = nn.ModuleList()
        for skip, width in zip((*reversed(skips), 0), widths, strict=True):
            first = conv_bn_relu(below + skip, width, 3)
            self.blocks.append(nn.Sequential(first, conv_bn_relu(width, width, 3)))
            below = width
        self.classifier = nn.Conv2d(below, num_classes, 3, padding=1)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> "out" [N, L, H, W]."""
        stem = self.backbone.enter(x)
        *skips, y = stem, *self.backbone.go_on(stem)
        for block, skip in zip(self.blocks, (*reversed(skips), None), strict=True):
            larger = F.interpolate(y, (x if skip is None else skip).shape[-2:], mode="nearest")
            y = block(larger if skip is None else torch.cat([larger, skip], 1))
        return {"out": self.classifier(y)}


MODELS = tuple(
    Entry(
        f"unet_resnet{depth}",
        UNetResNet,
        "Ronneberger et al., MICCAI 2015; segmentation_models.pytorch",
        {"depth": depth},
    )
    for depth in (34, 50)
)
