"""DenseNets: every layer reads what all layers of its block before it made.

Huang, Liu, van der Maaten and Weinberger, "Densely Connected Convolutional Networks", CVPR 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from segfast.models._inputs import least_image
from segfast.models._layers import conv2d
from segfast.models.backbones._base import Backbone
from segfast.nn import MaxPool2d

# depth -> (growth, layers of the four blocks, channels of the stem); table 1, and 161 as released
DENSENETS = {
    121: (32, (6, 12, 24, 16), 64),
    161: (48, (6, 12, 36, 24), 96),
    169: (32, (6, 12, 32, 32), 64),
    201: (32, (6, 12, 48, 32), 64),
}


class DenseNet(Backbone):
    """The stem and four dense blocks: x [N, C, H, W] -> maps of strides 4, 8, 16, 32.

    Args:
        depth: 121, 161, 169 or 201.
        in_channels: C.

    Shape:
        -> [denseblock1, ..., denseblock4 normalised and rectified]; `channels` and `strides`
        are theirs. State as torchvision's features: conv0, norm0, denseblock1.denselayer1.norm1,
        transition1.norm, norm5.
    """

    def __init__(self, depth: int = 121, in_channels: int = 3) -> None:
        super().__init__()
        if depth not in tuple(DENSENETS):
            raise ValueError(
                f"depth must be one of {', '.join(map(str, DENSENETS))}; got {depth!r}"
            )
        growth, blocks, width = DENSENETS[depth]
        self.in_channels = in_channels
        self.conv0 = conv2d(in_channels, width, 7, 2)
        self.norm0 = nn.BatchNorm2d(width)
        self.pool0 = MaxPool2d(3, 2, padding=1)
        channels = []
        for i, layers in enumerate(blocks, 1):
            if i > 1:
                self.add_module(f"transition{i - 1}", Transition(width, width // 2))
                width //= 2
            self.add_module(f"denseblock{i}", DenseBlock(width, growth, layers))
            width += growth * layers
            channels.append(width)
        self.norm5 = nn.BatchNorm2d(width)
        self.channels, self.strides = tuple(channels), (4, 8, 16, 32)
        halved = (2, 2, 0, False)
        self.least = least_image([(7, 2, 3, False), (3, 2, 1, False), *[halved] * 3])

    def maps(self, x: Tensor) -> list[Tensor]:
        """x [N, C, H, W] -> the four blocks' maps."""
        x = self.pool0(torch.relu_(self.norm0(self.conv0(x))))
        maps = []
        for i in range(1, 5):
            x = self.get_submodule(f"denseblock{i}")(x)
            maps.append(x)
            if i < 4:
                x = self.get_submodule(f"transition{i}")(x)
        return [*maps[:3], torch.relu_(self.norm5(x))]


class DenseBlock(nn.Module):
    """y = (x, f_1(x), f_2(x, f_1(x)), ...): each layer adds `growth` channels."""

    def __init__(self, channels: int, growth: int, layers: int) -> None:
        super().__init__()
        for i in range(layers):
            self.add_module(f"denselayer{i + 1}", DenseLayer(channels + i * growth, growth))

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, C + layers growth, H, W]."""
        for layer in self.children():
            x = torch.cat((x, layer(x)), 1)
        return x


class DenseLayer(nn.Module):
    """conv_3x3(relu(norm(conv_1x1(relu(norm x))))), four times `growth` channels in between."""

    def __init__(self, channels: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv1 = conv2d(channels, 4 * growth, 1)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = conv2d(4 * growth, growth, 3)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, growth, H, W]."""
        x = self.conv1(torch.relu_(self.norm1(x)))
        return self.conv2(torch.relu_(self.norm2(x)))


class Transition(nn.Module):
    """Half the channels, half the size."""

    def __init__(self, channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(channels)
        self.conv = conv2d(channels, out_channels, 1)
        self.pool = nn.AvgPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        """x [N, C, H, W] -> [N, out_channels, H / 2, W / 2]."""
        return self.pool(self.conv(torch.relu_(self.norm(x))))
