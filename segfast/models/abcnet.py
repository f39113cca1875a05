"""ABCNet: a shallow path for details, a deep one for context, joined by linear attention.

image -> 7 x 7 /2, 3 x 3 /2, 3 x 3 /2, 1 x 1 ------------------------> s [128, /8]
      -> ResNet -> e3 [256, /16] -> AEM -> + -> doubled, 3 x 3 ------> c [128, /8]
                                           ^------------------- d [128, /16]
                -> e4 [512, /32] -> AEM -> + -> doubled, 3 x 3 -^
                                -> mean, 1 x 1 -^

scores = shuffle(1 x 1, 3 x 3, FAM(s, c)); auxiliary heads alike on c and d
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._layers import conv_bn_relu
from segfast.models._registry import Entry
from segfast.models.backbones import ResNet
from segfast.models.layouts.abcnet import LAYOUTS
from segfast.nn import LinearAttention2d
from segfast.ops import _check


class AttentionEnhancement(nn.Module):
    """AEM: y = norm(gamma LAM(relu(norm(W x)))), LAM linear attention by the Taylor kernel.

    As published there is no residual: until gamma has been learned, y is the norm's shift.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = conv_bn_relu(in_channels, out_channels, 3)
        self.conv_atten = LinearAttention2d(out_channels, feature_map="taylor", residual=False)
        self.bn_atten = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C', H, W]."""
        return self.bn_atten(self.conv_atten(self.conv(x)))


class FeatureAggregation(nn.Module):
    """FAM: y = z + z gamma LAM(z), z = relu(norm(W [s, c]))."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convblk = conv_bn_relu(in_channels, out_channels, 1)
        self.conv_atten = LinearAttention2d(out_channels, feature_map="taylor", residual=False)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        """Two maps [N, C / 2, H, W] -> [N, C', H, W]."""
        z = self.convblk(torch.cat([spatial, context], 1))
        return z + z * self.conv_atten(z)


class SpatialPath(nn.Module):
    """Details: three strided convolutions, x [N, C, H, W] -> [N, C', H / 8, W / 8]."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = conv_bn_relu(in_channels, 64, 7, 2)
        self.conv2 = conv_bn_relu(64, 64, 3, 2)
        self.conv3 = conv_bn_relu(64, 64, 3, 2)
        self.conv_out = conv_bn_relu(64, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The four, in turn."""
        return self.conv_out(self.conv3(self.conv2(self.conv1(x))))


class ContextPath(nn.Module):
    """Context: the deepest map and its mean, added to the map before it, enlarged twice."""

    def __init__(self, channels16: int, channels32: int, width: int) -> None:
        super().__init__()
        self.arm16 = AttentionEnhancement(channels16, width)
        self.arm32 = AttentionEnhancement(channels32, width)
        self.conv_head32 = conv_bn_relu(width, width, 3)
        self.conv_head16 = conv_bn_relu(width, width, 3)
        self.conv_avg = conv_bn_relu(channels32, width, 1)

    def forward(self, e2: Tensor, e3: Tensor, e4: Tensor) -> tuple[Tensor, Tensor]:
        """ResNet's maps of strides 8, 16, 32 -> contexts [N, C', h, w] of strides 8 and 16."""
        y = self.arm32(e4) + self.conv_avg(e4.mean((2, 3), keepdim=True))
        d = self.conv_head32(F.interpolate(y, e3.shape[2:]))  # nearest: pixels repeated
        c = self.conv_head16(F.interpolate(self.arm16(e3) + d, e2.shape[2:]))
        return c, d


class ShuffledScores(nn.Module):
    """Scores of r x r pixels from every position: x [N, C, H, W] -> [N, L, r H, r W]."""

    def __init__(self, in_channels: int, width: int, num_classes: int, r: int) -> None:
        super().__init__()
        self.conv = conv_bn_relu(in_channels, width, 3)
        self.conv_out = nn.Conv2d(width, num_classes * r**2, 1)
        self.up = nn.PixelShuffle(r)

    def forward(self, x: Tensor) -> Tensor:
        """3 x 3, 1 x 1, and channels become pixels."""
        return self.up(self.conv_out(self.conv(x)))


class ABCNet(SegmentationModel):
    """Attentive bilateral contextual network, for fine-resolution remote sensing images.

        y = shuffle(W FAM(spatial(x), context(x)))

    Li et al., "ABCNet: Attentive Bilateral Contextual Network for Efficient Semantic Segmentation
    of Fine-Resolution Remotely Sensed Imagery", ISPRS Journal 2021. As its code is, where its
    figure differs: no normalisation behind FAM's attention, contexts enlarged by repetition, scores
    by shuffled channels, auxiliary heads on the enlarged contexts. Maps need not be square, nor
    sizes multiples of 32, as in that code: scores beyond the image are cut off.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet: 18 (published), 34, 50, 101 or 152.
        aux: whether there are the heads "aux_16" and "aux_32", on the contexts of strides 8 and 16;
            GeoSeg trains auxiliary losses with weight 0.4.
        layout: "lironui" or "geoseg": the same.

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are "aux_16" and "aux_32". In training
        N > 1, for the mean of each image is normalised.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import ABCNet
        >>> ABCNet(num_classes=6).eval()(torch.randn(1, 3, 64, 90)).shape
        torch.Size([1, 6, 64, 90])
    """

    rules = LAYOUTS

    def __init__(
        self,
        num_classes: int = 8,
        in_channels: int = 3,
        depth: int = 18,
        aux: bool = True,
        layout: str = "lironui",
    ) -> None:
        super().__init__(num_classes, in_channels, layout)
        _check.require_bool("aux", aux)
        width = 128
        self.backbone = ResNet(depth, in_channels)
        *_, third, fourth = self.backbone.channels
        self.sp = SpatialPath(in_channels, width)
        self.cp = ContextPath(third, fourth, width)
        self.fam = FeatureAggregation(2 * width, 2 * width)
        self.conv_out = ShuffledScores(2 * width, 2 * width, num_classes, 8)
        self.conv_out16 = ShuffledScores(width, 64, num_classes, 8) if aux else None
        self.conv_out32 = ShuffledScores(width, 64, num_classes, 16) if aux else None

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> maps [N, L, H, W]."""
        _, *deep = self.backbone(x)
        c, d = self.cp(*deep)
        maps = {"out": self.conv_out(self.fam(self.sp(x), c))}
        if aux and self.conv_out16 is not None and self.conv_out32 is not None:
            maps |= {"aux_16": self.conv_out16(c), "aux_32": self.conv_out32(d)}
        return {name: y[..., : x.shape[2], : x.shape[3]] for name, y in maps.items()}


MODELS = (
    Entry(
        "abcnet_resnet18",
        ABCNet,
        "Li et al., ISPRS Journal 2021; lironui/ABCNet, GeoSeg",
        num_classes=8,
        metrics={"UAVid test, mean IU": 63.8},
    ),
)
