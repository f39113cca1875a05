"""All backbones by name: what builds them, their classifiers, and what a dilated decoder needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from segfast.models import _registry
from segfast.models.backbones import classifier as classifiers
from segfast.models.backbones.alexnet import AlexNet
from segfast.models.backbones.densenet import DENSENETS, DenseNet
from segfast.models.backbones.googlenet import GoogLeNet
from segfast.models.backbones.hrnet import HRNETS, HRNet
from segfast.models.backbones.mobilenet_v2 import MobileNetV2
from segfast.models.backbones.mobilenet_v3 import MobileNetV3
from segfast.models.backbones.resnet import RESNETS, ResNet
from segfast.models.backbones.vgg import PooledVGG16
from segfast.models.backbones.xception import Xception
from segfast.ops import _check


class Dilation(NamedTuple):
    """How a backbone serves networks that choose its output stride: 8, 16 or 32.

    Attributes:
        picks: which of its maps a decoder joins (stride 4), an auxiliary head sees, are the last.
        options: of the backbone there.
        grids: whether it takes `multi_grid` and `copies`.
    """

    picks: tuple[int, int, int]
    options: Mapping[str, Any] = {}
    grids: bool = False


class Row(NamedTuple):
    """A backbone.

    Attributes:
        build: called with in_channels and the options of its class.
        end: the backbone, num_classes -> the classifier that it was published as.
        options: of the backbone in that.
        dilation: None where its output stride is fixed.
    """

    build: Callable[..., Any]
    end: Callable[[Any, int], classifiers.Classifier]
    options: Mapping[str, Any] = {}
    dilation: Dilation | None = None


RESNET = Dilation((0, 2, -1), grids=True)
BACKBONES = {
    "alexnet": Row(AlexNet, classifiers.alexnet),
    "bvlc_googlenet": Row(partial(GoogLeNet, wiring="caffe"), classifiers.bvlc_googlenet),
    "caffenet": Row(partial(AlexNet, wiring="caffe"), classifiers.caffenet),
    **{f"densenet{n}": Row(partial(DenseNet, n), classifiers.linear) for n in DENSENETS},
    "googlenet": Row(GoogLeNet, classifiers.googlenet),
    **{
        f"hrnet_{size}": Row(partial(HRNet, size), classifiers.hrnet, {"nearest": True})
        for size in HRNETS
    },
    "mobilenet_v2": Row(
        MobileNetV2,
        partial(classifiers.linear, dropout=0.2),
        dilation=Dilation((1, 3, 4)),
    ),
    "mobilenet_v3_large": Row(
        MobileNetV3,
        classifiers.mobilenet_v3,
        dilation=Dilation((0, 1, 2), {"taps": (3, 4, 16)}),
    ),
    **{f"resnet{n}": Row(partial(ResNet, n), classifiers.linear, dilation=RESNET) for n in RESNETS},
    "vgg16": Row(PooledVGG16, classifiers.vgg16),
    "vgg16_bn": Row(partial(PooledVGG16, batch_norm=True), classifiers.vgg16),
    "xception": Row(Xception, classifiers.linear, dilation=Dilation((0, 1, 2))),
}
DILATIONS = {name: row.dilation for name, row in BACKBONES.items() if row.dilation is not None}


def create_backbone(
    name: str,
    in_channels: int = 3,
    *,
    classifier: bool = False,
    num_classes: int = 1000,
    **options: Any,
) -> Any:
    """A backbone by its name, or the classifier that it was published as, with fresh parameters.

    Args:
        name: one of :func:`list_backbones`: torchvision's, but for Caffe's caffenet (images of
            227 x 227) and bvlc_googlenet (224 x 224), HRNet's authors' and the aligned Xception.
        in_channels: C.
        classifier: with its last layers.
        num_classes: L of the classifier.
        options: arguments of the backbone's class: `wiring` ("torchvision", "semseg", "mmseg",
            "caffe", "deeplab-pytorch", ... of a ResNet), `output_stride` of residual networks,
            MobileNets and xception, `multi_grid` and `contract_dilation` of residual networks.

    Returns:
        A module: x [N, C, H, W] -> a list of maps [N, c, H / s, W / s], c and s of each in its
        attributes `channels` and `strides`; or the classifier, x -> [N, L], with the backbone in
        its attribute `backbone`. :func:`segfast.models.load_backbone` fills both.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.models import create_backbone
        >>> backbone = create_backbone("resnet18", in_channels=1, output_stride=8)
        >>> backbone.channels, backbone.strides
        ((64, 128, 256, 512), (4, 8, 8, 8))
        >>> [tuple(y.shape) for y in backbone(torch.zeros(1, 1, 64, 96))][-1]
        (1, 512, 8, 12)
        >>> create_backbone("resnet18", classifier=True)(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 1000])
    """
    row = _registry.find(BACKBONES, name, "list_backbones()")
    _check.require_count("in_channels", in_channels, 1)
    _check.require_bool("classifier", classifier)
    _check.require_count("num_classes", num_classes, 1)
    options = {**(row.options if classifier else {}), **options}
    backbone = _registry.built(name, row.build, in_channels=in_channels, **options)
    return row.end(backbone, num_classes) if classifier else backbone


def list_backbones(pattern: str = "*", *, dilated: bool = False) -> list[str]:
    """Names for :func:`create_backbone` that fit a shell pattern, in alphabetical order.

    Args:
        pattern: with * and ?.
        dilated: only those that take an `output_stride`: for DeepLab v3 and v3+.

    Example:
        >>> from segfast.models import list_backbones
        >>> list_backbones("vgg*")
        ['vgg16', 'vgg16_bn']
        >>> list_backbones("[mx]*", dilated=True)
        ['mobilenet_v2', 'mobilenet_v3_large', 'xception']
    """
    _check.require_bool("dilated", dilated)
    return _registry.matching(DILATIONS if dilated else BACKBONES, pattern)


def create_dilated(
    name: str,
    in_channels: int,
    output_stride: int,
    wiring: str,
    multi_grid: Sequence[int] | None = None,
    published_grid: Sequence[int] = (),
    copies: int = 0,
) -> tuple[Any, tuple[int, int, int]]:
    """A backbone whose output stride a network chooses, and its `picks`.

    Args:
        name: of `list_backbones(dilated=True)`.
        in_channels, output_stride, wiring: as the backbone's class has them.
        multi_grid, copies: of residual networks only.
        published_grid: of three blocks, where `multi_grid` is None; a ResNet-18, which has two,
            is left without.
    """
    dilation = DILATIONS[name]
    if not dilation.grids and (multi_grid or copies):
        raise ValueError(f"multi_grid and cascade need a residual network, got backbone {name!r}")
    options: dict[str, Any] = {"copies": copies} if dilation.grids else {}
    if dilation.grids and multi_grid is not None:
        options["multi_grid"] = multi_grid
    elif dilation.grids and name != "resnet18":  # whose last stage has two blocks
        options["multi_grid"] = published_grid
    net = create_backbone(
        name,
        in_channels,
        output_stride=output_stride,
        wiring=wiring,
        **dilation.options,
        **options,
    )
    return net, dilation.picks
