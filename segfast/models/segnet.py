"""SegNet: an encoder whose pools remember where their maxima were, a decoder that unpools there.

image -> conv1 -> pool1 -> conv2 -> pool2 -> ... -> conv5 -> pool5
           |                 |                        |        |  indices
scores <- conv1_D <- unpool1 <- conv2_D <- ... <- conv5_D <- unpool5
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.models._layers import conv2d, msra
from segfast.models._monte_carlo import Prediction, monte_carlo
from segfast.models._registry import Entry
from segfast.models._unpooling import decode, encode, mirrored, named_layers
from segfast.models.backbones import VGG16, VGG16_STAGES
from segfast.models.layouts.caffe import EPS
from segfast.models.layouts.segnet import BASIC, LAYOUTS
from segfast.nn import MaxPool2d, MaxUnpool2d
from segfast.ops import _check


class Wiring(NamedTuple):
    """Where published SegNets differ.

    Attributes:
        eps: of the normalisations.
        ceil: pools round their size up.
        extra: convolutions more in the decoder's last stage.
        plain: the last convolution has no normalisation and no ReLU.
    """

    eps: float = 1e-5
    ceil: bool = False
    extra: int = 0
    plain: bool = True


WIRINGS = {
    "caffe": Wiring(eps=EPS, ceil=True),
    "ptsemseg": Wiring(plain=False),
    "yassouali": Wiring(extra=1),
}


class _PoolAndUnpool(SegmentationModel):
    """What both networks do; they differ in their stages."""

    decoder: nn.Sequential

    def __init__(
        self, num_classes: int, in_channels: int, depth: int, dropout: float, ceil: bool
    ) -> None:
        super().__init__(num_classes, in_channels)
        _check.not_negative("dropout", dropout)
        self.pool = MaxPool2d(2, return_indices=True, ceil_mode=ceil)
        self.unpool = MaxUnpool2d(2)
        # Bayesian SegNet: behind every pool from the third
        self.encdrop = nn.Sequential(*(_dropout(dropout, i >= 2) for i in range(depth)))

    def stages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Of the encoder."""
        raise NotImplementedError

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> [N, L, H, W]."""
        x, pools = encode(x, self.stages(), self.pool, self.encdrop)
        return {"out": decode(x, self.decoder, self.unpool, pools)}

    def predict(self, x: Tensor, samples: int) -> Prediction:
        """Bayesian SegNet's probabilities and uncertainty: dropout stays on, and is averaged over.

            mean = 1/T sum_t p_t,   variance = 1/L sum_l 1/T sum_t (p_t - mean)^2

        Args:
            x: [N, C, H, W].
            samples: T; drawn from PyTorch's generator.

        Returns:
            (mean [N, L, H, W], variance [N, H, W]).
        """
        return monte_carlo(self, x, samples)


class SegNet(_PoolAndUnpool):
    """Badrinarayanan, Kendall and Cipolla, "SegNet", TPAMI 2017, figure 2; with dropout Kendall,
    Badrinarayanan and Cipolla's Bayesian SegNet (BMVC 2017).

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        dropout: probability, behind pool3 to pool5 and conv5_D to conv3_D; Bayesian SegNet has 0.5.
        layout: "caffe", "ptsemseg" (the last convolution is normalised and rectified too) or
            "yassouali" (one more convolution in the last stage).

    Shape:
        x [N, C, H, W] -> [N, L, H, W], of any size: every unpooling gives back the size
        that was pooled.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> model = SegNet(num_classes=3, dropout=0.5).eval()
        >>> model(torch.randn(1, 3, 45, 60)).shape
        torch.Size([1, 3, 45, 60])
        >>> mean, variance = model.predict(torch.randn(1, 3, 45, 60), samples=2)
        >>> mean.shape, variance.shape
        (torch.Size([1, 3, 45, 60]), torch.Size([1, 45, 60]))
    """

    def __init__(
        self,
        num_classes: int = 11,
        in_channels: int = 3,
        dropout: float = 0.0,
        layout: str = "caffe",
    ) -> None:
        _check.require_choice("layout", layout, tuple(WIRINGS))
        wires = WIRINGS[layout]
        super().__init__(num_classes, in_channels, len(VGG16_STAGES), dropout, wires.ceil)
        self.backbone = VGG16(in_channels, batch_norm=True, eps=wires.eps)
        conv = functools.partial(conv2d, kernel_size=3, bias=True)
        plain = ("conv1_1_D",) if wires.plain else ()
        self.decoder = nn.Sequential()
        for i, channels in mirrored(VGG16_STAGES, num_classes):
            if i == 1:
                channels = [64] * wires.extra + channels
            names = [f"conv{i}_{j}_D" for j in range(len(channels) - 1, 0, -1)]
            stage = named_layers(names, channels, conv, eps=wires.eps, plain=plain)
            stage.add_module(f"decdrop{i}", _dropout(dropout, i >= 3))
            self.decoder.add_module(str(i), stage)
        msra(self)

    def stages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """VGG16's."""
        return [functools.partial(self.backbone.stage, i) for i in range(len(VGG16_STAGES))]


