"""PSPNet: means over regions of four sizes tell every position what its surroundings are.

image -> ResNet, output stride 8 -> layer4 [N, 2048, H/8, W/8] -> pyramid -> head -> scores
                                    layer3 [N, 1024, H/8, W/8] ------------> head -> aux
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segfast.models._base import resize
from segfast.models._keys import Rules
from segfast.models._layers import conv_bn_relu
from segfast.models._preprocessing import CAFFE_VGG
from segfast.models._registry import Entry
from segfast.models._supervised import DeeplySupervised
from segfast.models.backbones import ResNet
from segfast.models.layouts.pspnet import RELEASED, layouts
from segfast.ops import _check

POOLS: dict[str, type[nn.Module]] = {
    "average": nn.AdaptiveAvgPool2d,
    "max": nn.AdaptiveMaxPool2d,
}


class PyramidPooling(nn.Module):
    """The map beside its means over grids of b x b regions, each enlarged again.

        y = [x, resize(act(W_1 pool_1 x)), ..., resize(act(W_B pool_B x))]

    with act a batch normalisation and ReLU. Zhao et al., "Pyramid Scene Parsing Network", CVPR
    2017, section 3.2.

    Args:
        in_channels: C of x.
        bins: b of each grid.
        pool: "average" or "max", of a region.
        reduce: W_b are 1 x 1 convolutions to C / B channels; else there are none, nor act.
        align_corners: of the resize.

    Shape:
        x [N, C, H, W] -> y [N, `out_channels`, H, W]. In training N > 1 where a grid is 1 x 1.
    """

    def __init__(
        self,
        in_channels: int,
        bins: Sequence[int] = (1, 2, 3, 6),
        pool: str = "average",
        reduce: bool = True,
        align_corners: bool = True,
    ) -> None:
        super().__init__()
        bins = _check.require_counts("bins", bins)
        _check.require_choice("pool", pool, tuple(POOLS))
        _check.require_bool("reduce", reduce)
        if reduce and in_channels < len(bins):
            raise ValueError(f"bins must be at most {in_channels}, one channel each; got {bins}")
        width = in_channels // len(bins) if reduce else in_channels
        self.align_corners = align_corners
        self.features = nn.ModuleList()
        for size in bins:
            layers: Any = conv_bn_relu(in_channels, width, 1) if reduce else ()
            self.features.append(nn.Sequential(POOLS[pool](size), *layers))
        self.out_channels = in_channels + width * len(bins)

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        parts = [x]
        for feature in self.features:
            parts.append(resize(feature(x), x.shape[-2:], self.align_corners))
        return torch.cat(parts, 1)


class Wiring(NamedTuple):
    """Where published networks differ, beside the ResNet of that name."""

    backbone: str
    align_corners: bool


WIRINGS = {
    "semseg": Wiring("semseg", True),
    "caffe": Wiring("caffe", True),
    "mmseg": Wiring("mmseg", False),
}


class PSPNet(DeeplySupervised):
    """Zhao, Shi, Qi, Wang and Jia, "Pyramid Scene Parsing Network", CVPR 2017.

    Deep supervision (section 3.3): the auxiliary loss has weight 0.4. Its ablations (tables 1 and
    5) are arguments: bins (1,), max for average, no reduction, other depths.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        bins, pool, reduce: of :class:`PyramidPooling`.
        output_stride: 8, 16 or 32.
        aux: whether layer3 has a head, too.
        align_corners: of all resizes; None as the layout has it.
        layout: "semseg" (hszhao's PyTorch code; sizes 8 k + 1 fit it best), "caffe" (the released
            networks of depths 50 and 101: strides on the first 1 x 1, in 101 on the 3 x 3; no
            auxiliary head in their files: ``aux=False``) or "mmseg".

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are "aux". In training N > 1.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import PSPNet
        >>> model = PSPNet(num_classes=2, depth=18).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    wirings = WIRINGS

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        depth: int = 50,
        bins: Sequence[int] = (1, 2, 3, 6),
        pool: str = "average",
        reduce: bool = True,
        output_stride: int = 8,
        aux: bool = True,
        align_corners: bool | None = None,
        layout: str = "semseg",
    ) -> None:
        bins = _check.require_counts("bins", bins)
        if layout == "caffe" and depth not in RELEASED:
            raise ValueError(f"depth must be 50 or 101 in layout 'caffe', got {depth}")
        variant = depth in RELEASED, bins
        super().__init__(num_classes, in_channels, layout, align_corners, variant)
        wiring = "caffe101" if (layout, depth) == ("caffe", 101) else WIRINGS[layout].backbone
        self.backbone = ResNet(depth, in_channels, output_stride, wiring=wiring)
        channels = self.backbone.channels[-1]
        self.ppm = PyramidPooling(channels, bins, pool, reduce, self.align_corners)
        width = channels // 4
        self.classifier = nn.Sequential(
            *conv_bn_relu(self.ppm.out_channels, width, 3),
            nn.Dropout(0.1),
            nn.Conv2d(width, num_classes, 1),
        )
        self.aux_classifier = self.auxiliary(aux)

    @classmethod
    def layouts_of(cls, variant: tuple[bool, tuple[int, ...]]) -> Mapping[str, Rules]:
        """Of a released depth or another, with these bins."""
        return layouts(*variant)

    def main(self, low: Tensor, last: Tensor, aux: bool) -> dict[str, Tensor]:
        """The last map [N, C, h, w] -> "out" [N, L, h, w]."""
        return {"out": self.classifier(self.ppm(last))}


SOURCE = "Zhao et al., CVPR 2017; hszhao/semseg, hszhao/PSPNet, mmseg"
METRICS: dict[int, dict[str, float]] = {
    34: {},
    50: {"ADE20K val, mean IU": 41.68},
    101: {"VOC 2012 test, mean IU, several scales": 85.41, "Cityscapes val, mean IU": 79.70},
}
MODELS = tuple(
    Entry(
        f"pspnet_resnet{depth}",
        PSPNet,
        SOURCE,
        {"depth": depth},
        metrics=metrics,
        images={"caffe": CAFFE_VGG},
    )
    for depth, metrics in METRICS.items()
)
