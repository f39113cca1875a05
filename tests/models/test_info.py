"""Multiply-accumulates and fields of view against those counted for the published code."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

from segfast.models import _ENTRIES, macs, model_info
from segfast.nn import DilatedConv2d


class Published(NamedTuple):
    """GMACs of the published code for one image, and pixels that a score sees, by the rule."""

    model: str
    size: tuple[int, int]
    gmacs: float
    field: float = math.inf
    options: Mapping[str, Any] = {}


PUBLISHED = (
    Published("deeplabv2_resnet101", (513, 513), 188.8858, 1411),
    Published("fcdensenet103", (352, 480), 67.5913, 2312),
    Published("fcn8s_vgg16", (500, 500), 181.5290, 460),
    Published("hrnet_w18_small", (512, 1024), 19.2142, 1087),
    Published("hrnet_w48", (512, 1024), 186.8783, 2831),
    Published("manet_resnet50", (512, 512), 53.9439),
    Published("maresunet_resnet34", (512, 512), 28.6264),
    Published("pspnet_resnet50", (473, 473), 161.6371),
    Published("refinenet_resnet101", (512, 512), 262.8990, 3627),
    Published("refinenet_resnet50_light", (512, 512), 31.9774, 1451),
    Published("segnet", (360, 480), 106.2878, 392, {"layout": "ptsemseg"}),
    Published("unet", (388, 388), 150.4284, 200, {"in_channels": 1}),
    Published("unet_resnet34", (512, 512), 32.0109, 1025),
)


LIKE_OTHERS = ("hrnet_w48", "refinenet_resnet101")  # deeper, wider; run with --all


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(row, id=row.model, marks=[pytest.mark.thorough] * (row.model in LIKE_OTHERS))
        for row in PUBLISHED
    ],
)
def test_counts_of_the_published_code(row: Published) -> None:
    info = model_info(row.model, size=row.size, **row.options)
    if "linear_attention" in info.operators:
        # Denominators are sums here, products there; Taylor's constant feature is a row of two
        # products here, sums there: 2 N C of each map, 1.4e-4 of all in MAResU-Net.
        assert 0 < abs(row.gmacs - info.macs / 1e9) < 1.4e-4 * row.gmacs
    else:
        assert round(info.macs / 1e9, 4) == row.gmacs
    assert info.receptive_field.rows.size == row.field


def test_macs_of_layers() -> None:
    conv = nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2)
    assert macs(conv, (9, 10), in_channels=4) == 6 * 5 * 5 * 2 * 9
    dilated = DilatedConv2d(4, 6, 3, padding=2, dilation=2)
    assert macs(dilated, (9, 10), in_channels=4) == 6 * 9 * 10 * 4 * 9  # with padding's, too
    assert all(not p.is_meta for p in conv.parameters())


def test_info_of_a_name() -> None:
    info = model_info("deeplabv3_mobilenet_v3_large", 5, 4, (65, 97))
    assert (info.num_classes, info.in_channels, info.size) == (5, 4, (65, 97))
    assert info.operators == ("dilated_conv",)
    assert info.layouts == ("torchvision",)
    assert info.receptive_field.rows.size == torch.inf
    assert model_info("segnet_basic", size=64).size == (64, 64)  # type: ignore[arg-type]


def test_figures_say_of_what() -> None:
    """Data, split and measure; what the name alone does not say, too."""
    for entry in _ENTRIES.values():
        for what, value in entry.metrics.items():
            assert re.search(r"\b(val|test|seg11valid|challenge)\b", what), (entry.name, what)
            assert re.search(r"\b(mean (IU|F1)|IoU|accuracy|average|F1)\b", what), what
            assert 0 < value < 100
    assert "TensorFlow" in " ".join(_ENTRIES["deeplabv3plus_xception"].metrics)


def test_refusals() -> None:
    with pytest.raises(ValueError, match=r"list_models\(\) \(unet.*\), got 'unett'"):
        model_info("unett")
    with pytest.raises(ValueError, match=r"list_models\(\) \(fcn8s_vgg16.*\), got 'FCN8s_VGG16'"):
        model_info("FCN8s_VGG16")
    with pytest.raises(ValueError, match="size must be at least 1"):
        macs(nn.Conv2d(3, 1, 1), (0, 4))
