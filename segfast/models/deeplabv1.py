"""DeepLab's first version: VGG16 at output stride 8, its fully connected layers dilated.

    image -> VGG16, pool4 and pool5 of stride 1, conv5 at rate 2 -> [N, 512, H/8, W/8]
          -> fc6 (dilated) -> fc7 -> fc8 -> scores [N, L, H/8, W/8]

With multi-scale features (MSc) five small networks, on the image and on pool1 to pool4, add their
scores at the size of the image.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, NamedTuple

from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._layers import conv2d, gaussian
from segfast.models._placement import spread
from segfast.models._preprocessing import DEEPLAB
from segfast.models._registry import Entry
from segfast.models.backbones import DeepLabVGG16, fully_connected
from segfast.models.layouts.deeplabv1 import LAYOUTS
from segfast.ops import _check


class FieldOfView(NamedTuple):
    """fc6, and what is before it.

    Attributes:
        kernel_size, rate, width: of fc6; fc7 has its width.
        aligned: pools keep the positions 8 i; else score i is that of pixel 8 i + 1.
        smooth: a 3 x 3 average follows pool5.
    """

    kernel_size: int
    rate: int
    width: int
    aligned: bool = False
    smooth: bool = False


# Chen et al., ICLR 2015, table 2.
FIELDS_OF_VIEW = {
    "128": FieldOfView(4, 4, 4096),
    "4x4": FieldOfView(4, 8, 4096),
    "7x7": FieldOfView(7, 4, 4096),
    "large": FieldOfView(3, 12, 1024, aligned=True, smooth=True),
}


class DeepLabV1(SegmentationModel):
    """Chen et al., "Semantic Image Segmentation with Deep Convolutional Nets and Fully Connected
    CRFs", ICLR 2015; its CRF is `segfast.nn.DenseCRF`, on the scores at input size.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        field_of_view: "large" (LargeFOV: 3 x 3 at rate 12, 1024 channels), "7x7" (at rate 4),
            "4x4" (at rate 8) or "128" (4 x 4 at rate 4), these with 4096 channels.
        multi_scale: MSc, section 4.2.
        layout: "caffe".

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; `scores` are at output stride 8, with `multi_scale` at the
        size of the image.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import DeepLabV1
        >>> model = DeepLabV1(num_classes=2).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    rules = LAYOUTS

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        field_of_view: str = "large",
        multi_scale: bool = False,
        layout: str = "caffe",
    ) -> None:
        super().__init__(num_classes, in_channels, layout)
        _check.require_choice("field_of_view", field_of_view, tuple(FIELDS_OF_VIEW))
        _check.require_bool("multi_scale", multi_scale)
        fc6 = FIELDS_OF_VIEW[field_of_view]
        aligned = fc6.aligned or multi_scale
        self.first = 0 if aligned else 1
        self.backbone = DeepLabVGG16(in_channels, pool_size=3 if aligned else 2)
        self.least = self.backbone.least
        self.pool5a = nn.AvgPool2d(3, 1, padding=1) if fc6.smooth else nn.Identity()
        self.classifier = branch(fc6.kernel_size, fc6.rate, fc6.width, num_classes)
        self.multi_scale = nn.ModuleDict() if multi_scale else None
        if self.multi_scale is not None:
            for name, channels in _sources(in_channels).items():
                self.multi_scale[name] = scale(channels, num_classes)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> [N, L, H/8, W/8], or [N, L, H, W] with multi-scale features."""
        maps = self.backbone(x)
        y = self.classifier(self.pool5a(maps[-1]))
        if self.multi_scale is not None:
            y = self.at_input_size(y, x.shape[-2:])
            parts = zip([x, *maps[:4]], STRIDES, self.multi_scale.values(), strict=True)
            for features, stride, part in parts:
                y = y + spread(part(features), stride, x.shape[-2:])
        return {"out": y}

    def at_input_size(self, y: Tensor, size: Any) -> Tensor:
        """Bilinear between the pixels that the scores are of."""
        return y if y.shape[-2:] == size else spread(y, 8, size, self.first)


STRIDES = (1, 2, 4, 8, 8)  # of the image and pool1 to pool4


def _sources(in_channels: int) -> dict[str, int]:
    """What multi-scale features are taken of, and the channels there."""
    return {"data": in_channels, "pool1": 64, "pool2": 128, "pool3": 256, "pool4": 512}


def branch(kernel_size: int, rate: int, width: int, num_classes: int) -> nn.Sequential:
    """fc6 at a rate, fc7 and fc8, which keep the size: [N, 512, h, w] -> [N, L, h, w]."""
    padding = rate * (kernel_size - 1) // 2
    layers = fully_connected(512, width, kernel_size, dilation=rate, padding=padding)
    layers.add_module("fc8", gaussian(nn.Conv2d(width, num_classes, 1)))
    return layers


def scale(channels: int, num_classes: int) -> nn.Sequential:
    """Scores of one map of multi-scale features: 3 x 3 and 1 x 1 to 128 channels, 1 x 1."""
    return nn.Sequential(
        OrderedDict[str, nn.Module](
            conv=conv2d(channels, 128, 3, bias=True),
            relu=nn.ReLU(inplace=True),
            drop=nn.Dropout(0.5),
            fc=nn.Conv2d(128, 128, 1),
            fc_relu=nn.ReLU(inplace=True),
            fc_drop=nn.Dropout(0.5),
            ms=nn.Conv2d(128, num_classes, 1),
        )
    )


SOURCE = "Chen et al., ICLR 2015; their Caffe networks"
VAL, CRF = "VOC 2012 val, mean IU", "VOC 2012 val, mean IU with CRF"
TEST = "VOC 2012 test, mean IU with CRF"

MODELS = tuple(
    Entry(name, DeepLabV1, SOURCE, options, metrics=metrics, images={"caffe": DEEPLAB})
    for name, options, metrics in (
        ("deeplabv1", {"field_of_view": "128"}, {VAL: 59.80, CRF: 63.74, TEST: 66.4}),
        ("deeplabv1_4x4", {"field_of_view": "4x4"}, {CRF: 67.14}),
        ("deeplabv1_7x7", {"field_of_view": "7x7"}, {VAL: 64.38, CRF: 67.64, TEST: 70.3}),
        ("deeplabv1_largefov", {}, {VAL: 62.25, CRF: 67.64, TEST: 70.3}),
        (
            "deeplabv1_msc",
            {"field_of_view": "128", "multi_scale": True},
            {VAL: 61.30, CRF: 65.21, TEST: 67.1},
        ),
        (
            "deeplabv1_msc_largefov",
            {"multi_scale": True},
            {VAL: 64.21, CRF: 68.70, TEST: 71.6},
        ),
    )
)
