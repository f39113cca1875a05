"""Lite R-ASPP: MobileNetV3's segmentation head, a gate from pooled maps and skips.

image -> MobileNetV3 -> high [N, 960, H/16, W/16] -> 1 x 1 ----------> x -> resized -> 1 x 1 -> +
                                |-> mean -> 1 x 1 -> sigmoid --------^                          |
                     -> low [N, 40, H/8, W/8] -------------------------------------> 1 x 1 -> scores
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._base import SegmentationModel, resize
from segfast.models._layers import conv_bn_relu
from segfast.models._registry import Entry
from segfast.models.backbones import MobileNetV3
from segfast.models.backbones.mobilenet_v3 import norm
from segfast.models.layouts.lraspp import LAYOUTS


class LRASPPHead(nn.Module):
    """y = W_l low + W_h resize(relu(norm(W high)) sigma(W_s mean(high)))."""

    def __init__(self, channels: Sequence[int], num_classes: int, width: int = 128) -> None:
        super().__init__()
        low, high = channels
        self.cbr = conv_bn_relu(high, width, 1)
        gate = nn.Conv2d(high, width, 1, bias=False)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), gate, nn.Sigmoid())
        self.low_classifier = nn.Conv2d(low, num_classes, 1)
        self.high_classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """low [N, l, h, w], high [N, C, h', w'] -> [N, L, h, w]."""
        low, high = maps
        x = resize(self.cbr(high) * self.scale(high), low.shape[-2:], align_corners=False)
        return self.low_classifier(low) + self.high_classifier(x)


class RefiningHead(nn.Module):
    """mmseg's: the gate of pools 49 x 49, then refined with a map of stride 4, with one of 2.

        x = W_i (relu(norm(W high)) resize(sigma(W_s pool(high)))) + b
        x = relu(norm(W_j [resize(x), V_j low_j])), j = stride 4, stride 2
        y = W_y dropout(x)

    A map smaller than the pool, which that code refuses, is pooled whole.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, width: int = 128) -> None:
        super().__init__()
        *lows, high = channels
        widths = [32 * 2**j for j in range(len(lows))]
        self.cbr = conv_bn_relu(high, width, 1, norm=norm)
        self.scale = nn.Sequential(nn.Conv2d(high, width, 1, bias=False), nn.Sigmoid())
        self.start = nn.Conv2d(width, width, 1)
        self.skips = nn.ModuleList(
            nn.Conv2d(low, inner, 1, bias=False) for low, inner in zip(lows, widths, strict=True)
        )
        self.refine = nn.ModuleList(
            conv_bn_relu(width + inner, width, 1, norm=norm) for inner in widths
        )
        self.end = nn.Sequential(nn.Dropout2d(0.1), nn.Conv2d(width, num_classes, 1))

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """lows [N, l_j, h_j, w_j], the largest first, high [N, C, h', w'] -> [N, L, h_0, w_0]."""
        *lows, high = maps
        window = [min(49, size) for size in high.shape[-2:]]
        gate = self.scale(F.avg_pool2d(high, window, (16, 20)))
        x = self.start(self.cbr(high) * resize(gate, high.shape[-2:], align_corners=True))
        for low, skip, refine in reversed([*zip(lows, self.skips, self.refine, strict=True)]):
            x = resize(x, low.shape[-2:], align_corners=False)
            x = refine(torch.cat([x, skip(low)], 1))
        return self.end(x)


# layout -> (output stride, features that the head reads, head)
WIRINGS: dict[str, tuple[int, tuple[int, ...], Any]] = {
    "torchvision": (16, (4, 16), LRASPPHead),
    "mmseg": (8, (1, 3, 16), RefiningHead),
}


class LRASPP(SegmentationModel):
    """Lite reduced atrous spatial pyramid pooling on MobileNetV3-Large.

        y = W_l low + W_h resize(relu(norm(W high)) sigma(W_s mean(high)))

    Howard et al., "Searching for MobileNetV3", ICCV 2019, section 6.4 and figure 10, as torchvision
    has it: the image's mean, where the paper pools 49 x 49 with strides. mmseg's head pools so, and
    refines at strides 4 and 2; its convolutions with strides have TensorFlow's padding.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        output_stride: of the high map: 8, 16 or 32; None means 16, of mmseg 8.
        layout: "torchvision" or "mmseg".

    Shape:
        x [N, C, H, W] -> [N, L, H, W], resized from stride 8, of mmseg from stride 2.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import LRASPP
        >>> LRASPP(num_classes=2).eval()(torch.randn(1, 3, 65, 96)).shape
        torch.Size([1, 2, 65, 96])
    """

    rules = LAYOUTS
    wirings = WIRINGS

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        output_stride: int | None = None,
        layout: str = "torchvision",
    ) -> None:
        super().__init__(num_classes, in_channels, layout)
        published, taps, head = WIRINGS[layout]
        stride = published if output_stride is None else output_stride
        self.backbone = MobileNetV3(in_channels, stride, layout, taps)
        self.classifier = head(self.backbone.channels, num_classes)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> "out" [N, L, H / 8, W / 8], of mmseg [N, L, H / 2, W / 2]."""
        return {"out": self.classifier(self.backbone(x))}


MODELS = (
    Entry(
        "lraspp_mobilenet_v3_large",
        LRASPP,
        "Howard et al., ICCV 2019; torchvision, mmseg",
    ),
)
