"""Backbones as the classifiers they were published as, and the maps they give to networks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from segfast.models.backbones import BACKBONES, create_backbone
from segfast.models.layouts.backbones import LAYOUTS
from tests.fingerprints import assert_outputs, filled_input, read
from tests.models.golden import parameters, published_state

PUBLISHED = {  # torchvision's, with their classifiers
    "alexnet": 61_100_840,
    "densenet121": 7_978_856,
    "googlenet": 13_004_888,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v3_large": 5_483_032,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
}
GIANTS = ("alexnet", "vgg16", "vgg16_bn")


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return create_backbone(name, **options)


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters(name: str) -> None:
    assert parameters(on_meta(name, classifier=True)) == PUBLISHED[name]


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.giant] * (n in GIANTS)) for n in PUBLISHED]
)
def test_classifier_is_the_published_one(name: str) -> None:
    published = f"torchvision_backbone_{name}"
    model = on_meta(name, classifier=True).eval()
    model.load_state_dict(LAYOUTS[name].apply(published_state(published)), assign=True)
    fingerprint = read("fingerprints", published)
    with torch.no_grad():
        assert_outputs([model(filled_input(fingerprint["input_shape"]))], fingerprint, published)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("bvlc_googlenet", 6_998_552),
        ("caffenet", 60_965_224),
        ("densenet161", 28_681_000),
        ("densenet169", 14_149_480),
        ("densenet201", 20_013_928),
    ],
)
def test_other_forms(name: str, params: int) -> None:
    assert parameters(on_meta(name, classifier=True)) == params


STRIDES = {
    "alexnet": (8, 16, 32),
    "bvlc_googlenet": (4, 8, 16, 16, 16, 32),
    "caffenet": (8, 16, 32),
    "googlenet": (4, 8, 16, 16, 16, 32),
    "mobilenet_v2": (2, 4, 8, 16, 32),
    "mobilenet_v3_large": (2, 4, 8, 16, 32),
    "vgg16": (2, 4, 8, 16, 32),
    "vgg16_bn": (2, 4, 8, 16, 32),
}


@pytest.mark.parametrize("name", sorted(BACKBONES))
def test_maps(name: str) -> None:
    """Their channels are as declared; their strides, of an odd image that is not square."""
    backbone = on_meta(name, in_channels=5)
    maps = backbone(torch.empty(2, 5, 1025, 1313, device="meta"))
    assert tuple(x.shape[:2] for x in maps) == tuple((2, c) for c in backbone.channels)
    for size, axis in ((1025, -2), (1313, -1)):
        strides = tuple(2 ** round(math.log2(size / x.shape[axis])) for x in maps)
        assert strides == STRIDES.get(name, (4, 8, 16, 32))


def test_auxiliary_classifiers() -> None:
    model = on_meta("googlenet", classifier=True, num_classes=7)
    out, aux = model(torch.empty(2, 3, 97, 130, device="meta"), return_aux=True)
    assert out.shape == (2, 7)
    assert {name: y.shape for name, y in aux.items()} == {"aux1": (2, 7), "aux2": (2, 7)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet17"}, "name must be one of"),
        ({"name": "alexnet", "in_channels": 0}, "in_channels must be at least 1"),
        ({"name": "alexnet", "classifier": 1}, "classifier must be True or False"),
        ({"name": "alexnet", "num_classes": 0}, "num_classes must be at least 1"),
        ({"name": "googlenet", "wiring": "keras"}, "wiring must be one of torchvision, caffe"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        create_backbone(**arguments)
