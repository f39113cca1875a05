"""Published keys of classifiers -> ours: backbone.*, classifier.*, aux.*."""

from __future__ import annotations

from segfast.models._keys import Rules
from segfast.models.backbones.densenet import DENSENETS
from segfast.models.backbones.resnet import RESNETS
from segfast.models.layouts import vgg
from segfast.models.layouts.caffe import BLOBS, GOOGLENET

_ALEXNET = {0: 1, 3: 2, 6: 3, 8: 4, 10: 5}  # place in torchvision's features -> convolution
_RESNET = Rules((r"^fc\.", "classifier."), (r"^(?=conv1|bn1|layer)", "backbone."))
_MOBILENET = Rules((r"^features\.", "backbone.features."))
_DENSENET = Rules((r"^features\.", "backbone."))

LAYOUTS = {
    "alexnet": Rules(
        *((rf"^features\.{place}\.", f"backbone.conv{i}.") for place, i in _ALEXNET.items())
    ),
    "bvlc_googlenet": Rules(
        *BLOBS, *GOOGLENET, (r"^loss3/classifier\.", "classifier.1."), drop=(r"^loss[12]/",)
    ),
    "caffenet": Rules(
        *BLOBS,
        (r"^conv", "backbone.conv"),
        (r"^fc6\.", "classifier.0."),
        (r"^fc7\.", "classifier.3."),
        (r"^fc8\.", "classifier.6."),
    ),
    "googlenet": Rules(
        (r"^fc\.", "classifier.1."),
        (r"^aux", "aux.aux"),
        (r"^(?=conv|inception)", "backbone."),
    ),
    "mobilenet_v2": _MOBILENET,
    "mobilenet_v3_large": _MOBILENET,
    "vgg16": Rules(*vgg.torchvision(batch_norm=False)),
    "vgg16_bn": Rules(*vgg.torchvision(batch_norm=True)),
    **{f"densenet{depth}": _DENSENET for depth in DENSENETS},
    **{f"resnet{depth}": _RESNET for depth in RESNETS},
}
