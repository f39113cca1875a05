"""SegNet: an encoder whose pools remember where their maxima were, a decoder that unpools there.

image -> conv1 -> pool1 -> conv2 -> pool2 -> ... -> conv5 -> pool5
           |                 |                        |        |  indices
scores <- conv1_D <- unpool1 <- conv2_D <- ... <- conv5_D <- unpool5
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple

from torch import Tensor, nn

from segfast.models._layers import LocalResponseNorm, conv2d, msra
from segfast.models._monte_carlo import Sampled
from segfast.models._preprocessing import Preprocessing
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


class _PoolAndUnpool(Sampled):
    """What both networks do; they differ in their stages."""

    def __init__(self, num_classes: int, in_channels: int, dropout: float, layout: str) -> None:
        super().__init__(num_classes, in_channels, layout)
        _check.not_negative("dropout", dropout)
        self.wires: Wiring = self.wirings[layout]
        self.dropout = dropout
        self.pool = MaxPool2d(2, return_indices=True, ceil_mode=self.wires.ceil)
        self.unpool = MaxUnpool2d(2)

    def mirror(self, stages: Mapping[int, nn.Sequential]) -> None:
        """Makes the decoder of these, by their numbers, the deepest first."""
        self.encdrop = nn.Sequential(*(self._dropout(i) for i in sorted(stages)))
        self.decoder = nn.Sequential()
        self.least = 1 if self.wires.ceil else 2 ** len(stages)
        for i, stage in stages.items():
            stage.add_module(f"decdrop{i}", self._dropout(i))
            self.decoder.add_module(str(i), stage)

    def _dropout(self, stage: int) -> nn.Module:
        """Bayesian SegNet's, in the stages from the third."""
        return nn.Dropout(self.dropout) if stage >= 3 and self.dropout else nn.Identity()

    def stages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """Of the encoder."""
        raise NotImplementedError

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> [N, L, H, W]."""
        x, pools = encode(x, self.stages(), self.pool, self.encdrop)
        return {"out": decode(x, self.decoder, self.unpool, pools)}


class SegNet(_PoolAndUnpool):
    """Badrinarayanan, Kendall and Cipolla, "SegNet", TPAMI 2017, figure 2; with dropout Kendall,
    Badrinarayanan and Cipolla's Bayesian SegNet (BMVC 2017).

    Args:
        num_classes, in_channels: L of the scores, C of the image.
        dropout: probability, behind pool3 to pool5 and conv5_D to conv3_D; Bayesian SegNet has 0.5.
        layout: "caffe", "ptsemseg" (the last convolution is normalised and rectified too) or
            "yassouali" (one more convolution in the last stage).

    Shape:
        x [N, C, H, W] -> [N, L, H, W], of any size (32 pixels at least, but in "caffe", whose pools
        round up): every unpooling gives back the size that was pooled.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import SegNet
        >>> model = SegNet(num_classes=3, dropout=0.5).eval()
        >>> model(torch.randn(1, 3, 45, 60)).shape
        torch.Size([1, 3, 45, 60])
        >>> mean, variance = model.predict(torch.randn(1, 3, 45, 60), samples=2)
        >>> mean.shape, variance.shape
        (torch.Size([1, 3, 45, 60]), torch.Size([1, 45, 60]))
    """

    rules = LAYOUTS
    wirings = WIRINGS

    def __init__(
        self,
        num_classes: int = 11,
        in_channels: int = 3,
        dropout: float = 0.0,
        layout: str = "caffe",
    ) -> None:
        super().__init__(num_classes, in_channels, dropout, layout)
        eps = self.wires.eps
        self.backbone = VGG16(in_channels, batch_norm=True, eps=eps)
        conv = functools.partial(conv2d, kernel_size=3, bias=True)
        plain = ("conv1_1_D",) if self.wires.plain else ()
        stages = {}
        for i, channels in mirrored(VGG16_STAGES, num_classes):
            if i == 1:
                channels = [64] * self.wires.extra + channels
            names = [f"conv{i}_{j}_D" for j in range(len(channels) - 1, 0, -1)]
            stages[i] = named_layers(names, channels, conv, eps=eps, plain=plain)
        self.mirror(stages)
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
        >>> from segfast.models import SegNetBasic
        >>> model = SegNetBasic(num_classes=3).eval()
        >>> model(torch.randn(1, 3, 45, 60)).shape
        torch.Size([1, 3, 45, 60])
    """

    rules = BASIC
    wirings: ClassVar[Mapping[str, Wiring]] = {"caffe": WIRINGS["caffe"]}

    def __init__(
        self,
        num_classes: int = 11,
        in_channels: int = 3,
        dropout: float = 0.0,
        layout: str = "caffe",
    ) -> None:
        super().__init__(num_classes, in_channels, dropout, layout)
        conv = functools.partial(conv2d, kernel_size=7, bias=True)
        layers = functools.partial(named_layers, conv=conv, eps=self.wires.eps)
        self.norm = LocalResponseNorm()
        self.encoder = nn.Sequential()
        for i, channels in enumerate((in_channels, 64, 64, 64), 1):
            self.encoder.add_module(str(i), layers([f"conv{i}"], [channels, 64]))
        decoder = {i: layers([f"conv_decode{i}"], [64, 64], relu=False) for i in (4, 3, 2, 1)}
        self.mirror(decoder)
        self.classifier = nn.Conv2d(64, num_classes, 1)
        msra(self)

    def stages(self) -> Sequence[Callable[[Tensor], Tensor]]:
        """One convolution each."""
        return list(self.encoder)

    def scores(self, x: Tensor, aux: bool = False) -> dict[str, Tensor]:
        """x [N, C, H, W] -> [N, L, H, W]."""
        return {"out": self.classifier(super().scores(self.norm(x))["out"])}


SEGNET = "Badrinarayanan, Kendall and Cipolla, TPAMI 2017; SegNet-Tutorial"
BAYESIAN = "Kendall, Badrinarayanan and Cipolla, BMVC 2017; SegNet-Tutorial"
METRICS = {  # after 140,000 iterations
    "CamVid test, trained on 3,500 images, class average": 71.20,
    "CamVid test, trained on 3,500 images, global accuracy": 90.40,
    "CamVid test, trained on 3,500 images, mean IU": 60.10,
    "CamVid test, trained on 3,500 images, boundary F1": 46.84,
}
# Of the classes in the loss of the released networks, label 11 (nothing) ignored. As published:
# the labels that came with them have other frequencies.
CAMVID_WEIGHTS = (
    0.2595, 0.1826, 4.5640, 0.1417, 0.9051, 0.3826, 9.6446, 1.8418, 0.6823, 6.2478, 7.3614,
)  # fmt: skip
# Of the Caffe networks; pytorch-semseg has changed its own, yassouali has one for every data set.
IMAGES = {"caffe": Preprocessing("BGR", 255.0)}

MODELS = (
    Entry("segnet", SegNet, SEGNET, {}, 11, METRICS, IMAGES),
    Entry("segnet_basic", SegNetBasic, SEGNET, {}, 11, {}, IMAGES),
    Entry("bayesian_segnet", SegNet, BAYESIAN, {"dropout": 0.5}, 11, {}, IMAGES),
    Entry("bayesian_segnet_basic", SegNetBasic, BAYESIAN, {"dropout": 0.5}, 11, {}, IMAGES),
)