class SegNetBasic(_PoolAndUnpool):
    """SegNet-Basic, "SegNet", section 4: four stages of one 7 x 7 convolution to 64 channels.

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        dropout: probability, behind pool3, pool4, conv_decode4 and conv_decode3.
        layout: "caffe".

    The image is normalised over its channels (`torch.nn.LocalResponseNorm`); the decoder has no
    ReLU.

    Shape:
        x [N, C, H, W] -> [N, L, H, W], of any size.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> model = SegNetBasic(num_classes=3).eval()
        >>> model(torch.randn(1, 3, 45, 60)).shape
        torch.Size([1, 3, 45, 60])
    """

    def __init__(
        self,
        num_classes: int = 11,
        in_channels: int = 3,
        dropout: float = 0.0,
        layout: str = "caffe",
    ) -> None:
        _check.require_choice("layout", layout, tuple(BASIC))
        super().__init__(num_classes, in_channels, 4, dropout, ceil=True)
        conv = functools.partial(conv2d, kernel_size=7, bias=True)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        channels = in_channels
        for i in range(1, 5):
            stage = named_layers([f"conv{i}"], [channels, 64], conv, eps=EPS)
            self.encoder.add_module(str(i), stage)
            channels = 64
        for i in range(4, 0, -1):
            stage = named_layers([f"conv_decode{i}"], [64, 64], conv, eps=EPS, relu=False)
            stage.add_module(f"decdrop{i}", _dropout(dropout, i >= 3))
            self.decoder.add_module(str(i), stage)
        self.classifier = nn.Conv2d(64, num_classes, 1)
        msra(self)

    def stages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """One convolution each."""
        return list(self.encoder)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> [N, L, H, W]."""
        return {"out": self.classifier(super().scores(self.norm(x))["out"])}


def _dropout(probability: float, here: bool) -> nn.Module:
    return nn.Dropout(probability) if here and probability else nn.Identity()


_SEGNET = "Badrinarayanan, Kendall and Cipolla, TPAMI 2017; SegNet-Tutorial"
_BAYESIAN = "Kendall, Badrinarayanan and Cipolla, BMVC 2017; SegNet-Tutorial"
_METRICS = {
    "CamVid test, class average": 71.20,
    "CamVid test, global accuracy": 90.40,
    "CamVid test, mean IU": 60.10,
    "CamVid test, boundary F1": 46.84,
}

MODELS = (
    Entry("segnet", SegNet, _SEGNET, LAYOUTS, num_classes=11, metrics=_METRICS),
    Entry("segnet_basic", SegNetBasic, _SEGNET, BASIC, num_classes=11),
    Entry("bayesian_segnet", SegNet, _BAYESIAN, LAYOUTS, {"dropout": 0.5}, 11),
    Entry("bayesian_segnet_basic", SegNetBasic, _BAYESIAN, BASIC, {"dropout": 0.5}, 11),
)
