"""DeepLab's third version: a dilated backbone, a pyramid of atrous rates and of the image's mean.

image -> backbone, output stride 8 or 16 -> [N, 2048, h, w]
      -> 1 x 1 | 3 x 3 at three rates | mean -> beside each other -> 1 x 1 to 256 -> scores

or, as the paper's other half has it, copies of the last stage in a cascade and no pyramid.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from segfast.models._deeplab import PyramidNet, Wiring
from segfast.models._keys import Rules
from segfast.models._layers import conv_bn_relu
from segfast.models._registry import Entry
from segfast.models.backbones import RESNETS
from segfast.models.layouts.deeplabv3 import layouts

WIRINGS = {
    "torchvision": Wiring(rates=(12, 24, 36), refine=True, aux=True),
    "mmseg": Wiring(
        width=None, aspp={"dropout": 0.1, "pooled_first": True, "projection": 3}, aux=True
    ),
    "smp": Wiring(rates=(12, 24, 36), refine=True, align_corners=True),
    "deeplab-pytorch": Wiring(multi_grid=(1, 2, 4), rates=(6, 12, 18), aspp={"dropout": 0.0}),
}


class DeepLabV3(PyramidNet):
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
        image_pooling: whether the pyramid has the branch of mean(f); None for yes.
        cascade: the last block, 4 to 7, of section 3.2: blocks 5, 6 and 7 are copies of block 4,
            each strided, or dilated beyond the output stride; a 1 x 1 classifier is in the
            pyramid's place. None for the pyramid.
        aux: whether there is a second head, on the third stage; None as the layout has it. Its
            loss has weight 0.5 as torchvision trains it, 0.4 as mmseg does.
        align_corners: of the final resize; None as the layout has it.
        layout: "torchvision", "mmseg", "smp" or "deeplab-pytorch" (bottlenecks alone); MobileNets
            have the first, version 2 "smp", too.

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are "aux". With image pooling N > 1 in
        training.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import DeepLabV3
        >>> model = DeepLabV3(num_classes=2, backbone="resnet18").eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    backbones = (*(f"resnet{depth}" for depth in RESNETS), "mobilenet_v2", "mobilenet_v3_large")
    wirings = WIRINGS

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        backbone: str = "resnet101",
        output_stride: int = 8,
        multi_grid: Sequence[int] | None = None,
        rates: Sequence[int] | None = None,
        image_pooling: bool | None = None,
        cascade: int | None = None,
        aux: bool | None = None,
        align_corners: bool | None = None,
        layout: str = "torchvision",
    ) -> None:
        if cascade not in (None, 4, 5, 6, 7):
            raise ValueError(f"cascade must be None, 4, 5, 6 or 7, got {cascade!r}")
        for name, value in (("rates", rates), ("image_pooling", image_pooling)):
            if cascade is not None and value is not None:
                raise ValueError(f"{name} is of the pyramid, which a cascade has not; got {value}")
        super().__init__(
            num_classes, in_channels, layout, backbone, output_stride, multi_grid, rates,
            align_corners, copies=0 if cascade is None else cascade - 4,
        )  # fmt: skip
        wires = WIRINGS[layout]
        self.classifier: nn.Module = nn.Conv2d(self.channels[-1], num_classes, 1)
        if cascade is None:
            self.classifier = nn.Sequential(
                self.pyramid(True if image_pooling is None else image_pooling),
                *(conv_bn_relu(self.width, self.width, 3) if wires.refine else ()),
                nn.Conv2d(self.width, num_classes, 1),
            )
        self.aux_classifier = self.auxiliary(wires.aux if aux is None else aux)

    @classmethod
    def layouts_of(cls, variant: tuple[str, int]) -> Mapping[str, Rules]:
        """On a backbone, with so many rates."""
        return layouts(*variant)

    def main(self, low: Tensor, last: Tensor, aux: bool) -> dict[str, Tensor]:
        """The last map [N, C, h, w] -> "out" [N, L, h, w]."""
        return {"out": self.classifier(last)}


SOURCE = "Chen et al., 2017; torchvision, mmseg, segmentation_models.pytorch, deeplab-pytorch"
METRICS: dict[int, dict[str, float]] = {
    50: {"COCO val 2017, VOC labels, mean IU (torchvision)": 66.4},
    101: {
        "COCO val 2017, VOC labels, mean IU (torchvision)": 67.4,
        "VOC 2012 val, mean IU, output stride 16, multi-grid (1, 2, 4)": 77.21,
        "VOC 2012 val, mean IU, output stride 8, multi-grid (1, 2, 4)": 78.51,
    },
}
MODELS = (
    *(
        Entry(
            f"deeplabv3_resnet{depth}",
            DeepLabV3,
            SOURCE,
            {"backbone": f"resnet{depth}"},
            metrics=METRICS.get(depth, {}),
        )
        for depth in (18, 34, 50, 101)
    ),
    Entry(
        "deeplabv3_mobilenet_v3_large",
        DeepLabV3,
        "Chen et al., 2017, on Howard et al., ICCV 2019; torchvision",
        {"backbone": "mobilenet_v3_large", "output_stride": 16},
    ),
)
