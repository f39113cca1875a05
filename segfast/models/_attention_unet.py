"""What MANet and MAResU-Net share: a ResNet, an attention on each of its maps, a decoder that adds.

e_1, e_2, e_3, e_4 = stages of the ResNet, strides 4 to 32
d_4 = dec_4(att_4(e_4)) + att_3(e_3)
d_3 = dec_3(d_4) + att_2(e_2)
d_2 = dec_2(d_3) + att_1(e_1)
y   = head(dec_1(d_2))
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._layers import conv2d
from segfast.models.backbones import ResNet


class AttentionUNet(SegmentationModel):
    """The network above.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet.
        layout: of the subclass's.
        attention: channels -> module that keeps them.
    """

    def __init__(
        self,
        num_classes: int,
        in_channels: int,
        depth: int,
        layout: str,
        attention: Callable[[int], nn.Module],
    ) -> None:
        super().__init__(num_classes, in_channels, layout)
        self.backbone = ResNet(depth, in_channels)
        widths = self.backbone.channels
        self.attention4, self.attention3 = attention(widths[3]), attention(widths[2])
        self.attention2, self.attention1 = attention(widths[1]), attention(widths[0])
        self.decoder4 = DecoderBlock(widths[3], widths[2])
        self.decoder3 = DecoderBlock(widths[2], widths[1])
        self.decoder2 = DecoderBlock(widths[1], widths[0])
        self.decoder1 = DecoderBlock(widths[0], widths[0])
        self.finaldeconv1 = nn.ConvTranspose2d(widths[0], 32, 4, stride=2, padding=1)
        self.finalconv2 = conv2d(32, 32, 3, bias=True)
        self.finalconv3 = conv2d(32, num_classes, 3, bias=True)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> "out" [N, L, H, W]."""
        e1, e2, e3, e4 = self.backbone(x)
        d4 = joined(self.decoder4(self.attention4(e4)), self.attention3(e3))
        d3 = joined(self.decoder3(d4), self.attention2(e2))
        d2 = joined(self.decoder2(d3), self.attention1(e1))
        y = torch.relu_(self.finaldeconv1(self.decoder1(d2)))  # [N, 32, H or more, W or more]
        y = torch.relu_(self.finalconv2(y[..., : x.shape[2], : x.shape[3]]))
        return {"out": self.finalconv3(y)}


class DecoderBlock(nn.Module):
    """1 x 1 to a quarter, transposed 3 x 3 that doubles sizes, 1 x 1; each with norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        inner = in_channels // 4
        self.conv1 = conv2d(in_channels, inner, 1, bias=True)
        self.norm1 = nn.BatchNorm2d(inner)
        self.deconv2 = nn.ConvTranspose2d(inner, inner, 3, stride=2, padding=1, output_padding=1)
        self.norm2 = nn.BatchNorm2d(inner)
        self.conv3 = conv2d(inner, out_channels, 1, bias=True)
        self.norm3 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C', 2 H, 2 W]."""
        x = torch.relu_(self.norm1(self.conv1(x)))
        x = torch.relu_(self.norm2(self.deconv2(x)))
        return torch.relu_(self.norm3(self.conv3(x)))


def joined(x: Tensor, skip: Tensor) -> Tensor:
    """Their sum; x may be a row or a column longer, where an odd size was halved and doubled."""
    return x[..., : skip.shape[2], : skip.shape[3]] + skip
