"""Backbones as the classifiers they were published as, and the maps they give to networks."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from segfast.models import create_backbone, list_backbones, load_backbone
from segfast.models.backbones import HRNet
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
    load_backbone(model, published_state(published))
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
        # counted of the released networks by osmr/imgclsmob, and by timm to 0.1 million
        ("hrnet_w18_small", 15_597_464),
        ("hrnet_w18", 21_299_004),
        ("hrnet_w32", 41_232_680),
        ("hrnet_w40", 57_557_160),
        ("hrnet_w48", 77_469_864),
        ("resnet34", 21_797_672),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
    ],
)
def test_other_forms(name: str, params: int) -> None:
    assert parameters(on_meta(name, classifier=True)) == params


def test_aligned_xception() -> None:
    """timm's has 39.9 million."""
    assert round(parameters(on_meta("xception", classifier=True)) / 1e5) == 399


def test_classifier_of_high_resolution_networks() -> None:
    """Between strides the nearest value; then every map is widened and added to the next one."""
    torch.manual_seed(0)
    model = create_backbone("hrnet_w18_small", classifier=True, num_classes=3).double().eval()
    x = torch.randn(1, 3, 64, 96, dtype=torch.float64)
    maps = model.backbone(x)
    exchange = model.backbone.stage2[0]
    fine, coarse = (
        torch.randn(1, c, *s, dtype=torch.float64) for c, s in ((18, (8, 12)), (36, (4, 6)))
    )
    small = exchange.fuse_layers[0]["1"](exchange.branches[1](coarse))
    expected = exchange.branches[0](fine) + small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(exchange([fine, coarse])[0], expected.relu())
    head, z = model.join, None
    for i, y in enumerate(maps):
        y = head.incre_modules[i](y)
        assert y.shape[1] == 128 * 2**i
        z = y if z is None else y + head.downsamp_modules[i - 1](z)
    torch.testing.assert_close(model(x), model.classifier(head.final_layer(z).mean((2, 3))))
    assert not torch.equal(HRNet("w18_small")(x.float())[0], maps[0].float())


STRIDES = {
    "alexnet": (8, 16, 32),
    "bvlc_googlenet": (4, 8, 16, 16, 16, 32),
    "caffenet": (8, 16, 32),
    "googlenet": (4, 8, 16, 16, 16, 32),
    "mobilenet_v2": (2, 4, 8, 16, 32),
    "mobilenet_v3_large": (2, 4, 8, 16, 32),
    "xception": (4, 16, 32),
    "vgg16": (2, 4, 8, 16, 32),
    "vgg16_bn": (2, 4, 8, 16, 32),
}


SLOW = ("densenet161", "densenet169", "densenet201", "hrnet_w32", "hrnet_w40", "hrnet_w48")
SLOW += ("resnet101", "resnet152")


def names(dilated: bool) -> list[Any]:
    return [
        pytest.param(name, marks=[pytest.mark.thorough] * (name in SLOW))
        for name in list_backbones(dilated=dilated)
    ]


@pytest.mark.parametrize("name", names(dilated=False))
def test_maps(name: str) -> None:
    """Their channels are as declared; their strides, of an odd image that is not square."""
    backbone = on_meta(name, in_channels=5)
    assert_maps(backbone)
    assert backbone.strides == STRIDES.get(name, (4, 8, 16, 32))


@pytest.mark.parametrize("output_stride", [8, 16])
@pytest.mark.parametrize("name", names(dilated=True))
def test_dilated_maps(name: str, output_stride: int) -> None:
    backbone = on_meta(name, in_channels=5, output_stride=output_stride)
    assert_maps(backbone)
    assert max(backbone.strides) == output_stride


def assert_maps(backbone: nn.Module) -> None:
    maps = backbone(torch.empty(2, 5, 1025, 1313, device="meta"))
    assert tuple(x.shape[:2] for x in maps) == tuple((2, c) for c in backbone.channels)
    for size, axis in ((1025, -2), (1313, -1)):
        strides = tuple(2 ** round(math.log2(size / x.shape[axis])) for x in maps)
        assert strides == backbone.strides


def test_names() -> None:
    assert list_backbones("resnet?[048]") == ["resnet18", "resnet34", "resnet50"]
    assert "xception" in list_backbones(dilated=True)
    assert "vgg16" not in list_backbones(dilated=True)
    with pytest.raises(TypeError, match="pattern must be a str, got int 3"):
        list_backbones(3)  # type: ignore[arg-type]


def test_auxiliary_classifiers() -> None:
    model = on_meta("googlenet", classifier=True, num_classes=7)
    out, aux = model(torch.empty(2, 3, 97, 130, device="meta"), return_aux=True)
    assert out.shape == (2, 7)
    assert {name: y.shape for name, y in aux.items()} == {"aux1": (2, 7), "aux2": (2, 7)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "resnet17"}, r"name must be one of list_backbones\(\) \(resnet18"),
        ({"name": 18}, "name must be a str, got int 18"),
        ({"name": "densenet121", "wiring": "caffe"}, "options of 'densenet121': .*'wiring'"),
        ({"name": "alexnet", "in_channels": 0}, "in_channels must be at least 1"),
        ({"name": "alexnet", "classifier": 1}, "classifier must be True or False"),
        ({"name": "alexnet", "num_classes": 0}, "num_classes must be at least 1"),
        ({"name": "googlenet", "wiring": "keras"}, "wiring must be one of torchvision, caffe"),
    ],
)
def test_refusals(arguments: dict[str, object], message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        create_backbone(**arguments)
