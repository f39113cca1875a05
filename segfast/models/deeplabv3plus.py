"""DeepLab's version 3+: version 3's pyramid, and a decoder that joins a map of stride 4.

image -> backbone -> last map [N, C, h, w] -> pyramid -> [N, 256, h, w] -> resized -+
                  -> map of stride 4 [N, c, H/4, W/4] -> 1 x 1 to 48 ---------------+-> beside
      each other [N, 304, H/4, W/4] -> 3 x 3 layers -> 1 x 1 -> scores [N, L, H/4, W/4]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segfast.models._base import SegmentationModel, resize
from segfast.models._layers import FCNHead, conv_bn_relu, separable_bn_relu
from segfast.models._registry import Entry
from segfast.models.backbones.dilated import create_dilated
from segfast.models.deeplabv3 import pyramid_rates
from segfast.models.layouts.deeplabv3plus import LAYOUTS, MOBILENET_V2, XCEPTION
from segfast.nn import ASPP
from segfast.ops import _check


class Wiring(NamedTuple):
    """Where published code differs.

    Attributes:
        output_stride: of the backbone, unless another is asked for.
        multi_grid: of a residual network's last stage.
        rates: of the pyramid; None for the paper's, 6, 12, 18 times 16 over the output stride.
        width: of pyramid and decoder; None for a quarter of the backbone's channels.
        joined: channels of the stride 4 map; None for 3/16 of those it has.
        aspp: options of :class:`segfast.nn.ASPP`.
        refine: a 3 x 3 layer follows the pyramid.
        separable: the 3 x 3 layers are separable; "act" with act between their parts.
        dropout: behind each 3 x 3 layer of the decoder.
        aux: there is a second head, on the third stage.
        align_corners: of all resizes.
    """

    output_stride: int = 16
    multi_grid: tuple[int, ...] = ()
    rates: tuple[int, ...] | None = None
    width: int | None = 256
    joined: int | None = 48
    aspp: Mapping[str, Any] = {}
    refine: bool = False
    separable: bool | str = False
    dropout: tuple[float, ...] = (0.0, 0.0)
    aux: bool = False
    align_corners: bool = False


WIRINGS = {
    "jfzhang": Wiring(multi_grid=(1, 2, 4), dropout=(0.5, 0.1), align_corners=True),
    "deeplab-pytorch": Wiring(multi_grid=(1, 2, 4), rates=(6, 12, 18), aspp={"dropout": 0.0}),
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
        rates=(12, 24, 36), refine=True, separable=True, dropout=(0.0,), align_corners=True
    ),
}


class DeepLabV3Plus(SegmentationModel):
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
        layout: "jfzhang", "deeplab-pytorch", "mmseg" or "smp" (these with separable convolutions).

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are "aux". With image pooling N > 1 in
        training.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> model = DeepLabV3Plus(num_classes=2, backbone="resnet18", layout="smp").eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

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
        layout: str = "jfzhang",
    ) -> None:
        _check.require_choice("layout", layout, tuple(WIRINGS))
        wires = WIRINGS[layout]
        align_corners = wires.align_corners if align_corners is None else align_corners
        super().__init__(num_classes, in_channels, align_corners)
        stride = wires.output_stride if output_stride is None else output_stride
        self.backbone, self.picks = create_dilated(
            backbone, in_channels, stride, layout, multi_grid, wires.multi_grid
        )
        low, middle, last = (self.backbone.channels[i] for i in self.picks)
        width, joined = wires.width or last // 4, wires.joined or 3 * low // 16
        if rates is None:
            rates = wires.rates or pyramid_rates(stride)

        def layer(channels: int, dropout: float = 0.0) -> nn.Sequential:
            if wires.separable:
                block = separable_bn_relu(channels, width, 3, act=wires.separable == "act")
            else:
                block = conv_bn_relu(channels, width, 3)
            return block.append(nn.Dropout(dropout)) if dropout else block

        self.aspp = ASPP(
            last, rates, width, wires.separable, image_pooling=image_pooling, **wires.aspp
        )
        self.refine = layer(width) if wires.refine else None
        self.reduce = conv_bn_relu(low, joined, 1)
        channels = [width + joined, width]
        self.decoder = nn.Sequential(*map(layer, channels, wires.dropout))
        self.classifier = nn.Conv2d(width, num_classes, 1)
        has_aux = wires.aux if aux is None else aux
        _check.require_bool("aux", has_aux)
        self.aux_classifier = FCNHead(middle, num_classes) if has_aux else None

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> maps: "out" [N, L, H/4, W/4], "aux" of the third stage's size."""
        maps = self.backbone(x)
        low, middle, last = (maps[i] for i in self.picks)
        y = self.aspp(last)
        if self.refine is not None:
            y = self.refine(y)
        y = resize(y, low.shape[-2:], self.align_corners)
        y = self.decoder(torch.cat([y, self.reduce(low)], 1))
        found = {"out": self.classifier(y)}
        if aux and self.aux_classifier is not None:
            found["aux"] = self.aux_classifier(middle)
        return found


SOURCE = "Chen et al., ECCV 2018; jfzhang95/pytorch-deeplab-xception, deeplab-pytorch, mmseg, smp"
MODELS = (
    *(
        Entry(
            f"deeplabv3plus_resnet{depth}",
            DeepLabV3Plus,
            SOURCE,
            LAYOUTS,
            {"backbone": f"resnet{depth}"},
        )
        for depth in (50, 101)
    ),
    *(
        Entry(
            f"deeplabv3plus_resnet{depth}",
            DeepLabV3Plus,
            SOURCE,
            {name: LAYOUTS[name] for name in ("smp", "mmseg")},
            {"backbone": f"resnet{depth}"},
        )
        for depth in (18, 34)
    ),
    Entry(
        "deeplabv3plus_mobilenet_v2",
        DeepLabV3Plus,
        "Chen et al., ECCV 2018, on Sandler et al., CVPR 2018; jfzhang95, smp",
        MOBILENET_V2,
        {"backbone": "mobilenet_v2"},
    ),
    Entry(
        "deeplabv3plus_xception",
        DeepLabV3Plus,
        "Chen et al., ECCV 2018; jfzhang95/pytorch-deeplab-xception",
        XCEPTION,
        {"backbone": "xception"},
        metrics={"VOC 2012 val, mean IU": 82.2, "VOC 2012 test, mean IU": 87.8},
    ),
)
