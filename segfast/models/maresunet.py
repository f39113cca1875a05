"""MAResU-Net: Taylor attention of positions and softmax attention of channels on every skip.

image -> stem -> e1 [64, /4] -> e2 [128, /8] -> e3 [256, /16] -> e4 [512, /32]
                  |              |                |                |
                 att1           att2             att3             att4
                  |              |                |                |
scores <- head <- dec1 <- + <--- dec2 <- + <----- dec3 <- + <----- dec4

att: x -> 3 x 3, ReLU -> LAM -> 1 x 1, ReLU -> + -> 1 x 1, ReLU
                      -> CAM -> 1 x 1, ReLU -> +
"""

from __future__ import annotations

from torch import Tensor, nn

from segfast.models._attention_unet import AttentionUNet
from segfast.models._layers import conv2d
from segfast.models._registry import Entry
from segfast.models.layouts.maresunet import LAYOUTS
from segfast.nn import ChannelAttention2d, LinearAttention2d


class AttentionBlock(nn.Module):
    """y = relu(W_3 (relu(W_P LAM(z)) + relu(W_C CAM(z)))), z = relu(W_1 x).

    LAM attends between positions by the first-order Taylor kernel, CAM between channels. W_1 is
    3 x 3, the others are 1 x 1 after a dropout of whole channels.
    """

    def __init__(self, channels: int, dropout: float = 0.1) -> None:
        super().__init__()

        def pointwise() -> nn.Module:
            return nn.Sequential(nn.Dropout2d(dropout), rectified(channels, 1))

        self.conv1 = rectified(channels, 3)
        self.PAM = LinearAttention2d(channels, feature_map="taylor")
        self.CAM = ChannelAttention2d()
        self.conv2P, self.conv2C, self.conv3 = pointwise(), pointwise(), pointwise()

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> the same shape."""
        z = self.conv1(x)
        return self.conv3(self.conv2P(self.PAM(z)) + self.conv2C(self.CAM(z)))


def rectified(channels: int, kernel_size: int) -> nn.Sequential:
    """relu(W x + b)."""
    conv = conv2d(channels, channels, kernel_size, bias=True)
    return nn.Sequential(conv, nn.ReLU(inplace=True))


class MAResUNet(AttentionUNet):
    """Multistage attention ResU-Net, for fine-resolution remote sensing images.

        d_4 = dec_4(att_4(e_4)) + att_3(e_3), ..., y = head(dec_1(d_2))

    Li et al., "Multistage Attention ResU-Net for Semantic Segmentation of Fine-Resolution Remote
    Sensing Images", GRSL 2021. Maps need not be square, nor sizes multiples of 32, as in the
    published code.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: of the ResNet: 18 or 34 (published), 50, 101 or 152.
        layout: "lironui".

    Shape:
        x [N, C, H, W] -> [N, L, H, W].

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import MAResUNet
        >>> MAResUNet(num_classes=6, depth=18).eval()(torch.randn(1, 3, 64, 90)).shape
        torch.Size([1, 6, 64, 90])
    """

    rules = LAYOUTS

    def __init__(
        self,
        num_classes: int = 5,
        in_channels: int = 3,
        depth: int = 34,
        layout: str = "lironui",
    ) -> None:
        super().__init__(num_classes, in_channels, depth, layout, AttentionBlock)


SOURCE = "Li et al., GRSL 2021; lironui/MAResU-Net"

MODELS = tuple(
    Entry(
        f"maresunet_resnet{depth}",
        MAResUNet,
        SOURCE,
        {"depth": depth},
        num_classes=5,
        metrics={
            "Vaihingen test, mean F1": f1,
            "Vaihingen test, overall accuracy": accuracy,
            "Vaihingen test, mean IU": iou,
        },
    )
    for depth, f1, accuracy, iou in ((18, 87.676, 90.047, 80.749), (34, 90.277, 90.860, 83.301))
)
