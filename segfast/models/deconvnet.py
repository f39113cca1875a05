"""DeconvNet: VGG16 down to a vector, and its mirror of unpoolings and transposed convolutions up.

    image -> conv1 -> pool1 -> ... -> conv5 -> pool5 -> fc6 -> fc7 -> [N, 4096, 1, 1]
                        |                        | indices              |
    scores <- deconv1 <- unpool1 <- ... <- deconv5 <- unpool5 <- fc6_deconv

Its inputs are proposals, parts of an image that hold an object; `aggregate` puts their scores
together.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._layers import gaussian
from segfast.models._registry import Entry
from segfast.models._unpooling import decode, encode, mirrored, named_layers
from segfast.models.backbones import VGG16, VGG16_STAGES, fully_connected
from segfast.models.layouts.caffe import EPS
from segfast.models.layouts.deconvnet import LAYOUTS
from segfast.nn import MaxPool2d, MaxUnpool2d
from segfast.ops import _check

SMALLEST = 193  # pixels that five pools make 7 of, the kernel of fc6
SINGLE = 224  # up to here they make no more than 7: fc6 has one value per channel


class DeconvNet(SegmentationModel):
    """Noh, Hong and Han, "Learning Deconvolution Network for Semantic Segmentation", ICCV 2015,
    figure 2. Every convolution is normalised and rectified.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        layout: "caffe".

    Shape:
        x [N, C, H, W] -> [N, L, H, W], H and W at least 193 (published for 224). In training a
        single image must be larger than 224 on one side, or normalisations have one value.

    Raises:
        TypeError, ValueError: an argument breaks its contract, or x is too small; the message
            names it.

    Example:
        >>> import torch
        >>> with torch.device("meta"):  # 252 million parameters
        ...     scores = DeconvNet()(torch.empty(2, 3, 224, 224))
        >>> scores.shape
        torch.Size([2, 21, 224, 224])
    """

    def __init__(self, num_classes: int = 21, in_channels: int = 3, layout: str = "caffe") -> None:
        super().__init__(num_classes, in_channels)
        _check.require_choice("layout", layout, tuple(LAYOUTS))
        self.backbone = VGG16(in_channels, batch_norm=True, eps=EPS)
        self.pool = MaxPool2d(2, return_indices=True, ceil_mode=True)
        self.unpool = MaxUnpool2d(2)
        self.fc = fully_connected(512, eps=EPS)
        self.fc6_deconv = named_layers(["fc6_deconv"], [4096, 512], _deconv(7, 0), eps=EPS)
        self.decoder = nn.Sequential()
        for i, channels in mirrored(VGG16_STAGES, 64):
            names = [f"deconv{i}_{j}" for j in range(1, len(channels))]
            self.decoder.add_module(str(i), named_layers(names, channels, _deconv(3, 1), eps=EPS))
        self.seg_score = gaussian(nn.Conv2d(64, num_classes, 1))

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> [N, L, H, W]."""
        self._require_size(x)
        stages = [functools.partial(self.backbone.stage, i) for i in range(len(VGG16_STAGES))]
        x, pools = encode(x, stages, self.pool)
        x = self.fc6_deconv(self.fc(x))  # [N, 4096, 1, 1] of 224 x 224, and 7 x 7 again
        x = decode(x, self.decoder, self.unpool, pools)
        return {"out": self.seg_score(x)}

    def _require_size(self, x: Tensor) -> None:
        if min(x.shape[-2:]) < SMALLEST:
            raise ValueError(
                f"x must be at least {SMALLEST} pixels high and wide, got {_check.describe(x)}"
            )
        if self.training and x.shape[0] == 1 and max(x.shape[-2:]) <= SINGLE:
            raise ValueError(
                f"x must be several images in training, or larger than {SINGLE} on one side: batch "
                f"normalisation of one value per channel; got {_check.describe(x)}"
            )


