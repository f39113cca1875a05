"""Object context, written out; exchange between strides."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.models import create_model
from segfast.models._base import resize
from segfast.models.backbones.hrnet import Exchange, HRNet
from segfast.models.hrnet import ObjectContext


def test_object_context_is_its_equation() -> None:
    """Pixel by pixel and class by class."""
    torch.manual_seed(0)
    module = ObjectContext(6, 4).double().eval()
    x = torch.randn(2, 6, 3, 5, dtype=torch.float64)
    scores = torch.randn(2, 3, 3, 5, dtype=torch.float64)
    context = torch.zeros(2, 4, 3, 5, dtype=torch.float64)
    for n in range(2):
        where = scores[n].flatten(1).softmax(1)
        objects = torch.stack([(x[n].flatten(1) * where[k]).sum(1) for k in range(3)])  # [L, C]

        def of(module: nn.Module, v: Tensor) -> Tensor:
            return module(v[None, :, None, None])[0, :, 0, 0]

        keys = [of(module.object, f) for f in objects]
        values = [of(module.down, f) for f in objects]
        for i in range(3):
            for j in range(5):
                query = of(module.pixel, x[n, :, i, j])
                weights = torch.stack([query @ key / 2 for key in keys]).softmax(0)
                context[n, :, i, j] = sum(w * v for w, v in zip(weights, values, strict=True))  # type: ignore[assignment]
    expected = module.project(torch.cat([module.up(context), x], 1))
    torch.testing.assert_close(module(x, scores), expected)


def test_exchange_of_two_strides() -> None:
    torch.manual_seed(0)
    module = Exchange((2, 4), 1, partial(resize, align_corners=False)).double().eval()
    maps = [torch.randn(1, 2, 7, 9, dtype=torch.float64), torch.randn(1, 4, 4, 5).double()]
    high, low = (branch(x) for branch, x in zip(module.branches, maps, strict=True))
    up, down = module.fuse_layers[0]["1"], module.fuse_layers[1]["0"]  # type: ignore[index]
    expected = [
        torch.relu(high + F.interpolate(up(low), (7, 9), mode="bilinear")),
        torch.relu(down(high) + low),
    ]
    for found, wanted in zip(module(maps), expected, strict=True):
        torch.testing.assert_close(found, wanted)


def test_strides() -> None:
    with torch.device("meta"):
        backbone = HRNet("w18_small", in_channels=4)
        maps = backbone(torch.empty(1, 4, 65, 97))
    assert [x.shape[1] for x in maps] == [18, 36, 72, 144]
    assert [x.shape[2] for x in maps] == [17, 9, 5, 3]


def test_refusals() -> None:
    with pytest.raises(ValueError, match="size must be one of w18_small, w18, w32, w40, w48"):
        create_model("hrnet_w48", size="w64")
    with pytest.raises(ValueError, match="layout must be one of official"):
        create_model("hrnet_w48_ocr", layout="mmseg")
