"""DeepLab's third version: a dilated backbone, a pyramid of atrous rates and of the image's mean.

image -> backbone, output stride 8 or 16 -> [N, 2048, h, w]
      -> 1 x 1 | 3 x 3 at three rates | mean -> beside each other -> 1 x 1 to 256 -> scores

or, as the paper's other half has it, copies of the last stage in a cascade and no pyramid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._layers import FCNHead, conv_bn_relu
from segfast.models._registry import Entry
from segfast.models.backbones.dilated import create_dilated
from segfast.models.layouts.deeplabv3 import LAYOUTS, MOBILENET_V3
from segfast.nn import ASPP
from segfast.ops import _check


class Wiring(NamedTuple):
    """Where published code differs.

    Attributes:
        rates: of the pyramid; None for the paper's, 6, 12, 18 times 16 over the output stride.
        width: of the pyramid; None for a quarter of the backbone's channels.
        aspp: options of :class:`segfast.nn.ASPP`.
        refine: a 3 x 3 layer follows the pyramid.
        aux: there is a second head, on the third stage.
        align_corners: of the final resize.
        multi_grid: of the last stage.
    """

    rates: tuple[int, ...] | None = (12, 24, 36)
    width: int | None = 256
    aspp: Mapping[str, Any] = {}
    refine: bool = True
    aux: bool = False
    align_corners: bool = False
    multi_grid: tuple[int, ...] = ()


WIRINGS = {
    "torchvision": Wiring(aux=True),
    "mmseg": Wiring(
        rates=None,
        width=None,
        aspp={"dropout": 0.1, "pooled_first": True, "projection": 3},
        refine=False,
        aux=True,
    ),
    "smp": Wiring(align_corners=True),
    "deeplab-pytorch": Wiring(
        rates=(6, 12, 18), aspp={"dropout": 0.0}, refine=False, multi_grid=(1, 2, 4)
    ),
}


def pyramid_rates(output_stride: int) -> tuple[int, ...]:
    """The paper's, section 4.3.

    Example:
        >>> pyramid_rates(16), pyramid_rates(8)
        ((6, 12, 18), (12, 24, 36))
    """
    return tuple(96 // output_stride * k for k in (1, 2, 3))


class DeepLabV3(SegmentationModel):
    """Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", 2017, figures 3
    and 5.

        y = W P [act(W_0 f), act(W_r * f) for three rates r, act(W_p mean(f))], f = backbone(x)

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        backbone: "resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "mobilenet_v2" or
            "mobilenet_v3_large".
        output_stride: 8, 16 or 32; with a cascade up to 256 for its seventh block.
        multi_grid: unit rates of the last stage's blocks; None for the layout's. Those of "mmseg"
            are rates themselves.
        rates: of the pyramid; None for the layout's.
        image_pooling: whether the pyramid has the branch of mean(f).
        cascade: the last block, 4 to 7, of section 3.2: blocks 5, 6 and 7 are copies of block 4,
            each strided, or dilated beyond the output stride; a 1 x 1 classifier is in the
            pyramid's place. None for the pyramid.
        aux: whether there is a second head, on the third stage; None as the layout has it. Its
            loss has weight 0.5 as torchvision trains it, 0.4 as mmseg does.
        align_corners: of the final resize; None as the layout has it.
        layout: "torchvision", "mmseg", "smp" or "deeplab-pytorch".

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are "aux". With image pooling N > 1 in
        training.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> model = DeepLabV3(num_classes=2, backbone="resnet18").eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        backbone: str = "resnet101",
        output_stride: int = 8,
        multi_grid: Sequence[int] | None = None,
        rates: Sequence[int] | None = None,
        image_pooling: bool = True,
        cascade: int | None = None,
        aux: bool | None = None,
        align_corners: bool | None = None,
        layout: str = "torchvision",
    ) -> None:
        _check.require_choice("layout", layout, tuple(WIRINGS))
        wires = WIRINGS[layout]
        align_corners = wires.align_corners if align_corners is None else align_corners
        super().__init__(num_classes, in_channels, align_corners)
        if cascade not in (None, 4, 5, 6, 7):
            raise ValueError(f"cascade must be None, 4, 5, 6 or 7, got {cascade!r}")
        if cascade is not None and rates is not None:
            raise ValueError(f"rates are of the pyramid, which a cascade has not; got {rates!r}")
        copies = 0 if cascade is None else cascade - 4
        self.backbone, self.picks = create_dilated(
            backbone, in_channels, output_stride, layout, multi_grid, wires.multi_grid, copies
        )
        _, middle, last = (self.backbone.channels[i] for i in self.picks)
        self.classifier: nn.Module = nn.Conv2d(last, num_classes, 1)
        if cascade is None:
            width = wires.width or last // 4
            if rates is None:
                rates = wires.rates or pyramid_rates(output_stride)
            self.classifier = nn.Sequential(
                ASPP(last, rates, width, image_pooling=image_pooling, **wires.aspp),
                *(conv_bn_relu(width, width, 3) if wires.refine else ()),
                nn.Conv2d(width, num_classes, 1),
            )
        has_aux = wires.aux if aux is None else aux
        _check.require_bool("aux", has_aux)
        self.aux_classifier = FCNHead(middle, num_classes) if has_aux else None

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> maps [N, L, h, w]."""
        maps = self.backbone(x)
        _, middle, last = (maps[i] for i in self.picks)
        found = {"out": self.classifier(last)}
        if aux and self.aux_classifier is not None:
            found["aux"] = self.aux_classifier(middle)
        return found


SOURCE = "Chen et al., 2017; torchvision, mmseg, segmentation_models.pytorch, deeplab-pytorch"
METRICS: dict[int, dict[str, float]] = {
    50: {"COCO val 2017, VOC labels, mean IU (torchvision)": 66.4},
    101: {
        "COCO val 2017, VOC labels, mean IU (torchvision)": 67.4,
        "VOC 2012 val, mean IU, output stride 16, multi-grid (1, 2, 4)": 77.21,
        "VOC 2012 val, mean IU, output stride 8, multi-grid (1, 2, 4)": 78.51,
    },
}
# deeplab-pytorch has bottlenecks alone; its unit rates are those of three blocks.
BASIC = {name: rules for name, rules in LAYOUTS.items() if name != "deeplab-pytorch"}
MODELS = (
    *(
        Entry(
            f"deeplabv3_resnet{depth}",
            DeepLabV3,
            SOURCE,
            layouts,
            {"backbone": f"resnet{depth}"},
            metrics=METRICS.get(depth, {}),
        )
        for depth, layouts in ((18, BASIC), (34, BASIC), (50, LAYOUTS), (101, LAYOUTS))
    ),
    Entry(
        "deeplabv3_mobilenet_v3_large",
        DeepLabV3,
        "Chen et al., 2017, on Howard et al., ICCV 2019; torchvision",
        MOBILENET_V3,
        {"backbone": "mobilenet_v3_large", "output_stride": 16},
    ),
)
