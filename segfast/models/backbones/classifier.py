"""Backbones by their names, and the classifiers that they were published as."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from segfast.models.backbones.alexnet import AlexNet
from segfast.models.backbones.densenet import DENSENETS, DenseNet
from segfast.models.backbones.googlenet import GoogLeNet, Unit
from segfast.models.backbones.mobilenet_v2 import MobileNetV2
from segfast.models.backbones.mobilenet_v3 import MobileNetV3
from segfast.models.backbones.resnet import RESNETS, ResNet
from segfast.models.backbones.vgg import PooledVGG16
from segfast.ops import _check


class Classifier(nn.Module):
    """One score per class of the whole image: a backbone, a pool, fully connected layers.

    Args:
        backbone: x -> maps; the last one is read.
        pool: of that map, to a fixed size.
        classifier: of the pooled map's numbers, flattened.
        aux: name -> (which of the maps, what makes scores of it).

    Shape:
        x [N, C, H, W] -> [N, L], or with `return_aux` that and a dict of the auxiliary scores.
        State: backbone, classifier, aux.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pool: nn.Module,
        classifier: nn.Module,
        aux: Mapping[str, tuple[int, nn.Module]] | None = None,
    ) -> None:
        super().__init__()
        aux = aux or {}
        self.backbone, self.pool, self.classifier = backbone, pool, classifier
        self.aux = nn.ModuleDict({name: head for name, (_, head) in aux.items()})
        self.taps = {name: tap for name, (tap, _) in aux.items()}

    def forward(self, x: Tensor, return_aux: bool = False) -> Any:
        """x [N, C, H, W] -> [N, L], or that and {name: [N, L]}."""
        maps = self.backbone(x)
        out = self.classifier(torch.flatten(self.pool(maps[-1]), 1))
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


class Row(NamedTuple):
    """A name of :func:`create_backbone`: what builds it, and what it ends with as a classifier."""

    build: Callable[..., Any]
    end: Callable[[Any, int], Classifier]


def _linear(backbone: Any, num_classes: int, dropout: float = 0.0) -> Classifier:
    scores = nn.Linear(backbone.channels[-1], num_classes)
    end: nn.Module = nn.Sequential(nn.Dropout(dropout), scores) if dropout else scores
    return Classifier(backbone, nn.AdaptiveAvgPool2d(1), end)


def _two_hidden(
    backbone: Any, num_classes: int, pool: nn.Module, size: int, dropout_first: bool = False
) -> Classifier:
    features = backbone.channels[-1] * size**2
    layers: list[nn.Module] = []
    for width in (features, 4096):
        hidden = [nn.Linear(width, 4096), nn.ReLU(inplace=True)]
        layers += [nn.Dropout(), *hidden] if dropout_first else [*hidden, nn.Dropout()]
    return Classifier(backbone, pool, nn.Sequential(*layers, nn.Linear(4096, num_classes)))


def _alexnet(backbone: AlexNet, num_classes: int) -> Classifier:
    return _two_hidden(backbone, num_classes, nn.AdaptiveAvgPool2d(6), 6, dropout_first=True)


def _caffenet(backbone: AlexNet, num_classes: int) -> Classifier:  # images of 227 x 227
    return _two_hidden(backbone, num_classes, nn.Identity(), 6)


def _vgg16(backbone: PooledVGG16, num_classes: int) -> Classifier:
    return _two_hidden(backbone, num_classes, nn.AdaptiveAvgPool2d(7), 7)


def _mobilenet_v3(backbone: MobileNetV3, num_classes: int) -> Classifier:
    hidden = nn.Linear(backbone.channels[-1], 1280), nn.Hardswish(inplace=True), nn.Dropout(0.2)
    end = nn.Sequential(*hidden, nn.Linear(1280, num_classes))
    return Classifier(backbone, nn.AdaptiveAvgPool2d(1), end)


def _googlenet(backbone: GoogLeNet, num_classes: int) -> Classifier:
    net = _linear(backbone, num_classes, 0.2)
    taps = {"aux1": 3, "aux2": 4}
    aux = {name: (i, AuxClassifier(backbone.channels[i], num_classes)) for name, i in taps.items()}
    return Classifier(backbone, net.pool, net.classifier, aux)


def _bvlc_googlenet(backbone: GoogLeNet, num_classes: int) -> Classifier:  # of 224 x 224
    net = _linear(backbone, num_classes, 0.4)
    return Classifier(backbone, nn.AvgPool2d(7, 1), net.classifier)


BACKBONES = {
    "alexnet": Row(AlexNet, _alexnet),
    "bvlc_googlenet": Row(partial(GoogLeNet, wiring="caffe"), _bvlc_googlenet),
    "caffenet": Row(partial(AlexNet, wiring="caffe"), _caffenet),
    "googlenet": Row(GoogLeNet, _googlenet),
    "mobilenet_v2": Row(MobileNetV2, partial(_linear, dropout=0.2)),
    "mobilenet_v3_large": Row(MobileNetV3, _mobilenet_v3),
    "vgg16": Row(PooledVGG16, _vgg16),
    "vgg16_bn": Row(partial(PooledVGG16, batch_norm=True), _vgg16),
    **{f"densenet{depth}": Row(partial(DenseNet, depth), _linear) for depth in DENSENETS},
    **{f"resnet{depth}": Row(partial(ResNet, depth), _linear) for depth in RESNETS},
}


def create_backbone(
    name: str,
    in_channels: int = 3,
    *,
    classifier: bool = False,
    num_classes: int = 1000,
    **options: Any,
) -> nn.Module:
    """A backbone by its name, or the classifier that it was published as, with fresh parameters.

    Args:
        name: "alexnet", "caffenet", "googlenet", "bvlc_googlenet", "vgg16", "vgg16_bn",
            "densenet121", ..., "mobilenet_v2", "mobilenet_v3_large", "resnet18", ...:
            torchvision's, but for Caffe's caffenet (images of 227 x 227) and bvlc_googlenet
            (224 x 224).
        in_channels: C.
        classifier: with its last layers.
        num_classes: L of the classifier.
        options: arguments of the backbone's class.

    Returns:
        x [N, C, H, W] -> a list of maps, their channels in `channels`; or a :class:`Classifier`,
        x -> [N, L].

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> backbone = create_backbone("densenet121", in_channels=1)
        >>> [tuple(y.shape[1:]) for y in backbone(torch.zeros(1, 1, 64, 96))]
        [(256, 16, 24), (512, 8, 12), (1024, 4, 6), (1024, 2, 3)]
        >>> create_backbone("resnet18", classifier=True)(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 1000])
    """
    _check.require_choice("name", name, tuple(BACKBONES))
    _check.require_count("in_channels", in_channels, 1)
    _check.require_bool("classifier", classifier)
    _check.require_count("num_classes", num_classes, 1)
    row = BACKBONES[name]
    backbone = row.build(in_channels=in_channels, **options)
    return row.end(backbone, num_classes) if classifier else backbone
