"""FCN on a dilated ResNet: a head of one to three 3 x 3 layers on the last map.

image -> ResNet, output stride 8 -> layer4 [N, 2048, H/8, W/8] -> head -> scores
                                    layer3 [N, 1024, H/8, W/8] -> head -> aux
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segfast.models._layers import FCNHead, conv_bn_relu
from segfast.models._registry import Entry
from segfast.models._supervised import DeeplySupervised
from segfast.models.backbones import ResNet
from segfast.models.layouts.fcn_resnet import LAYOUTS


class FCNConcatHead(nn.Module):
    """mmseg's: y = conv_3x3 [x, conv_3x3 conv_3x3 x] with a quarter of the channels, then 1 x 1.

    x [N, C, H, W] -> [N, L, H, W]
    """

    def __init__(self, in_channels: int, num_classes: int) -> None:
        super().__init__()
        width = in_channels // 4
        first, second = conv_bn_relu(in_channels, width, 3), conv_bn_relu(width, width, 3)
        self.convs = nn.Sequential(first, second)
        self.fuse = conv_bn_relu(in_channels + width, width, 3)
        self.scores = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(width, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        return self.scores(self.fuse(torch.cat([x, self.convs(x)], 1)))


HEADS: dict[str, type[nn.Module]] = {"torchvision": FCNHead, "mmseg": FCNConcatHead}


class FCNResNet(DeeplySupervised):
    """Long, Shelhamer and Darrell's fully convolutional network on a dilated ResNet.

        scores = W relu(norm(conv_3x3 layer4(x)))

    bilinearly resized from output stride 8.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        output_stride: 8, 16 or 32.
        aux: whether there is a second head, on layer3; its loss has weight 0.5 as torchvision
            trains it, 0.4 as mmseg does.
        align_corners: of the final resize.
        layout: "torchvision", or "mmseg": a deep stem, and three 3 x 3 layers of which the last
            sees the map and the second.

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are "aux".

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import FCNResNet
        >>> model = FCNResNet(num_classes=2, depth=18).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    rules = LAYOUTS
    wirings = HEADS

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        depth: int = 50,
        output_stride: int = 8,
        aux: bool = True,
        align_corners: bool = False,
        layout: str = "torchvision",
    ) -> None:
        super().__init__(num_classes, in_channels, layout, align_corners)
        self.backbone = ResNet(depth, in_channels, output_stride, wiring=layout)
        self.classifier = HEADS[layout](self.backbone.channels[-1], num_classes)
        self.aux_classifier = self.auxiliary(aux)

    def main(self, low: Tensor, last: Tensor, aux: bool) -> dict[str, Tensor]:
        """The last map [N, C, h, w] -> "out" [N, L, h, w]."""
        return {"out": self.classifier(last)}


MODELS = tuple(
    Entry(
        f"fcn_resnet{depth}",
        FCNResNet,
        "Long, Shelhamer and Darrell, CVPR 2015; torchvision, mmseg",
        {"depth": depth},
        metrics={"COCO val 2017, VOC labels, mean IU (torchvision)": iou},
    )
    for depth, iou in ((50, 60.5), (101, 63.7))
)
