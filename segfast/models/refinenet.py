"""RefineNet: from the deepest map upwards, each level is adapted, joined and pooled in a chain.

layer4 --> adapt -----------------------> chained pooling -> out -> [N, 256, H/32, W/32]
layer3 --> adapt -> + enlarged deeper --> chained pooling -> out -> [N, 256, H/16, W/16]
layer2 --> adapt -> + enlarged deeper --> chained pooling -> out -> [N, 256, H/8, W/8]
layer1 --> adapt -> + enlarged deeper --> chained pooling -> out -> scores, stride 4
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from segfast.models._base import SegmentationModel, resize
from segfast.models._layers import conv2d
from segfast.models._registry import Entry
from segfast.models.backbones import ResNet
from segfast.models.layouts.refinenet import LAYOUTS
from segfast.nn import MaxPool2d
from segfast.ops import _check

ORDERS = ("pool_conv", "conv_pool")


class ResidualConvUnit(nn.Sequential):
    """y = x + W_1 relu(W_0 relu(x) + b_0), 3 x 3, without normalisation (section 3.2.1)."""

    def __init__(self, channels: int) -> None:
        first = conv2d(channels, channels, 3, bias=True)
        super().__init__(first, conv2d(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> y [N, C, H, W]."""
        y = x
        for conv in self:
            y = conv(torch.relu(y))
        return x + y


class ChainedResidualPooling(nn.Module):
    """y = x + z_1 + ... + z_S, z_s = W_s pool_5x5(z_{s-1}), z_0 = x (section 3.2.3).

    Args:
        channels: C.
        stages: S.
        kernel_size: of W_s.
        order: "pool_conv", as the VOC and Cityscapes networks were released, or "conv_pool", as
            those for other datasets.
    """

    def __init__(self, channels: int, stages: int, kernel_size: int, order: str) -> None:
        super().__init__()
        self.order = order
        self.pool = MaxPool2d(5, 1, 2)
        self.convs = nn.ModuleList(conv2d(channels, channels, kernel_size) for _ in range(stages))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> y [N, C, H, W]."""
        y = x
        for conv in self.convs:
            x = conv(self.pool(x)) if self.order == "pool_conv" else self.pool(conv(x))
            y = y + x
        return y


class Level(nn.Module):
    """A RefineNet block (figure 3): one map of the backbone, and what comes from below.

    Args:
        in_channels: of the backbone's map.
        channels: C of the level; 3 x 3 convolutions reduce the map to them.
        onward: channels handed to the next level; None at the last.
        deepest: nothing comes from below.
        light: the light-weight form: 1 x 1 convolutions, no residual units.
        stages, order: of the chained pooling.
        align_corners: of the resize of what comes from below.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        onward: int | None,
        deepest: bool,
        light: bool,
        stages: int,
        order: str,
        align_corners: bool,
    ) -> None:
        super().__init__()
        self.align_corners = align_corners
        kernel = 1 if light else 3
        self.reduce = conv2d(in_channels, channels, kernel)
        self.adapt = units(channels, 0 if light else 2)
        self.join = None if deepest else conv2d(channels, channels, kernel)
        self.pool = ChainedResidualPooling(channels, stages, kernel, order)
        self.out = units(channels, 0 if light else 3)
        self.onward = None if onward is None else conv2d(channels, onward, kernel)

    def forward(self, x: Tensor, below: Tensor | None) -> Tensor:
        """x [N, in_channels, h, w], below [N, C, h', w'] -> [N, onward or C, h, w]."""
        x = self.adapt(self.reduce(x))
        if self.join is not None and below is not None:
            x = self.join(x) + resize(below, x.shape[-2:], self.align_corners)
        x = self.out(self.pool(torch.relu(x)))
        return x if self.onward is None else self.onward(x)


def units(channels: int, count: int) -> nn.Sequential:
    """Residual units in a row."""
    return nn.Sequential(*(ResidualConvUnit(channels) for _ in range(count)))


class RefineNet(SegmentationModel):
    """Lin, Milan, Shen and Reid, "RefineNet: Multi-Path Refinement Networks for High-Resolution
    Semantic Segmentation", CVPR 2017; light: Nekrasov, Shen and Reid, "Light-Weight RefineNet for
    Real-Time Semantic Segmentation", BMVC 2018.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        light: the light-weight form.
        pool_stages: of the chained pooling: 4 as released; the paper's figure shows 2.
        order: of the chained pooling: "pool_conv" or "conv_pool".
        widths: channels of the levels, the deepest first.
        align_corners: of all resizes.
        layout: "official" (DrSleep's names).

    Shape:
        x [N, C, H, W] -> [N, L, H, W], resized from stride 4.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import RefineNet
        >>> model = RefineNet(num_classes=2, depth=18, light=True).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    rules = LAYOUTS

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        depth: int = 101,
        light: bool = False,
        pool_stages: int = 4,
        order: str = "pool_conv",
        widths: Sequence[int] = (512, 256, 256, 256),
        align_corners: bool = True,
        layout: str = "official",
    ) -> None:
        super().__init__(num_classes, in_channels, layout, align_corners)
        _check.require_bool("align_corners", align_corners)
        _check.require_choice("order", order, ORDERS)
        _check.require_bool("light", light)
        _check.require_count("pool_stages", pool_stages, 1)
        widths = _check.require_counts("widths", widths)
        if len(widths) != 4:
            raise ValueError(f"widths must be four integers, got {widths}")
        self.backbone = ResNet(depth, in_channels)
        self.levels = nn.ModuleList(
            Level(channels, width, onward, deepest, light, pool_stages, order, align_corners)
            for channels, width, onward, deepest in zip(
                reversed(self.backbone.channels),
                widths,
                (*widths[1:], None),
                (True, False, False, False),
                strict=True,
            )
        )
        self.dropout = nn.Dropout(0.5)  # of the two deepest maps, and before the classifier
        self.classifier = conv2d(widths[-1], num_classes, 3, bias=True)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> "out" [N, L, H / 4, W / 4]."""
        first, second, third, fourth = self.backbone(x)
        maps = (self.dropout(fourth), self.dropout(third), second, first)
        y = None
        for level, features in zip(self.levels, maps, strict=True):
            y = level(features, y)
        return {"out": self.classifier(self.dropout(y))}


SOURCE = "Lin et al., CVPR 2017; guosheng/refinenet, DrSleep/refinenet-pytorch"
LIGHT_SOURCE = "Nekrasov, Shen and Reid, BMVC 2018; DrSleep/light-weight-refinenet"
METRICS: dict[int, dict[str, float]] = {
    50: {},
    101: {"VOC 2012 test, mean IU": 82.4},
    152: {"VOC 2012 test, mean IU": 83.4},
}
MODELS = tuple(
    Entry(f"refinenet_resnet{depth}", RefineNet, SOURCE, {"depth": depth}, metrics=metrics)
    for depth, metrics in METRICS.items()
) + tuple(
    Entry(
        f"refinenet_resnet{depth}_light",
        RefineNet,
        LIGHT_SOURCE,
        {"depth": depth, "light": True},
    )
    for depth in METRICS
)
