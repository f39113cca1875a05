"""MANet: linear attention of positions and softmax attention of channels on every map of a ResNet.

image -> stem -> e1 [256, /4] -> e2 [512, /8] -> e3 [1024, /16] -> e4 [2048, /32]
                  |               |                |                 |
                 att1            att2             att3              att4
                  |               |                |                 |
scores <- head <- dec1 <- + <---- dec2 <- + <----- dec3 <- + <------ dec4       att = KAM + CAM
"""

from __future__ import annotations

from torch import Tensor, nn

from segfast.models._attention_unet import AttentionUNet
from segfast.models._registry import Entry
from segfast.models.layouts.manet import LAYOUTS
from segfast.nn import ChannelAttention2d, LinearAttention2d


class AttentionBlock(nn.Module):
    """y = KAM(x) + CAM(x): kernel attention of positions, attention of channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.PAM = LinearAttention2d(channels, feature_map="softplus")
        self.CAM = ChannelAttention2d()

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> the same shape."""
        return self.PAM(x) + self.CAM(x)


class MANet(AttentionUNet):
    """Multi-attention network, for fine-resolution remote sensing images.

        d_4 = dec_4(att_4(e_4)) + att_3(e_3), ..., y = head(dec_1(d_2)),   att = KAM + CAM

    Li et al., "Multiattention Network for Semantic Segmentation of Fine-Resolution Remote Sensing
    Images", TGRS 2021. As its code is: no residual around a decoder block, which its figure draws.
    Maps need not be square, nor sizes multiples of 32, as in that code.

    `MAnet` of segmentation_models.pytorch is another network: Fan et al., "MA-Net: A Multi-Scale
    Attention Network for Liver and Tumor Segmentation", 2020.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet: 18, 34, 50 (published), 101 or 152.
        layout: "lironui" or "geoseg": names of the keys only.

    Shape:
        x [N, C, H, W] -> [N, L, H, W].

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import MANet
        >>> MANet(num_classes=6, depth=18).eval()(torch.randn(1, 3, 64, 90)).shape
        torch.Size([1, 6, 64, 90])
    """

    rules = LAYOUTS

    def __init__(
        self,
        num_classes: int = 5,
        in_channels: int = 3,
        depth: int = 50,
        layout: str = "lironui",
    ) -> None:
        super().__init__(num_classes, in_channels, depth, layout, AttentionBlock)


MODELS = (
    Entry(
        "manet_resnet50",
        MANet,
        "Li et al., TGRS 2021; lironui/Multi-Attention-Network, GeoSeg",
        num_classes=5,
        metrics={
            "Vaihingen test, mean F1": 90.411,
            "Vaihingen test, overall accuracy": 90.963,
            "Vaihingen test, mean IU": 82.706,
            "Potsdam test, mean F1": 92.904,
            "Potsdam test, overall accuracy": 91.318,
            "Potsdam test, mean IU": 86.952,
        },
    ),
)
