"""Published keys of classifiers -> ours: backbone.*, and what follows it: join.*, classifier.*,
aux.*.

ImageNet weights belong into one wiring, and not every file says which: `Published.wired` is what a
layout's keys tell.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import nn

from segfast.models._keys import Rules, Substitution
from segfast.models.backbones.alexnet import AlexNet
from segfast.models.backbones.densenet import DenseNet
from segfast.models.backbones.googlenet import GoogLeNet
from segfast.models.backbones.hrnet import HRNet
from segfast.models.backbones.mobilenet_v2 import MobileNetV2
from segfast.models.backbones.mobilenet_v3 import MobileNetV3
from segfast.models.backbones.resnet import Bottleneck, ResNet
from segfast.models.backbones.vgg import VGG16
from segfast.models.backbones.xception import Xception
from segfast.models.layouts import vgg, xception
from segfast.models.layouts.caffe import BLOBS
from segfast.models.layouts.caffe import GOOGLENET as GOOGLENET_LAYERS
from segfast.models.layouts.caffe import VGG16 as VGG16_LAYERS


class Published(NamedTuple):
    """Keys of one publisher.

    Attributes:
        rules: published -> ours.
        wired: whether a backbone has the wiring that these weights were trained in.
        means: what that is.
        kept: pattern of keys that a segmentation network may have beside the published ones.
    """

    rules: Rules
    wired: Callable[[Any], bool] = lambda backbone: True
    means: str = ""
    kept: str | None = None


def _published(*substitutions: Substitution, drop: tuple[str, ...] = ()) -> Published:
    return Published(Rules(*substitutions, drop=drop))


# ------------------------------------------------------------------------ VGG16, AlexNet, GoogLeNet

_CAFFE_FC: tuple[Substitution, ...] = (
    (r"^fc6\.", "classifier.0."),
    (r"^fc7\.", "classifier.3."),
    (r"^fc8\.", "classifier.6."),
)
ALEXNET = {
    "torchvision": _published(
        *(
            (rf"^features\.{place}\.", f"backbone.conv{i}.")
            for place, i in {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}.items()
        )
    ),
    "caffe": _published(*BLOBS, (r"^conv", "backbone.conv"), *_CAFFE_FC),
}
GOOGLENET = {
    "torchvision": _published(
        (r"^fc\.", "classifier.1."), (r"^aux", "aux.aux"), (r"^(?=conv|inception)", "backbone.")
    ),
    "caffe": _published(
        *BLOBS,
        *GOOGLENET_LAYERS,
        (r"^loss3/classifier\.", "classifier.1."),
        drop=(r"^loss[12]/",),
    ),
}
_NORMS = r"_bn\."
VGG = {
    "torchvision": _published(*vgg.torchvision(batch_norm=False))._replace(kept=_NORMS),
    "torchvision_bn": _published(*vgg.torchvision(batch_norm=True)),
    "caffe": _published(*BLOBS, *VGG16_LAYERS, *_CAFFE_FC)._replace(kept=_NORMS),
}

# ------------------------------------------------------------------------------ residual networks

_FC: Substitution = (r"^fc\.", "classifier.")
_STAGES: Substitution = (r"^(?=layer[1-4]\.)", "backbone.")
_PARTS = {"1": "downsample", "2a": "1", "2b": "2", "2c": "3"}  # of a bottleneck: Caffe's -> ours
_BLOBS = {  # of Caffe's three kinds of layers
    "res": ("weight",),
    "bn": ("running_mean", "running_var", "sums"),
    "scale": ("weight", "bias"),
}


def _caffe_layer(match: re.Match[str]) -> str:
    """bn4b22_branch2a/0 -> backbone.layer3.22.bn1.running_mean; letters count where no number is"""
    kind, stage, letter, number, part, blob = match.groups()
    block = int(number) if number else ord(letter) - ord("a")
    if part == "1":
        layer = f"downsample.{int(kind != 'res')}"
    else:
        layer = f"{'conv' if kind == 'res' else 'bn'}{_PARTS[part]}"
    name = dict(enumerate(_BLOBS[kind])).get(int(blob), blob)  # what it may not have stays, unfit
    return f"backbone.layer{int(stage) - 1}.{block}.{layer}.{name}"


class _CaffeResNet(Rules):
    """A normalisation is two layers in Caffe: sums of statistics, their weight; scale and shift."""

    def apply(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """The mapping under our keys: means, variances; conv1's bias (ResNet-50's) in the mean."""
        renamed = super().apply(state)
        for key in [k for k, x in renamed.items() if k.endswith(".sums") and x.numel() == 1]:
            norm, weight = key.removesuffix("sums"), renamed.pop(key).reshape(())
            for statistic in (f"{norm}running_mean", f"{norm}running_var"):
                if statistic in renamed:
                    renamed[statistic] = renamed[statistic] / weight
        bias, mean = (renamed.get(f"backbone.{key}") for key in ("conv1.bias", "bn1.running_mean"))
        if bias is not None and mean is not None and bias.shape == mean.shape:
            renamed["backbone.bn1.running_mean"] = mean - renamed.pop("backbone.conv1.bias")
        return renamed


def _stride_first(backbone: ResNet) -> bool | None:
    """Whether the strides are on the first 1 x 1 convolutions; None where there are none."""
    return backbone.stride_first if isinstance(backbone.layer1[0], Bottleneck) else None  # type: ignore[index]


def _stride_on_3x3(rules: Rules) -> Published:
    return Published(
        rules, lambda net: not _stride_first(net), "a bottleneck's stride on its 3 x 3 convolution"
    )


RESNET = {
    "torchvision": _stride_on_3x3(Rules(_FC, _STAGES, (r"^(?=conv1|bn1)", "backbone."))),
    # stems of three convolutions
    "mmseg": _stride_on_3x3(Rules(_FC, _STAGES, (r"^(?=stem\.)", "backbone."))),
    "semseg": _stride_on_3x3(
        Rules(
            _FC,
            _STAGES,
            (r"^conv([123])\.", lambda m: f"backbone.stem.{3 * int(m[1]) - 3}."),
            (r"^bn([123])\.", lambda m: f"backbone.stem.{3 * int(m[1]) - 2}."),
        )
    ),
    "timm": _stride_on_3x3(
        Rules(
            _FC,
            _STAGES,
            (r"^conv1\.", "backbone.stem."),
            (r"^bn1\.", "backbone.stem.7."),
        )
    ),
    "caffe": Published(
        _CaffeResNet(
            (r"^fc1000/", "classifier/"),
            (r"^conv1/", "backbone.conv1/"),
            *(
                (rf"^{kind}_conv1/{blob}$", f"backbone.bn1.{name}")
                for kind in ("bn", "scale")
                for blob, name in enumerate(_BLOBS[kind])
            ),
            (r"^(res|bn|scale)([2-5])([a-f])(\d*)_branch(1|2[abc])/([0-2])$", _caffe_layer),
            *BLOBS,
        ),
        lambda net: _stride_first(net) is not False,
        "a bottleneck's stride on its first 1 x 1 convolution",
    ),
}

# ----------------------------------------------------------------------------------------- others

_FEATURES: Substitution = (r"^features\.", "backbone.features.")
MOBILENET_V2 = {"torchvision": _published(_FEATURES)}
MOBILENET_V2_WITHOUT_LAST = {"torchvision": _published(_FEATURES, drop=(r"^features\.18\.",))}
MOBILENET_V3 = {
    "torchvision": Published(
        Rules(_FEATURES),
        lambda net: net.wiring == "torchvision",
        "the same padding on both sides",
    )
}
DENSENET = {
    "torchvision": _published(
        (r"^features\.", "backbone."),
        (r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2."),  # as in old files
    )
}
HRNET = {
    "official": _published(
        (r"^(?=conv[12]|bn[12]|layer1|transition\d|stage\d)", "backbone."),
        (r"^(?=incre_modules|downsamp_modules|final_layer)", "join."),
    )
}
XCEPTION = {
    "jfzhang": _published(_FC, (r"^(?!classifier\.|backbone\.)", "backbone."), *xception.JFZHANG)
}


def layouts_of(backbone: nn.Module) -> Mapping[str, Published] | None:
    """Whose files a backbone reads, by their names; None of what is no backbone."""
    if isinstance(backbone, MobileNetV2) and len(backbone.features) == 18:
        return MOBILENET_V2_WITHOUT_LAST
    return next((found for kind, found in LAYOUTS.items() if isinstance(backbone, kind)), None)


LAYOUTS: dict[type[nn.Module], Mapping[str, Published]] = {
    AlexNet: ALEXNET,
    DenseNet: DENSENET,
    GoogLeNet: GOOGLENET,
    HRNet: HRNET,
    MobileNetV2: MOBILENET_V2,
    MobileNetV3: MOBILENET_V3,
    ResNet: RESNET,
    VGG16: VGG,
    Xception: XCEPTION,
}
