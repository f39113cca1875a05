"""The classifiers that backbones were published as."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from segfast.models._layers import conv_bn_relu
from segfast.models.backbones.alexnet import AlexNet
from segfast.models.backbones.googlenet import GoogLeNet, Unit
from segfast.models.backbones.hrnet import HRNet
from segfast.models.backbones.mobilenet_v3 import MobileNetV3
from segfast.models.backbones.resnet import Bottleneck
from segfast.models.backbones.vgg import PooledVGG16
from segfast.ops import _check


class Classifier(nn.Module):
    """One score per class of the whole image: a backbone, a pool, fully connected layers.

    Args:
        backbone: x -> maps.
        pool: of the map that is read, to a fixed size.
        classifier: of the pooled map's numbers, flattened.
        aux: name -> (which of the maps, what makes scores of it).
        join: what makes the map that is read of all maps; None reads the last one.
        fixed: size of the map that the last layers take, and of an image that gives it; None where
            the pool makes one size of any.

    Shape:
        x [N, C, H, W] -> [N, L], or with `return_aux` that and a dict of the auxiliary scores.
        State: backbone, join, classifier, aux.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pool: nn.Module,
        classifier: nn.Module,
        aux: Mapping[str, tuple[int, nn.Module]] | None = None,
        join: nn.Module | None = None,
        fixed: tuple[int, int] | None = None,
    ) -> None:
        super().__init__()
        self.fixed = fixed
        aux = aux or {}
        self.backbone, self.join = backbone, join
        self.pool, self.classifier = pool, classifier
        self.aux = nn.ModuleDict({name: head for name, (_, head) in aux.items()})
        self.taps = {name: tap for name, (tap, _) in aux.items()}

    def forward(self, x: Tensor, return_aux: bool = False) -> Any:
        """x [N, C, H, W] -> [N, L], or that and {name: [N, L]}."""
        maps = self.backbone(x)
        last = maps[-1] if self.join is None else self.join(maps)
        if self.fixed is not None and last.shape[-2:] != (self.fixed[0],) * 2:
            side, image = self.fixed
            raise ValueError(
                f"x must be {image} x {image} pixels, or give a last map of {side} x {side}; got "
                f"{_check.describe(x)}, which gives {tuple(last.shape[-2:])}"
            )
        out = self.classifier(torch.flatten(self.pool(last), 1))
        if not return_aux:
            return out
        return out, {name: head(maps[self.taps[name]]) for name, head in self.aux.items()}


class AuxClassifier(nn.Sequential):
    """GoogLeNet's on a middle layer: pool to 4 x 4, 1 x 1 to 128, 1024, dropout, scores."""

    def __init__(self, channels: int, num_classes: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(4)
        self.conv = Unit(channels, 128, 1, batch_norm=True)
        self.flatten = nn.Flatten()
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)


WIDTHS = (32, 64, 128, 256)  # of the bottlenecks on HRNet's four maps


class Descent(nn.Module):
    """HRNet's maps y_i, of strides 4 to 32, as one: g(z_3), z_i = f_i(y_i) + d_i(z_{i-1}).

    f_i is a bottleneck to 128 2^i channels, d_i a 3 x 3 with stride 2, g a 1 x 1 to 2048. State as
    published: incre_modules, downsamp_modules, final_layer.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.incre_modules = nn.ModuleList(
            nn.Sequential(Bottleneck(c, width)) for c, width in zip(channels, WIDTHS, strict=True)
        )
        self.downsamp_modules = nn.ModuleList(
            conv_bn_relu(4 * width, 8 * width, 3, 2, bias=True) for width in WIDTHS[:-1]
        )
        self.final_layer = conv_bn_relu(4 * WIDTHS[-1], 2048, 1, bias=True)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps [N, c_i, h_i, w_i] -> [N, 2048, h_3, w_3]."""
        first, *wider = (f(y) for f, y in zip(self.incre_modules, maps, strict=True))
        z = first
        for down, y in zip(self.downsamp_modules, wider, strict=True):
            z = y + down(z)
        return self.final_layer(z)


def linear(backbone: Any, num_classes: int, dropout: float = 0.0) -> Classifier:
    scores = nn.Linear(backbone.channels[-1], num_classes)
    end: nn.Module = nn.Sequential(nn.Dropout(dropout), scores) if dropout else scores
    return Classifier(backbone, nn.AdaptiveAvgPool2d(1), end)


def _two_hidden(
    backbone: Any,
    num_classes: int,
    pool: nn.Module,
    size: int,
    dropout_first: bool = False,
    fixed: tuple[int, int] | None = None,
) -> Classifier:
    features = backbone.channels[-1] * size**2
    layers: list[nn.Module] = []
    for width in (features, 4096):
        hidden = [nn.Linear(width, 4096), nn.ReLU(inplace=True)]
        layers += [nn.Dropout(), *hidden] if dropout_first else [*hidden, nn.Dropout()]
    layers.append(nn.Linear(4096, num_classes))
    return Classifier(backbone, pool, nn.Sequential(*layers), fixed=fixed)


def alexnet(backbone: AlexNet, num_classes: int) -> Classifier:
    return _two_hidden(backbone, num_classes, nn.AdaptiveAvgPool2d(6), 6, dropout_first=True)


def caffenet(backbone: AlexNet, num_classes: int) -> Classifier:
    return _two_hidden(backbone, num_classes, nn.Identity(), 6, fixed=(6, 227))


def vgg16(backbone: PooledVGG16, num_classes: int) -> Classifier:
    return _two_hidden(backbone, num_classes, nn.AdaptiveAvgPool2d(7), 7)


def mobilenet_v3(backbone: MobileNetV3, num_classes: int) -> Classifier:
    hidden = nn.Linear(backbone.channels[-1], 1280), nn.Hardswish(inplace=True), nn.Dropout(0.2)
    end = nn.Sequential(*hidden, nn.Linear(1280, num_classes))
    return Classifier(backbone, nn.AdaptiveAvgPool2d(1), end)


def googlenet(backbone: GoogLeNet, num_classes: int) -> Classifier:
    net = linear(backbone, num_classes, 0.2)
    taps = {"aux1": 3, "aux2": 4}
    aux = {name: (i, AuxClassifier(backbone.channels[i], num_classes)) for name, i in taps.items()}
    return Classifier(backbone, net.pool, net.classifier, aux)


def bvlc_googlenet(backbone: GoogLeNet, num_classes: int) -> Classifier:
    net = linear(backbone, num_classes, 0.4)
    return Classifier(backbone, nn.AvgPool2d(7, 1), net.classifier, fixed=(7, 224))


def hrnet(backbone: HRNet, num_classes: int) -> Classifier:
    """2048 channels of all four maps."""
    scores = nn.Linear(2048, num_classes)
    join = Descent(backbone.channels)
    return Classifier(backbone, nn.AdaptiveAvgPool2d(1), scores, join=join)
