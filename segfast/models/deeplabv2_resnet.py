"""DeepLab's second version on a ResNet: 3 x 3 classifiers at four rates, summed.

image -> ResNet, output stride 8 -> [N, 2048, H/8, W/8] -> 3 x 3 at 6, 12, 18, 24 -> sum -> scores

and, with several scales, the maximum of the scores of the image at each of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._base import SegmentationModel, resize
from segfast.models._layers import gaussian, image_scales
from segfast.models._registry import Entry
from segfast.models.backbones import ResNet
from segfast.models.layouts.deeplabv2_resnet import LAYOUTS
from segfast.nn import ASPPv2


class DeepLabV2ResNet(SegmentationModel):
    """Chen et al., "DeepLab", TPAMI 2018, section 4.1: the pyramid on a dilated ResNet, and the
    maximum over scales of the image.

        y = max_s resize(f(resize(x, s))), f = sum_b (W_b *_{r_b} features + b_b)

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        rates: of the classifiers: "L" (6, 12, 18, 24), "S" (2, 4, 8, 12), or the rates ((12,) is
            LargeFOV); None for one 1 x 1 classifier instead.
        output_stride: 8, 16 or 32.
        scales: of the image; scores are resized to those of the first. The paper has
            (1, 0.75, 0.5), and a loss for each scale beside that of the maximum.
        align_corners: of all bilinear resizes.
        layout: "deeplab-pytorch".

    Shape:
        x [N, C, H, W] -> [N, L, H, W]. With several scales the auxiliary scores are those of each:
        "scale_1", "scale_0.75", ...

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import DeepLabV2ResNet
        >>> model = DeepLabV2ResNet(num_classes=2, depth=18, scales=(1, 0.75, 0.5)).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    rules = LAYOUTS

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        depth: int = 101,
        rates: str | Sequence[int] | None = "L",
        output_stride: int = 8,
        scales: Sequence[float] = (1,),
        align_corners: bool = False,
        layout: str = "deeplab-pytorch",
    ) -> None:
        super().__init__(num_classes, in_channels, layout, align_corners)
        self.scales = image_scales(scales)
        self.backbone = ResNet(depth, in_channels, output_stride, wiring=layout)
        features = self.backbone.channels[-1]
        self.classifier: nn.Module = (
            gaussian(nn.Conv2d(features, num_classes, 1))
            if rates is None
            else ASPPv2(features, num_classes, rates)
        )

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> maps [N, L, h, w], those of the smaller scales smaller."""
        maps = {f"scale_{s:g}": self._of_scale(x, s) for s in self.scales}
        first, *others = maps.values()
        same = [first, *(resize(y, first.shape[-2:], self.align_corners) for y in others)]
        out = torch.stack(same).amax(0) if others else first
        return {"out": out, **maps} if aux and others else {"out": out}

    def _of_scale(self, x: Tensor, scale: float) -> Tensor:
        if scale != 1:
            x = F.interpolate(
                x, scale_factor=scale, mode="bilinear", align_corners=self.align_corners
            )
        return self.classifier(self.backbone(x)[-1])


SOURCE = "Chen et al., TPAMI 2018; kazuto1011/deeplab-pytorch"
MODELS = (
    Entry(
        "deeplabv1_resnet101",
        DeepLabV2ResNet,
        "Chen et al., ICLR 2015, its VGG16 replaced; kazuto1011/deeplab-pytorch",
        {"rates": None},
    ),
    Entry("deeplabv2_resnet101", DeepLabV2ResNet, SOURCE),
    Entry(
        "deeplabv2_resnet101_msc",
        DeepLabV2ResNet,
        SOURCE,
        {"scales": (1, 0.75, 0.5)},
        metrics={"VOC 2012 val, mean IU": 76.35, "VOC 2012 val, mean IU with CRF": 77.69},
    ),
)
