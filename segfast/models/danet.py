"""DANet: every position attends to all others, every channel to all others, side by side.

                                              /-> 3 x 3 -> position attention -> 3 x 3 -\\
    image -> ResNet, output stride 8, layer4 -                                          + -> scores
                                              \\-> 3 x 3 -> channel attention --> 3 x 3 -/
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from segfast.models._layers import conv_bn_relu
from segfast.models._registry import Entry
from segfast.models._supervised import DeeplySupervised
from segfast.models.backbones import ResNet
from segfast.models.layouts.danet import LAYOUTS
from segfast.nn import ChannelAttention2d, PositionAttention2d
from segfast.ops import _check


class Branch(nn.Module):
    """3 x 3 to a quarter of the channels, attention, 3 x 3; scores of its own for supervision."""

    def __init__(self, in_channels: int, num_classes: int, attention: str) -> None:
        super().__init__()
        width = in_channels // 4
        self.conv_in = conv_bn_relu(in_channels, width, 3)
        self.attention: nn.Module = (
            PositionAttention2d(width) if attention == "position" else ChannelAttention2d()
        )
        self.conv_out = conv_bn_relu(width, width, 3)
        self.scores = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(width, num_classes, 1))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C / 4, H, W], which `scores` takes."""
        return self.conv_out(self.attention(self.conv_in(x)))


class Wiring(NamedTuple):
    """Where published networks differ."""

    backbone: str
    multi_grid: Sequence[int]  # of layer4's three blocks
    align_corners: bool
    aux: bool  # a head on layer3


WIRINGS = {
    "official": Wiring("torchvision", (1, 2, 4), True, False),
    "mmseg": Wiring("mmseg", (), False, True),
}
ATTENTIONS = {"both": ("position", "channel"), "position": ("position",), "channel": ("channel",)}


class DANet(DeeplySupervised):
    """Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019, section 3.

    Scores of the sum, of the position branch and of the channel branch are all supervised. The
    channel branch follows the published code, not the paper, in the sign of its products
    (:class:`segfast.nn.ChannelAttention2d`).

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        attention: "both", "position" or "channel" (the paper's table 1).
        output_stride: 8, 16 or 32.
        align_corners: of the final resize; None as the layout has it.
        layout: "official" (multi-grid (4, 8, 16) in layer4) or "mmseg" (a deep stem, and one more
            head, on layer3).

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are "position" and "channel" where
        there are both, and "aux" (mmseg).

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import DANet
        >>> model = DANet(num_classes=2, depth=18).eval()
        >>> model(torch.randn(1, 3, 65, 97)).shape
        torch.Size([1, 2, 65, 97])
    """

    rules = LAYOUTS
    wirings = WIRINGS

    def __init__(
        self,
        num_classes: int = 19,
        in_channels: int = 3,
        depth: int = 50,
        attention: str = "both",
        output_stride: int = 8,
        align_corners: bool | None = None,
        layout: str = "official",
    ) -> None:
        super().__init__(num_classes, in_channels, layout, align_corners)
        _check.require_choice("attention", attention, tuple(ATTENTIONS))
        wires = WIRINGS[layout]
        grid = () if depth == 18 else wires.multi_grid  # whose layer4 has two blocks
        self.backbone = ResNet(depth, in_channels, output_stride, grid, wiring=wires.backbone)
        channels = self.backbone.channels[-1]
        self.branches = nn.ModuleDict(
            {kind: Branch(channels, num_classes, kind) for kind in ATTENTIONS[attention]}
        )
        self.classifier = nn.Sequential(nn.Dropout(0.1), nn.Conv2d(channels // 4, num_classes, 1))
        self.aux_classifier = self.auxiliary(wires.aux)

    def main(self, low: Tensor, last: Tensor, aux: bool) -> dict[str, Tensor]:
        """The last map [N, C, h, w] -> "out" [N, L, h, w], and those of both branches."""
        features = {kind: branch(last) for kind, branch in self.branches.items()}
        total, *others = features.values()
        for other in others:
            total = total + other
        maps = {"out": self.classifier(total)}
        if aux and others:
            maps |= {kind: self.branches[kind].scores(y) for kind, y in features.items()}  # type: ignore[operator]
        return maps


SOURCE = "Fu et al., CVPR 2019; junfu1115/DANet, mmseg"
METRICS: dict[int, dict[str, float]] = {
    34: {},
    50: {"Cityscapes val, mean IU": 76.34},
    101: {"Cityscapes val, mean IU": 77.57},
}
MODELS = tuple(
    Entry(f"danet_resnet{depth}", DANet, SOURCE, {"depth": depth}, 19, metrics)
    for depth, metrics in METRICS.items()
)
