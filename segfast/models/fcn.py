"""Fully convolutional networks: a classifier's layers as convolutions, its scores brought back up.

    image -> classifier -> fc7, stride 32 -> score_fr -> up by 32 ------------------------> FCN-32s
                                             score_fr -> up by 2
             pool4, stride 16 -> score_pool4 --------> + -> up by 16 ---------------------> FCN-16s
                                                       + -> up by 2
             pool3, stride 8 --> score_pool3 ------------------> + -> up by 8 ------------> FCN-8s

The image is padded so far that every size fits; what comes out is cropped to where it belongs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._keys import Rules
from segfast.models._preprocessing import FCN as IMAGES
from segfast.models._registry import Entry
from segfast.models.backbones import AlexNet, GoogLeNet, PooledVGG16, fully_connected
from segfast.models.layouts.fcn import ALEXNET_LAYOUTS, GOOGLENET_LAYOUTS, LAYOUTS
from segfast.nn import BilinearConvTranspose2d
from segfast.ops import _check


class Trunk(NamedTuple):
    """A classifier made convolutional, and how its maps lie over the image.

    Attributes:
        backbone: in_channels -> x -> maps.
        top: what makes the map that is scored of the last one.
        taps: which maps have strides 32, 16 and 8.
        channels: of the top, and of the maps of strides 16 and 8.
        crops: stride of the network -> offsets, of each skip and of the scores.
        odd: transposed convolutions by s have 2 s - odd taps: so that offsets are whole numbers.
        rules: of its published keys.
    """

    backbone: Callable[[int], nn.Module]
    top: Callable[[], nn.Module]
    taps: tuple[int, int, int]
    channels: tuple[int, int, int]
    crops: Mapping[int, tuple[int, ...]]
    odd: int
    rules: Mapping[str, Rules]


def _average() -> nn.Module:
    return nn.Sequential(nn.AvgPool2d(7, 1), nn.Dropout(0.4))


# Published are VGG16's three and AlexNet at stride 32. The other offsets follow by the same rule
# from strides and paddings; GoogLeNet's padding is the least that fits every size so.
TRUNKS = {
    "vgg16": Trunk(
        partial(PooledVGG16, ceil=True, first_padding=100),
        partial(fully_connected, 512, 4096, 7),
        (4, 3, 2),
        (4096, 512, 256),
        {32: (19,), 16: (5, 27), 8: (5, 9, 31)},
        odd=0,
        rules=LAYOUTS,
    ),
    "alexnet": Trunk(
        partial(AlexNet, wiring="caffe", first_padding=100),
        partial(fully_connected, 256, 4096, 6),
        (2, 1, 0),
        (4096, 256, 96),
        {32: (18,), 16: (5, 18), 8: (5, 10, 18)},
        odd=1,
        rules=ALEXNET_LAYOUTS,
    ),
    "googlenet": Trunk(
        partial(GoogLeNet, wiring="caffe", first_padding=114),
        _average,
        (5, 2, 1),
        (1024, 480, 192),
        {32: (16,), 16: (6, 16), 8: (6, 12, 16)},
        odd=1,
        rules=GOOGLENET_LAYOUTS,
    ),
    "googlenet_without_pool": Trunk(
        partial(GoogLeNet, wiring="caffe", first_padding=26),
        partial(nn.Dropout, 0.4),
        (5, 2, 1),
        (1024, 480, 192),
        {32: (24,), 16: (0, 24), 8: (0, 0, 24)},
        odd=1,
        rules=GOOGLENET_LAYOUTS,
    ),
}
SCALES = (0.01, 0.0001)  # of pool4 and pool3 where all is trained at once


class FCN(SegmentationModel):
    """Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR
    2015 and PAMI 2017.

    The released networks take BGR images, 0 to 255, less (104.00699, 116.66877, 122.67892). A
    second modality is either more `in_channels` (early fusion) or a network of its own, in
    :class:`LateFusion`.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        backbone: "vgg16", "alexnet" (CaffeNet), "googlenet" (BVLC's with its 7 x 7 average pool, as
            the paper's table counts the field of view: 907) or "googlenet_without_pool" (as its
            text recommends: 715).
        stride: of the finest scores: 32, 16 or 8.
        at_once: skips are scaled by 0.01 and 0.0001, to be trained together; else stage by stage,
            see :meth:`start_from`. There are none at stride 32.
        heads: more scores of the same maps: name -> number of classes. SIFT Flow's network has
            ``{"geometric": 3}`` beside 33 semantic classes.
        upscore2_bias: the transposed convolution before the first skip has a bias (CRF-RNN's has).
        layout: "caffe", or of VGG16 "wkentaro", which names its parameters alike. Names of `heads`
            other than "geometric" were not published: their keys are ours.

    Score layers start as zero and transposed convolutions as bilinear interpolation, as published;
    the released networks keep the latter so (``requires_grad_(False)``).

    Shape:
        x [N, C, H, W] -> [N, L, H, W]; the auxiliary scores are those of `heads`, by their names.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import FCN
        >>> model = FCN(2, backbone="googlenet", stride=8, heads={"geometric": 3}).eval()
        >>> out, aux = model(torch.randn(1, 3, 33, 50), return_aux=True)
        >>> out.shape, aux["geometric"].shape
        (torch.Size([1, 2, 33, 50]), torch.Size([1, 3, 33, 50]))
    """

    def __init__(
        self,
        num_classes: int = 21,
        in_channels: int = 3,
        backbone: str = "vgg16",
        stride: int = 32,
        at_once: bool = False,
        heads: Mapping[str, int] | None = None,
        upscore2_bias: bool = False,
        layout: str = "caffe",
    ) -> None:
        _check.require_choice("backbone", backbone, tuple(TRUNKS))
        super().__init__(num_classes, in_channels, layout, variant=backbone)
        if stride not in (32, 16, 8):
            raise ValueError(f"stride must be 32, 16 or 8, got {_check.describe(stride)}")
        _check.require_bool("at_once", at_once)
        _check.require_bool("upscore2_bias", upscore2_bias)
        for name, value in (("at_once", at_once), ("upscore2_bias", upscore2_bias)):
            if value and stride == 32:
                raise ValueError(f"{name} is of skips, which a network of stride 32 has not")
        trunk = TRUNKS[backbone]
        head = partial(SkipHead, trunk, stride, at_once, upscore2_bias)
        self.taps, self.stride = trunk.taps, stride
        self.backbone = trunk.backbone(in_channels)
        self.classifier = trunk.top()
        self.head = head(num_classes)
        self.heads = nn.ModuleDict({name: head(n) for name, n in _heads(heads).items()})

    @classmethod
    def layouts_of(cls, variant: str) -> Mapping[str, Rules]:
        """Of a backbone."""
        return TRUNKS[variant].rules

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> "out" [N, L, H, W], and those of the other heads."""
        maps = self.backbone(x)
        last, pool4, pool3 = (maps[tap] for tap in self.taps)
        top = self.classifier(last)
        found = {"out": self.head(top, pool4, pool3, x.shape[-2:])}
        for name, head in self.heads.items() if aux else ():
            found[name] = head(top, pool4, pool3, x.shape[-2:])
        return found

    @torch.no_grad()
    def start_from(self, coarser: FCN) -> FCN:
        """Takes all that a network of a coarser stride has learned: the next stage of training.

        What is new, the score layer of the skip, is left at zero; the last interpolation is this
        network's own.

        Raises:
            TypeError, ValueError: `coarser` is no FCN, or not one that this one extends.

        Example:
            >>> import torch
            >>> from segfast.models import FCN
            >>> coarse = FCN(2, backbone="googlenet", stride=32)
            >>> fine = FCN(2, backbone="googlenet", stride=16).start_from(coarse)
            >>> torch.equal(fine.head.score_fr.weight, coarse.head.score_fr.weight)
            True
        """
        if not isinstance(coarser, FCN):
            raise TypeError(f"coarser must be an FCN, got {type(coarser).__name__}")
        ours = self.state_dict()
        theirs = {k: v for k, v in coarser.state_dict().items() if ".upscore." not in k}
        for key, value in theirs.items():
            if key not in ours or ours[key].shape != value.shape:
                raise ValueError(
                    f"coarser must be this network with fewer skips: its {key} of shape "
                    f"{tuple(value.shape)} has no place here"
                )
        for key, value in theirs.items():
            ours[key].copy_(value)
        return self


def _heads(heads: Mapping[str, int] | None) -> dict[str, int]:
    if not isinstance(heads, Mapping | None):
        raise TypeError(f"heads must be name -> classes, got {_check.describe(heads)}")
    for name, classes in (heads or {}).items():
        if not isinstance(name, str) or name == "out":
            raise ValueError(f"heads must have names other than 'out', got {name!r}")
        _check.require_count(f"heads[{name!r}]", classes, 1)
    return dict(heads or {})


class SkipHead(nn.Module):
    """Scores of the coarsest map, doubled in size and added to those of finer ones."""

    def __init__(
        self, trunk: Trunk, stride: int, at_once: bool, upscore2_bias: bool, num_classes: int
    ) -> None:
        super().__init__()
        up = partial(_upscore, num_classes, trunk.odd)
        self.crops = trunk.crops[stride]
        self.scales = SCALES if at_once else (1.0, 1.0)
        self.stride = stride
        top, pool4, pool3 = trunk.channels
        self.score_fr = _score(top, num_classes)
        if stride <= 16:
            self.upscore2 = up(2, bias=upscore2_bias)
            self.score_pool4 = _score(pool4, num_classes)
        if stride <= 8:
            self.upscore_pool4 = up(2)
            self.score_pool3 = _score(pool3, num_classes)
        self.upscore = up(stride)

    def forward(self, top: Tensor, pool4: Tensor, pool3: Tensor, size: Sequence[int]) -> Tensor:
        """Maps of strides 32, 16 and 8 -> scores [N, L, *size]."""
        y = self.score_fr(top)
        if self.stride <= 16:
            skip = self.score_pool4(_times(pool4, self.scales[0]))
            y = fused(self.upscore2(y), skip, self.crops[0])
        if self.stride <= 8:
            skip = self.score_pool3(_times(pool3, self.scales[1]))
            y = fused(self.upscore_pool4(y), skip, self.crops[1])
        return cropped(self.upscore(y), self.crops[-1], size)


def _score(channels: int, num_classes: int) -> nn.Conv2d:
    conv = nn.Conv2d(channels, num_classes, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


def _upscore(num_classes: int, odd: int, scale: int, bias: bool = False) -> nn.Module:
    return BilinearConvTranspose2d(
        num_classes, scale_factor=scale, bias=bias, kernel_size=2 * scale - odd, padding=0
    )


def _times(x: Tensor, scale: float) -> Tensor:
    return x if scale == 1 else x * scale


def cropped(x: Tensor, offset: int, size: Sequence[int]) -> Tensor:
    """x [N, C, H, W] -> [N, C, *size], from `offset` on both axes."""
    height, width = size
    return x[..., offset : offset + height, offset : offset + width]


def fused(y: Tensor, skip: Tensor, offset: int) -> Tensor:
    """y + skip from `offset` on: [N, L, h, w], where they are over each other."""
    size = [min(a, b - offset) for a, b in zip(y.shape[-2:], skip.shape[-2:], strict=True)]
    return cropped(y, 0, size) + cropped(skip, offset, size)


SOURCE = "Long, Shelhamer and Darrell, CVPR 2015; shelhamer/fcn.berkeleyvision.org"
VAL, RELEASED = "VOC 2011 val, mean IU", "seg11valid, mean IU of the released network"
METRICS = {
    "fcn32s_vgg16": {VAL: 59.4, RELEASED: 63.6},
    "fcn16s_vgg16": {VAL: 62.4, RELEASED: 65.0},
    "fcn8s_vgg16": {VAL: 62.7, RELEASED: 65.5, "VOC 2012 test, mean IU": 62.2},
    "fcn8s_vgg16_atonce": {RELEASED: 65.4},
    "fcn32s_alexnet": {VAL: 39.8, RELEASED: 48.0},
    "fcn32s_googlenet": {VAL: 42.5},
}


def _entry(name: str, **options: Any) -> Entry:
    metrics = METRICS.get(name, {})
    return Entry(name, FCN, SOURCE, options, metrics=metrics, images={"caffe": IMAGES})


MODELS = (
    *(
        _entry(f"fcn{stride}s_{backbone}", backbone=backbone, stride=stride)
        for backbone in ("vgg16", "alexnet", "googlenet")
        for stride in (32, 16, 8)
    ),
    _entry("fcn8s_vgg16_atonce", stride=8, at_once=True),
)
