"""Attention to scale: what uniform and one-sided attention must give."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from segfast.models import AttentionToScale, create_model, load_checkpoint
from segfast.models._layers import msra


def network(**options: Any) -> AttentionToScale:
    torch.manual_seed(0)
    model = AttentionToScale(num_classes=3, **options).eval()
    msra(model)  # or its sixteen layers leave nothing of the image
    return model


@torch.no_grad()
def test_uniform_attention_is_the_average_of_the_scales() -> None:
    model, x = network(), torch.randn(2, 3, 41, 57)
    out, aux = model(x, return_aux=True)
    assert list(aux) == ["scale_1", "scale_0.75", "scale_0.5"]
    model.attention.conv2.weight.zero_()
    uniform = model(x)
    torch.testing.assert_close(uniform, torch.stack(list(aux.values())).mean(0))
    assert (out - uniform).abs().max() > 0.01 * uniform.abs().max() > 0.01
    model.merge, model.attention = "average", None
    torch.testing.assert_close(model(x), uniform)


@torch.no_grad()
def test_attention_to_one_scale_is_deeplab_at_that_scale() -> None:
    model, x = network(), torch.randn(1, 3, 41, 57)
    model.attention.conv2.weight.zero_()
    deeplab = create_model("deeplabv1_largefov", num_classes=3).eval()
    state = model.state_dict()
    load_checkpoint(deeplab, {k: v for k, v in state.items() if not k.startswith("attention")})
    for scale, chosen in enumerate(model.scales):
        model.attention.conv2.bias.copy_(torch.eye(3)[scale] * 1e4)
        size = [int((n - 1) * chosen) + 1 for n in x.shape[-2:]]
        scaled = F.interpolate(x, size, mode="bilinear", align_corners=True)
        want = F.interpolate(
            deeplab.scores(scaled)["out"], (6, 8), mode="bilinear", align_corners=True
        )
        torch.testing.assert_close(model.scores(x)["out"], want)


@torch.no_grad()
def test_the_maximum_of_the_scales() -> None:
    model, x = network(merge="max", scales=(0.5, 1)), torch.randn(1, 3, 33, 40)
    maps = model.scores(x, aux=True)
    assert list(maps) == ["out", "scale_0.5", "scale_1"]
    assert torch.equal(maps["out"], torch.maximum(maps["scale_0.5"], maps["scale_1"]))


@pytest.mark.parametrize("scales", [(0.75, 0.5), (1, 2), (1, 0)])
def test_refusals(scales: tuple[float, ...]) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match="scales must be"):
        AttentionToScale(scales=scales)
