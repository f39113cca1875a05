"""MobileNets: where strides go and rates come from; jfzhang's padding."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from segfast.models.backbones import MobileNetV2, MobileNetV3
from segfast.models.backbones._mobilenet import MobileNet
from segfast.nn import DilatedConv2d


def rates(network: MobileNet) -> list[tuple[int, int]]:
    """(stride, rate) of every block's depthwise convolution."""
    found = [m for m in network.modules() if isinstance(m, nn.Conv2d) and m.groups > 1]
    assert all(type(conv) is DilatedConv2d for conv in found)
    return [(conv.stride[0], conv.dilation[0]) for conv in found]


V2 = [(1, 1), *[(2, 1), (1, 1)], *[(2, 1), (1, 1), (1, 1)]]  # up to stride 8
V2_TAIL = {
    ("torchvision", 32): [(2, 1), *[(1, 1)] * 6, (2, 1), *[(1, 1)] * 3],
    ("torchvision", 16): [(2, 1), *[(1, 1)] * 6, *[(1, 2)] * 4],
    ("smp", 8): [*[(1, 2)] * 7, *[(1, 4)] * 4],
    ("jfzhang", 16): [(2, 1), *[(1, 1)] * 9, (1, 2)],
    ("jfzhang", 8): [*[(1, 1)] * 4, *[(1, 2)] * 6, (1, 4)],
}


@pytest.mark.parametrize(("wiring", "output_stride"), V2_TAIL)
def test_rates_of_v2(wiring: str, output_stride: int) -> None:
    network = MobileNetV2(4, output_stride, wiring).eval()
    assert rates(network) == V2 + V2_TAIL[wiring, output_stride]
    maps = network(torch.randn(1, 4, 65, 97))
    strides = [min(stride, output_stride) for stride in (2, 4, 8, 16, 32)]
    assert [tuple(x.shape) for x in maps] == [
        (1, channels, 64 // stride + 1, 96 // stride + 1)
        for channels, stride in zip(network.channels, strides, strict=True)
    ]


def test_rates_of_v3() -> None:
    head = [(1, 1), (2, 1), (1, 1), (2, 1), (1, 1), (1, 1)]
    middle = [(2, 1), *[(1, 1)] * 5]
    assert rates(MobileNetV3()) == [*head, *middle, (2, 1), (1, 1), (1, 1)]
    assert rates(MobileNetV3(output_stride=16)) == [*head, *middle, *[(1, 2)] * 3]
    assert rates(MobileNetV3(output_stride=8)) == [*head, *[(1, 2)] * 6, *[(1, 4)] * 3]


@torch.no_grad()
def test_padding_before_the_expansion_is_seen_at_the_border_only() -> None:
    """jfzhang's blocks pad first: a normalisation turns those zeros into its shift."""
    torch.manual_seed(0)
    first, then = MobileNetV2(wiring="jfzhang"), MobileNetV2(wiring="torchvision")
    block, twin = first.eval().features[3], then.eval().features[3]
    assert isinstance(block, nn.Module)
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.bias.uniform_(-1, 1)
    twin.load_state_dict(block.state_dict())
    x = torch.randn(1, 24, 9, 7)
    y, z = block(x), twin(x)
    torch.testing.assert_close(y[..., 1:-1, 1:-1], z[..., 1:-1, 1:-1])
    expand, depthwise, project, norm = twin.conv
    w = expand(nn.functional.pad(x, [1] * 4))  # [1, 144, 11, 9]
    w = depthwise(w)[..., 1:-1, 1:-1]
    torch.testing.assert_close(y, x + norm(project(w)))
    assert (y - z).abs().max() > 1e-2


@pytest.mark.parametrize("build", [MobileNetV2, MobileNetV3])
def test_refusals(build: Callable[..., MobileNet]) -> None:
    with pytest.raises(ValueError, match="output_stride must be 8, 16 or 32, got 4"):
        build(output_stride=4)
    with pytest.raises(ValueError, match=r"taps must be among 0\.\.1\d, got 19"):
        build(taps=(1, 19))
    with pytest.raises(ValueError, match="wiring must be one of torchvision, smp, jfzhang"):
        MobileNetV2(wiring="tf")
