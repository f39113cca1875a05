"""FCN on a dilated ResNet, as torchvision publishes it: one 3 x 3 layer on the last map.

image -> ResNet, output stride 8 -> layer4 [N, 2048, H/8, W/8] -> head -> scores
                                    layer3 [N, 1024, H/8, W/8] -> head -> aux
"""

from __future__ import annotations

from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._layers import conv_bn_relu
from segfast.models._registry import Entry
from segfast.models.backbones import ResNet
from segfast.models.layouts.fcn_resnet import LAYOUTS


class FCNHead(nn.Sequential):
    """3 x 3 to a quarter of the channels, dropout, 1 x 1 to classes (children 0 to 4)."""

    def __init__(self, in_channels: int, num_classes: int) -> None:
        width = in_channels // 4
        scores = nn.Conv2d(width, num_classes, 1)
        super().__init__(*conv_bn_relu(in_channels, width, 3), nn.Dropout(0.1), scores)


class FCNResNet(SegmentationModel):
    """Long, Shelhamer and Darrell's fully convolutional network on a dilated ResNet.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet.
        output_stride: 8, 16 or 32.
        aux: whether there is a second head, on layer3; its loss has weight 0.5 as published.
        layout: "torchvision".
    """

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        depth: int = 50,
        output_stride: int = 8,
        aux: bool = True,
        layout: str = "torchvision",
    ) -> None:
        super().__init__(num_classes, in_channels)
        self.backbone = ResNet(depth, in_channels, output_stride, wiring=layout)
        *_, third, fourth = self.backbone.channels
        self.classifier = FCNHead(fourth, num_classes)
        self.aux_classifier = FCNHead(third, num_classes) if aux else None

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> maps [N, L, h, w]."""
        *_, third, fourth = self.backbone(x)
        maps = {"out": self.classifier(fourth)}
        if aux and self.aux_classifier is not None:
            maps["aux"] = self.aux_classifier(third)
        return maps


MODELS = tuple(
    Entry(
        f"fcn_resnet{depth}",
        FCNResNet,
        "Long, Shelhamer and Darrell, CVPR 2015; torchvision",
        LAYOUTS,
        {"depth": depth},
        metrics={"COCO val 2017, VOC labels, mean IU (torchvision)": iou},
    )
    for depth, iou in ((50, 60.5), (101, 63.7))
)
