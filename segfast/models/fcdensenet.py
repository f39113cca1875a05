"""FC-DenseNet, the hundred layers tiramisu: dense blocks down and up, skips between.

x -> 3 x 3 -> dense block -> (x, new) ----------------------> (up, skip) -> dense block -> scores
                | down                                           ^ up
                dense block -> (x, new) ----> (up, skip) -> new -/
                | down                           ^ up
                ...    dense block (bottom) -> new
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from segfast.models._layers import conv2d
from segfast.models._monte_carlo import Sampled
from segfast.models._preprocessing import Preprocessing
from segfast.models._registry import Entry
from segfast.models.layouts.fcdensenet import LAYOUTS
from segfast.models.unet import centred
from segfast.nn import MaxPool2d
from segfast.ops import _check


class Size(NamedTuple):
    """Layers of the blocks on the way down, of the bottom, of those on the way up; growth."""

    down: Sequence[int]
    bottom: int
    up: Sequence[int]
    growth: int


# Of the paper; its FC-DenseNet56 is called 57 in the code.
SIZES = {
    57: Size((4, 4, 4, 4, 4), 4, (4, 4, 4, 4, 4), 12),
    67: Size((5, 5, 5, 5, 5), 5, (5, 5, 5, 5, 5), 16),
    103: Size((4, 5, 7, 10, 12), 15, (12, 10, 7, 5, 4), 16),
}
FIRST = 48  # channels of the first convolution


class DenseBlock(nn.ModuleList):
    """f_i(x, f_1, ..., f_{i-1}), i = 1 to n, each dropout(conv_3x3(relu(norm(.)))) of `growth`.

    x [N, C, H, W] -> the new channels [N, n growth, H, W]
    """

    def __init__(self, channels: int, growth: int, layers: int, dropout: float) -> None:
        super().__init__(
            nn.Sequential(
                nn.BatchNorm2d(channels + i * growth),
                nn.ReLU(inplace=True),
                conv2d(channels + i * growth, growth, 3, bias=True),
                nn.Dropout2d(dropout),
            )
            for i in range(layers)
        )

    def forward(self, x: Tensor) -> Tensor:
        """As the class says."""
        new: list[Tensor] = []
        for layer in self:
            new.append(layer(torch.cat([x, *new], 1)))
        return torch.cat(new, 1)


def transition_down(channels: int, dropout: float) -> nn.Sequential:
    """max_2x2(dropout(conv_1x1(relu(norm x))))."""
    return nn.Sequential(
        nn.BatchNorm2d(channels),
        nn.ReLU(inplace=True),
        conv2d(channels, channels, 1, bias=True),
        nn.Dropout2d(dropout),
        MaxPool2d(2),
    )


class FCDenseNet(Sampled):
    """Jegou et al., "The One Hundred Layers Tiramisu: Fully Convolutional DenseNets for Semantic
    Segmentation", CVPR workshops 2017, and with `aleatoric` the network of Kendall and Gal, "What
    Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?", NIPS 2017.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        depth: 57, 67 or 103.
        dropout: of whole channels, in every layer and transition.
        aleatoric: a second 1 x 1 convolution predicts the logarithm of each score's variance, for
            `segfast.losses.aleatoric_cross_entropy`.
        layout: "tiramisu" (bfortuner/pytorch_tiramisu, whose log-softmax is left to the caller).

    Shape:
        x [N, C, H, W] with H, W >= 32 -> [N, L, H, W]; so is the auxiliary "log_variance".
        In training N > 1 where H, W < 64.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import FCDenseNet
        >>> model = FCDenseNet(num_classes=11, depth=57, aleatoric=True).eval()
        >>> scores, aux = model(torch.randn(1, 3, 65, 97), return_aux=True)
        >>> scores.shape, aux["log_variance"].shape
        (torch.Size([1, 11, 65, 97]), torch.Size([1, 11, 65, 97]))
    """

    rules = LAYOUTS
    least = 32  # for five pools

    def __init__(
        self,
        num_classes: int = 11,
        in_channels: int = 3,
        depth: int = 103,
        dropout: float = 0.2,
        aleatoric: bool = False,
        layout: str = "tiramisu",
    ) -> None:
        super().__init__(num_classes, in_channels, layout)
        if depth not in tuple(SIZES):
            raise ValueError(f"depth must be one of {', '.join(map(str, SIZES))}; got {depth!r}")
        _check.not_negative("dropout", dropout)
        _check.require_bool("aleatoric", aleatoric)
        down, bottom, up, growth = SIZES[depth]
        self.first = conv2d(in_channels, FIRST, 3, bias=True)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        self.up, self.enlarge = nn.ModuleList(), nn.ModuleList()
        channels, skips = FIRST, []
        for layers in down:
            self.down.append(DenseBlock(channels, growth, layers, dropout))
            channels += growth * layers
            skips.append(channels)
            self.shrink.append(transition_down(channels, dropout))
        self.bottom = DenseBlock(channels, growth, bottom, dropout)
        new = growth * bottom
        for layers in up:
            self.enlarge.append(nn.ConvTranspose2d(new, new, 3, 2))
            channels = new + skips.pop()
            self.up.append(DenseBlock(channels, growth, layers, dropout))
            new = growth * layers
        self.classifier = nn.Conv2d(channels + new, num_classes, 1)
        self.log_variance = nn.Conv2d(channels + new, num_classes, 1) if aleatoric else None

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> maps [N, L, H, W]."""
        x = self.first(x)
        skips = []
        for block, shrink in zip(self.down, self.shrink, strict=True):
            skips.append(torch.cat([x, block(x)], 1))
            x = shrink(skips[-1])
        new = self.bottom(x)
        for block, enlarge in zip(self.up, self.enlarge, strict=True):
            skip = skips.pop()
            x = torch.cat([centred(enlarge(new), skip.shape[-2:]), skip], 1)
            new = block(x)
        x = torch.cat([x, new], 1)
        maps = {"out": self.classifier(x)}
        if aux and self.log_variance is not None:
            maps["log_variance"] = self.log_variance(x)
        return maps


# CamVid's, in pytorch_tiramisu.
IMAGES = Preprocessing(
    mean=(0.41189489566336, 0.4251328133025, 0.4326707089857),
    std=(0.27413549931506, 0.28506257482912, 0.28284674400252),
)
MODELS = tuple(
    Entry(
        f"fcdensenet{depth}",
        FCDenseNet,
        "Jegou et al., CVPRW 2017; SimJeg/FC-DenseNet, bfortuner/pytorch_tiramisu",
        {"depth": depth},
        num_classes=11,
        metrics={"CamVid test, mean IU (Kendall and Gal)": 67.1} if depth == 103 else {},
        images={"tiramisu": IMAGES},
    )
    for depth in SIZES
)