def _deconv(kernel_size: int, padding: int) -> functools.partial[nn.Module]:
    return functools.partial(_transposed, kernel_size=kernel_size, padding=padding)


def _transposed(in_channels: int, out_channels: int, kernel_size: int, padding: int) -> nn.Module:
    return gaussian(nn.ConvTranspose2d(in_channels, out_channels, kernel_size, padding=padding))


REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"max": torch.maximum, "sum": torch.add}


def aggregate(
    score_maps: Tensor | Sequence[Tensor],  # [P, L, h, w], or P of [L, h_i, w_i]
    boxes: Tensor | Sequence[Sequence[int]],
    size: Sequence[int],
    mode: str = "max",
) -> Tensor:
    r"""Scores of the whole image from those of proposals: before softmax.

    .. math:: S = \max_i G_i \quad \text{or} \quad S = \sum_i G_i

    with G_i the scores of proposal i, resized to its box and zero outside it. DeconvNet, section
    4.3, equations 1 and 2.

    Args:
        score_maps: of every proposal.
        boxes: (left, top, right, bottom) of every proposal in pixels of the image, right and bottom
            exclusive; they may reach beyond the image.
        size: (H, W) of the image.
        mode: "max" or "sum".

    Returns:
        S [L, H, W].

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> aggregate(torch.ones(2, 1, 4, 4), [(0, 0, 2, 1), (1, 0, 4, 1)], (1, 4), mode="sum")
        tensor([[[1., 2., 1., 1.]]])
    """
    for name, values in (("score_maps", score_maps), ("boxes", boxes)):
        if not isinstance(values, (Tensor, list, tuple)):
            raise TypeError(f"{name} must be a tensor or a list, got {_check.describe(values)}")
    maps = list(score_maps)
    for y in maps:
        _check.require_floating("score_maps", y, "[L, h, w]")
    corners = boxes.tolist() if isinstance(boxes, Tensor) else list(boxes)
    height, width = _check.pair("size", size, 1)
    _check.require_choice("mode", mode, tuple(REDUCTIONS))
    if not maps or any(y.dim() != 3 or len(y) != len(maps[0]) for y in maps):
        raise ValueError("score_maps must be one or more of [L, h, w], with one L")
    if len(corners) != len(maps):
        raise ValueError(f"boxes must be {len(maps)}, one for each map; got {len(corners)}")
    placed = (_placed(y, box, height, width) for y, box in zip(maps, corners, strict=True))
    return functools.reduce(REDUCTIONS[mode], placed)


def _placed(y: Tensor, corner: Sequence[int], height: int, width: int) -> Tensor:
    """G_i: y [L, h, w] in its box, zero elsewhere: [L, height, width]."""
    left, top, right, bottom = _box(corner, height, width)
    y = F.interpolate(y[None], (bottom - top, right - left), mode="bilinear")[0]
    return F.pad(y, (left, width - right, top, height - bottom))  # negative: cut off


def _box(corner: Sequence[int], height: int, width: int) -> tuple[int, int, int, int]:
    if not isinstance(corner, (list, tuple)) or len(corner) != 4:
        raise TypeError(f"boxes must be of four integers, got {_check.describe(corner)}")
    if any(not isinstance(n, int) for n in corner):
        raise TypeError(f"boxes must be of four integers, got {_check.describe(corner)}")
    left, top, right, bottom = corner
    if not (left < right and top < bottom):
        raise ValueError(f"boxes must have left < right and top < bottom, got {corner}")
    if left >= width or right <= 0 or top >= height or bottom <= 0:
        raise ValueError(f"boxes must overlap the image of {height} x {width}, got {corner}")
    return left, top, right, bottom


MODELS = (
    Entry(
        "deconvnet",
        DeconvNet,
        "Noh, Hong and Han, ICCV 2015; their Caffe network",
        LAYOUTS,
        metrics={"VOC 2012 test, mean IU with FCN-8s and CRF": 72.5},
    ),
)
