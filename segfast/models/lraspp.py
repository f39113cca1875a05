"""Lite R-ASPP: MobileNetV3's segmentation head, a gate from the image's mean and one skip.

image -> MobileNetV3 -> high [N, 960, H/16, W/16] -> 1 x 1 ----------> x -> resized -> 1 x 1 -> +
                                |-> mean -> 1 x 1 -> sigmoid --------^                          |
                     -> low [N, 40, H/8, W/8] -------------------------------------> 1 x 1 -> scores
"""

from __future__ import annotations

from torch import Tensor, nn

from segfast.models._base import SegmentationModel, resize
from segfast.models._layers import conv_bn_relu
from segfast.models._registry import Entry
from segfast.models.backbones import MobileNetV3
from segfast.models.layouts.lraspp import LAYOUTS


class LRASPPHead(nn.Module):
    """y = W_l low + W_h resize(act(norm(W high)) sigma(W_s mean(high)))."""

    def __init__(self, low: int, high: int, num_classes: int, width: int = 128) -> None:
        super().__init__()
        self.cbr = conv_bn_relu(high, width, 1)
        gate = nn.Conv2d(high, width, 1, bias=False)
        self.scale = nn.Sequential(nn.AdaptiveAvgPool2d(1), gate, nn.Sigmoid())
        self.low_classifier = nn.Conv2d(low, num_classes, 1)
        self.high_classifier = nn.Conv2d(width, num_classes, 1)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        """low [N, l, h, w], high [N, C, h', w'] -> [N, L, h, w]."""
        x = resize(self.cbr(high) * self.scale(high), low.shape[-2:], align_corners=False)
        return self.low_classifier(low) + self.high_classifier(x)


class LRASPP(SegmentationModel):
    """Lite reduced atrous spatial pyramid pooling on MobileNetV3-Large.

        y = W_l low + W_h resize(relu(norm(W high)) sigma(W_s mean(high)))

    Howard et al., "Searching for MobileNetV3", ICCV 2019, section 6.4 and figure 10, as torchvision
    has it: the image's mean, where the paper pools 49 x 49 with strides.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        output_stride: of the high map: 8, 16 or 32. The low map has 8.
        layout: "torchvision".

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> LRASPP(num_classes=2).eval()(torch.randn(1, 3, 65, 96)).shape
        torch.Size([1, 2, 65, 96])
    """

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        output_stride: int = 16,
        layout: str = "torchvision",
    ) -> None:
        super().__init__(num_classes, in_channels)
        del layout  # there is one wiring
        self.backbone = MobileNetV3(in_channels, output_stride, taps=(4, 16))
        low, high = self.backbone.channels
        self.classifier = LRASPPHead(low, high, num_classes)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> "out" [N, L, H / 8, W / 8]."""
        low, high = self.backbone(x)
        return {"out": self.classifier(low, high)}


MODELS = (
    Entry(
        "lraspp_mobilenet_v3_large",
        LRASPP,
        "Howard et al., ICCV 2019; torchvision",
        LAYOUTS,
    ),
)
