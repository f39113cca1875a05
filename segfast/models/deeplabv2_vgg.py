"""DeepLab v2 on VGG16: four branches of dilated fully connected layers, summed.

image -> VGG16, output stride 8 -> [N, 512, H/8, W/8]
      -> fc6 at rate r_b -> fc7 -> fc8, b = 1 to 4 -> sum -> scores [N, L, H/8, W/8]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._placement import spread
from segfast.models._preprocessing import DEEPLAB
from segfast.models._registry import Entry
from segfast.models.backbones import DeepLabVGG16
from segfast.models.deeplabv1 import branch
from segfast.models.layouts.deeplabv2_vgg import LAYOUTS
from segfast.nn._shared import chosen
from segfast.nn.aspp import ASPP_RATES


class DeepLabV2VGG16(SegmentationModel):
    """Chen et al., "DeepLab", TPAMI 2018, section 3.2 and figure 7 (b): atrous spatial pyramid
    pooling, y = sum_b fc8_b(fc7_b(fc6_b x)), on VGG16.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        rates: of the fc6: "L" (6, 12, 18, 24), "S" (2, 4, 8, 12), or the rates.
        layout: "caffe".

    Shape:
        x [N, C, H, W] -> [N, L, H, W], resized from output stride 8.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import DeepLabV2VGG16
        >>> model = DeepLabV2VGG16(num_classes=2, rates="S").eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    rules = LAYOUTS

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        rates: str | Sequence[int] = "L",
        layout: str = "caffe",
    ) -> None:
        super().__init__(num_classes, in_channels, layout)
        self.backbone = DeepLabVGG16(in_channels)
        self.branches = nn.ModuleDict()
        for number, rate in enumerate(chosen("rates", rates, ASPP_RATES), 1):
            self.branches[str(number)] = branch(3, rate, 1024, num_classes)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> [N, L, H/8, W/8]."""
        *_, features = self.backbone(x)
        return {"out": sum(branch(features) for branch in self.branches.values())}

    def at_input_size(self, y: Tensor, size: Any) -> Tensor:
        """Bilinear between the pixels 8 i that the scores are of."""
        return spread(y, 8, size)


MODELS = tuple(
    Entry(
        f"deeplabv2_vgg16_aspp_{rates.lower()}",
        DeepLabV2VGG16,
        "Chen et al., TPAMI 2018; their Caffe network",
        {"rates": rates},
        metrics={"VOC 2012 val, mean IU": iou, "VOC 2012 val, mean IU with CRF": with_crf},
        images={"caffe": DEEPLAB},
    )
    for rates, iou, with_crf in (("L", 68.96, 71.57), ("S", 66.98, 69.73))
)
