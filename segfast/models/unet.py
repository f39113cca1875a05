"""U-Net: down, and up again beside the maps of the way down.

x -> 2 conv -------------------------------------------------> (up, skip) -> 2 conv -> scores
       | pool                                                      ^ up
       \\--> 2 conv ---------------------------------> (up, skip) -> 2 conv
              | pool    ...                               ^ up
              \\--> 2 conv -> ... -> 2 conv (the bottom) --/
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._layers import conv_bn_relu
from segfast.models._placement import reflected
from segfast.models._preprocessing import UNCHANGED
from segfast.models._registry import Entry
from segfast.models.layouts.unet import LAYOUTS
from segfast.nn import MaxPool2d
from segfast.ops import _check

LEVELS = 5
MARGIN = 92  # pixels that the valid convolutions take from each side


class Wiring(NamedTuple):
    """Where published U-Nets differ.

    Attributes:
        valid: convolutions without padding, as in the paper; normalised ones keep sizes.
        width: channels of the first level.
        up: "transposed" 2 x 2, "interpolated" and a 1 x 1 convolution, or "bilinear" (aligned
            corners) alone, which halves the channels of the bottom and in each pair of
            convolutions.
        up_relu: a ReLU after the transposed convolution.
        up_first: before the skip, where they meet.
        wide_up: the last transposed convolution has twice the channels of its level.
        dropout: after the two deepest levels.
        heads: 3 x 3 convolutions before the scores, and auxiliary scores one level below.
    """

    valid: bool = False
    width: int = 64
    up: str = "transposed"
    up_relu: bool = False
    up_first: bool = False
    wide_up: bool = False
    dropout: float = 0.0
    heads: bool = False


WIRINGS = {
    "paper": Wiring(valid=True, up_relu=True, up_first=True, dropout=0.5),
    "released": Wiring(valid=True, up_relu=True, up_first=True, dropout=0.5, wide_up=True),
    "milesial": Wiring(),
    "milesial_bilinear": Wiring(up="bilinear"),
    "mateuszbuda": Wiring(width=32, up_first=True),
    "mmseg": Wiring(up="interpolated", heads=True),
}


class UNet(SegmentationModel):
    """Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image
    Segmentation", MICCAI 2015.

    The paper's network takes images of H = 16 k - 4 >= 188 pixels and gives scores of the inner
    H - 184: `scores` does. A call takes any size: the image is mirrored at its borders as far as
    is needed (the paper's overlap-tile strategy), and scores are at its size. Weights start from
    N(0, 2 / fan_in), as the paper asks for.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        width: channels of the first level, twice as many at each below; None means as published.
        layout: "paper", "released" (the authors' network of 2015: 128 channels in the last
            up-convolution), or with padding and batch normalisation "milesial",
            "milesial_bilinear", "mateuszbuda" (width 32; its sigmoid is left to the caller) or
            "mmseg" (an auxiliary head).

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are "aux" (mmseg). Padded layouts give
        scores at the size of the image, which is best a multiple of 16.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import UNet
        >>> model = UNet(num_classes=2, in_channels=1, width=8).eval()
        >>> model(torch.randn(1, 1, 50, 70)).shape
        torch.Size([1, 2, 50, 70])
    """

    rules = LAYOUTS
    wirings = WIRINGS

    def __init__(
        self,
        num_classes: int = 2,
        in_channels: int = 3,
        width: int | None = None,
        layout: str = "paper",
    ) -> None:
        super().__init__(num_classes, in_channels, layout)
        wires = WIRINGS[layout]
        width = wires.width if width is None else width
        _check.require_count("width", width, 2)
        self.wires = wires
        self.least = 1 if wires.valid else 2 ** (LEVELS - 1)
        bilinear = wires.up == "bilinear"
        widths = [width * 2**i for i in range(LEVELS)]
        if bilinear:
            widths[-1] //= 2
        inputs = [in_channels, *widths[:-1]]
        self.enc = nn.ModuleList(
            convs(c, out, out, wires.valid) for c, out in zip(inputs, widths, strict=True)
        )
        self.pool = MaxPool2d(2)
        self.dropout = nn.Dropout(wires.dropout)
        self.up, self.dec = nn.ModuleList(), nn.ModuleList()
        below = widths[-1]
        for i in reversed(range(LEVELS - 1)):
            inside = width * 2**i
            up = 2 * inside if wires.wide_up and i == 0 else inside
            self.up.append(enlarging(below, up, wires))
            out = inside // 2 if bilinear and i > 0 else inside
            self.dec.append(convs(up + widths[i], inside, out, wires.valid))
            below = out
        self.head = nn.Conv2d(width, num_classes, 1)
        self.aux_head: nn.Module | None = None
        if wires.heads:
            self.head_conv: nn.Module = conv_bn_relu(width, width, 3)
            aux = conv_bn_relu(2 * width, width, 3)
            self.aux_head = nn.Sequential(*aux, nn.Dropout(0.1), nn.Conv2d(width, num_classes, 1))
            self.head_dropout = nn.Dropout(0.1)
        for conv in self.modules():
            if isinstance(conv, (nn.Conv2d, nn.ConvTranspose2d)):
                fan_in = conv.weight.numel() / conv.weight.shape[0]
                nn.init.normal_(conv.weight, std=(2 / fan_in) ** 0.5)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> [N, L, H - 184, W - 184] without padding, else [N, L, H, W]."""
        if self.wires.valid:
            _require_valid_size(x)
        skips = []
        for i, level in enumerate(self.enc):
            x = level(self.pool(x) if i else x)
            if i >= LEVELS - 2:
                x = self.dropout(x)
            skips.append(x)
        below = x = skips.pop()
        for up, level in zip(self.up, self.dec, strict=True):
            below, skip = x, skips.pop()
            y = up(x)
            if self.wires.valid:
                skip = centred(skip, y.shape[-2:])
            else:
                y = centred(y, skip.shape[-2:])
            x = level(torch.cat([y, skip] if self.wires.up_first else [skip, y], 1))
        if self.aux_head is None:
            return {"out": self.head(x)}
        maps = {"out": self.head(self.head_dropout(self.head_conv(x)))}
        return maps | {"aux": self.aux_head(below)} if aux else maps

    def prepared(self, x: Tensor) -> Tensor:
        """x [N, C, H, W], mirrored as far as convolutions without padding need it."""
        for dim in (2, 3) if self.wires.valid else ():
            x = reflected(x, dim, MARGIN, MARGIN + (-x.shape[dim] - 2 * MARGIN - 4) % 16)
        return x

    def at_input_size(self, y: Tensor, size: Any) -> Tensor:
        """[N, L, h, w] -> [N, L, *size]: without padding h and w exceed the image's, by mirrors."""
        if self.wires.valid:
            return y[..., : size[0], : size[1]]
        return super().at_input_size(y, size)


def convs(channels: int, inside: int, out: int, valid: bool) -> nn.Sequential:
    """Two 3 x 3 convolutions, each with its ReLU; normalised where they are padded."""
    if valid:
        first, second = nn.Conv2d(channels, inside, 3), nn.Conv2d(inside, out, 3)
        return nn.Sequential(first, nn.ReLU(inplace=True), second, nn.ReLU(inplace=True))
    return nn.Sequential(*conv_bn_relu(channels, inside, 3), *conv_bn_relu(inside, out, 3))


def enlarging(channels: int, out: int, wires: Wiring) -> nn.Module:
    """Twice as large."""
    if wires.up == "bilinear":
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
    if wires.up == "interpolated":
        twice = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        return nn.Sequential(twice, *conv_bn_relu(channels, out, 1))
    up = nn.ConvTranspose2d(channels, out, 2, 2)
    return nn.Sequential(up, nn.ReLU(inplace=True)) if wires.up_relu else nn.Sequential(up)


def centred(x: Tensor, size: torch.Size) -> Tensor:
    """The middle of x, or x in the middle of zeros: [N, C, *size]; what is odd is at the end."""
    before = [int((n - have) / 2) for n, have in zip(size, x.shape[-2:], strict=True)]
    after = [n - have - b for n, have, b in zip(size, x.shape[-2:], before, strict=True)]
    if not any(before + after):
        return x
    return F.pad(x, (before[1], after[1], before[0], after[0]))


def _require_valid_size(x: Tensor) -> None:
    if any(n < 2 * MARGIN + 4 or (n + 4) % 16 for n in x.shape[-2:]):
        raise ValueError(
            "x must have a height and a width of 16 k - 4, at least 188, without padding; got "
            f"{_check.describe(x)} (a call of the model takes any size)"
        )


SOURCE = "Ronneberger et al., MICCAI 2015; released u-net, milesial, mateuszbuda, mmseg"
MODELS = (
    Entry(
        "unet",
        UNet,
        SOURCE,
        num_classes=2,
        metrics={
            "ISBI cell tracking challenge 2015, PhC-U373, IoU": 92.03,
            "ISBI cell tracking challenge 2015, DIC-HeLa, IoU": 77.56,
        },
        images=dict.fromkeys(("milesial", "milesial_bilinear"), UNCHANGED),
    ),
)
