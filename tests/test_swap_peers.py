"""segfast.swap of the models of torchvision, segmentation_models.pytorch and timm."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import segfast
from tests.swap_networks import Operators, same

BY_RULE = ("neither dilated nor grouped", "no kernel of ours takes groups of")


def peer(name: str) -> Any:
    """The package, or a skip that says why (made for another torch, it raises all kinds)."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        pytest.skip(f"{name} cannot be imported: {error}")


class Out(nn.Module):
    """Only the scores."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y = self.model(x)
        while not isinstance(y, Tensor):
            y = list(y.values() if isinstance(y, dict) else y)[-1 if isinstance(y, list) else 0]
        return y


@torch.no_grad()
def check(model: nn.Module) -> Any:
    """All that can be is exchanged, and the scores are the same."""
    model = Out(model).double().eval()
    x = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    before, keys, modules = model(x), list(model.state_dict()), list(model.modules())
    report = segfast.swap(model)
    assert all(row.why.startswith(BY_RULE) for row in report.left), str(report)
    assert list(model.state_dict()) == keys
    with Operators() as seen:
        assert same(model(x), before)
    assert not seen.of_torch()
    assert not segfast.swap(model).changed
    report.undo()
    assert all(a is b for a, b in zip(model.modules(), modules, strict=True))
    return report


def names(report: Any) -> list[str]:
    return [row.now.removeprefix("segfast.nn.") for row in report.changed]


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("deeplabv3_mobilenet_v3_large", {"DilatedConv2d": 15, "ASPP": 1}),
        ("lraspp_mobilenet_v3_large", {"DilatedConv2d": 15}),
    ],
)
def test_torchvision(name: str, found: dict[str, int]) -> None:
    build = getattr(peer("torchvision.models.segmentation"), name)
    report = check(build(weights=None, weights_backbone=None, num_classes=5))
    assert {kind: names(report).count(kind) for kind in names(report)} == found


@pytest.mark.parametrize(
    ("name", "encoder", "found"),
    [
        ("DeepLabV3", "resnet18", {"MaxPool2d": 1, "ASPP": 1, "DilatedConv2d": 8}),
        ("DeepLabV3Plus", "resnet18", {"MaxPool2d": 1, "ASPP": 1, "DilatedConv2d": 6}),
        ("Unet", "mobilenet_v2", {"DilatedConv2d": 17}),
    ],
)
def test_segmentation_models(name: str, encoder: str, found: dict[str, int]) -> None:
    build = getattr(peer("segmentation_models_pytorch"), name)
    report = check(build(encoder, encoder_weights=None, classes=3))
    assert {kind: names(report).count(kind) for kind in names(report)} == found


@pytest.mark.parametrize(
    ("name", "options", "found"),
    [
        ("resnet26", {"output_stride": 8}, {"MaxPool2d": 1, "DilatedConv2d": 3}),
        ("mobilenetv3_small_050", {"output_stride": 16}, {"DilatedConv2d": 11}),
    ],
)
def test_timm(name: str, options: dict[str, Any], found: dict[str, int]) -> None:
    timm = peer("timm")
    report = check(timm.create_model(name, features_only=True, **options))
    assert {kind: names(report).count(kind) for kind in names(report)} == found


@torch.no_grad()
def test_derived_convolutions_of_timm_stay() -> None:
    """They pad by the size of the map."""
    model = peer("timm").create_model("tf_mobilenetv3_small_075", features_only=True)
    model = Out(model).double().eval()
    x = torch.randn(1, 3, 32, 64, dtype=torch.float64)
    before = model(x)
    report = segfast.swap(model)
    stay = [row for row in report.left if not row.why.startswith(BY_RULE)]
    assert stay
    assert {(row.kind, row.why) for row in stay} == {
        ("Conv2dSame", "it is of a class derived from Conv2d, whose forward may differ")
    }
    assert same(model(x), before)
