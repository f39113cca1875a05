"""DeepLab's version 3+: version 3's pyramid, and a decoder that joins a map of stride 4.

image -> backbone -> last map [N, C, h, w] -> pyramid -> [N, 256, h, w] -> resized -+
                  -> map of stride 4 [N, c, H/4, W/4] -> 1 x 1 to 48 ---------------+-> beside
      each other [N, 304, H/4, W/4] -> 3 x 3 layers -> 1 x 1 -> scores [N, L, H/4, W/4]
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from segfast.models import _deeplab
from segfast.models._base import resize
from segfast.models._keys import Rules
from segfast.models._layers import conv_bn_relu, separable_bn_relu
from segfast.models._registry import Entry
from segfast.models.backbones import RESNETS
from segfast.models.layouts.deeplabv3plus import layouts


@dataclasses.dataclass(frozen=True)
class Wiring(_deeplab.Wiring):
    """Where published code differs, beside the pyramid.

    Attributes:
        joined: channels of the stride 4 map; None for 3/16 of those it has.
        separable: the 3 x 3 layers are separable; "act" with act between their parts.
        dropout: behind each 3 x 3 layer of the decoder, of the pyramid's width.
    """

    joined: int | None = 48
    separable: bool | str = False
    dropout: tuple[float, ...] = (0.0, 0.0)


WIRINGS = {
    "jfzhang": Wiring(16, (1, 2, 4), dropout=(0.5, 0.1), align_corners=True),
    "deeplab-pytorch": Wiring(16, (1, 2, 4), rates=(6, 12, 18), aspp={"dropout": 0.0}),
    "mmseg": Wiring(
        output_stride=8,
        width=None,
        joined=None,
        aspp={"dropout": 0.0, "pooled_first": True, "projection": 3},
        separable="act",
        dropout=(0.0, 0.1),
        aux=True,
    ),
    "smp": Wiring(
        16, rates=(12, 24, 36), refine=True, separable=True, dropout=(0.0,), align_corners=True
    ),
}


class DeepLabV3Plus(_deeplab.PyramidNet):
    """Chen et al., "Encoder-Decoder with Atrous Separable Convolution for Semantic Image
    Segmentation", ECCV 2018, figure 2.

        y = W f_2(f_1 [resize(ASPP(last map)), act(W_l low map)])

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        backbone: "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "xception" or
            "mobilenet_v2".
        output_stride: of the last map: 8, 16 or 32; None as the layout has it.
        multi_grid: unit rates of a residual network's last stage; None for the layout's. Those of
            "mmseg" are rates themselves.
        rates: of the pyramid; None for the layout's.
        image_pooling: whether the pyramid has the branch of the mean.
        aux: whether there is a second head, on the third stage; None as the layout has it. Its
            loss has weight 0.4 as mmseg trains it.
        align_corners: of all resizes; None as the layout has it.
        layout: "jfzhang", "deeplab-pytorch", "mmseg" or "smp" (these with separable convolutions);
            None for the first that the backbone has: ResNet-18 and 34 have "smp" and "mmseg",
            Xception "jfzhang", MobileNetV2 "jfzhang" and "smp".

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are "aux". With image pooling N > 1 in
        training.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import DeepLabV3Plus
        >>> model = DeepLabV3Plus(num_classes=2, backbone="resnet18", layout="smp").eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    backbones = (*(f"resnet{depth}" for depth in RESNETS), "xception", "mobilenet_v2")
    wirings = WIRINGS

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        backbone: str = "resnet101",
        output_stride: int | None = None,
        multi_grid: Sequence[int] | None = None,
        rates: Sequence[int] | None = None,
        image_pooling: bool = True,
        aux: bool | None = None,
        align_corners: bool | None = None,
        layout: str | None = None,
    ) -> None:
        super().__init__(
            num_classes, in_channels, layout, backbone, output_stride, multi_grid, rates,
            align_corners,
        )  # fmt: skip
        wires, width, (low, *_) = WIRINGS[self.layout], self.width, self.channels
        joined = wires.joined or 3 * low // 16

        def layer(channels: int, dropout: float = 0.0) -> nn.Sequential:
            if wires.separable:
                block = separable_bn_relu(channels, width, 3, act=wires.separable == "act")
            else:
                block = conv_bn_relu(channels, width, 3)
            return block.append(nn.Dropout(dropout)) if dropout else block

        self.aspp = self.pyramid(image_pooling, wires.separable)
        self.refine = layer(width) if wires.refine else None
        self.reduce = conv_bn_relu(low, joined, 1)
        self.decoder = nn.Sequential(*map(layer, (width + joined, width), wires.dropout))
        self.classifier = nn.Conv2d(width, num_classes, 1)
        self.aux_classifier = self.auxiliary(wires.aux if aux is None else aux)

    @classmethod
    def layouts_of(cls, variant: tuple[str, int]) -> Mapping[str, Rules]:
        """On a backbone, with so many rates."""
        return layouts(*variant)

    def main(self, low: Tensor, last: Tensor, aux: bool) -> dict[str, Tensor]:
        """Maps [N, c, H/4, W/4] and [N, C, h, w] -> "out" [N, L, H/4, W/4]."""
        y = self.aspp(last)
        if self.refine is not None:
            y = self.refine(y)
        y = resize(y, low.shape[-2:], self.align_corners)
        y = self.decoder(torch.cat([y, self.reduce(low)], 1))
        return {"out": self.classifier(y)}


SOURCE = "Chen et al., ECCV 2018; jfzhang95/pytorch-deeplab-xception, deeplab-pytorch, mmseg, smp"
MODELS = (
    *(
        Entry(f"deeplabv3plus_resnet{depth}", DeepLabV3Plus, SOURCE, {"backbone": f"resnet{depth}"})
        for depth in (18, 34, 50, 101)
    ),
    Entry(
        "deeplabv3plus_mobilenet_v2",
        DeepLabV3Plus,
        "Chen et al., ECCV 2018, on Sandler et al., CVPR 2018; jfzhang95, smp",
        {"backbone": "mobilenet_v2"},
    ),
    Entry(
        "deeplabv3plus_xception",
        DeepLabV3Plus,
        "Chen et al., ECCV 2018; jfzhang95/pytorch-deeplab-xception",
        {"backbone": "xception"},
        metrics={
            "VOC 2012 val, mean IU, output stride 16 (TensorFlow's network)": 82.20,
            "VOC 2012 test, mean IU (TensorFlow's network)": 87.8,
        },
    ),
)
