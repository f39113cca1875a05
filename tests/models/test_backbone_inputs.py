"""Images that backbones and their classifiers refuse, in words about the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segfast.models import create_backbone, list_backbones
from segfast.models._inputs import least_image
from segfast.models.backbones import AlexNet, DeepLabVGG16, GoogLeNet, PooledVGG16
from tests.models.test_backbones import SLOW, on_meta

NAMES = [name for name in list_backbones() if name not in SLOW]


def empty(*shape: int, **options: Any) -> torch.Tensor:
    return torch.empty(shape, device="meta", **options)


def assert_least(backbone: Any) -> None:
    """That many pixels give every map; one less do not, whether or not it is looked at."""
    n = backbone.eval().least
    assert all(min(y.shape) > 0 for y in backbone(empty(1, 2, n, n + 5)))
    with pytest.raises(ValueError, match=rf"^x must be at least {n} pixels .* \(1, 2, {n + 5}, "):
        backbone(empty(1, 2, n + 5, n - 1))
    if n > 1:
        with pytest.raises((RuntimeError, ValueError)):
            backbone.maps(empty(1, 2, n + 5, n - 1))


@pytest.mark.parametrize("name", NAMES)
def test_least_images(name: str) -> None:
    assert_least(on_meta(name, in_channels=2))


@pytest.mark.parametrize(
    ("kind", "options", "least"),
    [
        (AlexNet, {}, 63),
        (AlexNet, {"wiring": "caffe"}, 39),
        (AlexNet, {"wiring": "caffe", "first_padding": 100}, 1),
        (GoogLeNet, {}, 15),
        (GoogLeNet, {"wiring": "caffe", "first_padding": 26}, 1),
        (PooledVGG16, {}, 32),
        (PooledVGG16, {"padding": (0,) * 5}, 212),
        (PooledVGG16, {"ceil": True, "first_padding": 100}, 1),
        (DeepLabVGG16, {}, 1),
        (DeepLabVGG16, {"pool_size": 2}, 2),
    ],
)
def test_least_images_by_options(kind: Any, options: Any, least: int) -> None:
    with torch.device("meta"):
        backbone = kind(2, **options)
    assert backbone.least == least
    assert_least(backbone)


@pytest.mark.parametrize("up", [False, True])
def test_rule_of_least_images(up: bool) -> None:
    """Pools of any window, and of two in a row."""
    for first in ((3, 2, 0), (3, 2, 1), (2, 3, 1), (5, 3, 0), (4, 1, 2)):
        for second in ((2, 2, 0), (3, 2, 1), (4, 3, 0)):
            layers = [torch.nn.MaxPool2d(*window, ceil_mode=up) for window in (first, second)]
            least = least_image([(*first, up), (*second, up)])
            assert min(torch.nn.Sequential(*layers)(empty(1, 1, least, 99)).shape) == 1
            if least > 1:
                with pytest.raises(RuntimeError):
                    torch.nn.Sequential(*layers)(empty(1, 1, least - 1, 99))


@pytest.mark.parametrize("name", NAMES)
def test_refused_images(name: str) -> None:
    backbone = on_meta(name)
    size = backbone.least + 1, backbone.least + 2
    for x, kind, message in (
        (empty(3, *size), ValueError, r"x must be \[B, 3, H, W\], got .*"),
        (empty(1, 4, *size), ValueError, r"x must be \[B, 3, H, W\], got .* \(1, 4, "),
        (empty(1, 3, *size, dtype=torch.uint8), TypeError, "x must be a floating-point tensor"),
        (empty(1, 3, *size, dtype=torch.float64), TypeError, "x must have the dtype of the module"),
        (None, TypeError, r"x must be a tensor \[B, 3, H, W\], got NoneType"),
    ):
        with pytest.raises(kind, match=f"^{message}"):
            backbone(x)


def test_device_of_an_image() -> None:
    with pytest.raises(ValueError, match=r"^x must be on the device of the model, cpu; it is on"):
        create_backbone("resnet18")(empty(1, 3, 33, 33))


@pytest.mark.parametrize(("name", "size"), [("caffenet", 227), ("bvlc_googlenet", 224)])
def test_classifiers_of_one_size(name: str, size: int) -> None:
    model = on_meta(name, classifier=True, num_classes=4).eval()
    assert model(empty(2, 3, size, size)).shape == (2, 4)
    with pytest.raises(ValueError, match=rf"^x must be {size} x {size} pixels, or give .* 300, "):
        model(empty(2, 3, 300, size))
