"""Strides, atrous rates and stems of the residual networks, in every wiring."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import nn

from segfast.models.backbones import WIRINGS, ResNet
from tests.fingerprints import filled_input


def builds(depth: int, *output_strides: int, **options: Any) -> list[ResNet]:
    """Networks of one state, in float64."""
    torch.manual_seed(depth)
    state = ResNet(depth, **options).double().state_dict()
    with torch.device("meta"):
        nets = [ResNet(depth, output_stride=stride, **options) for stride in output_strides]
    for net in nets:
        net.eval().load_state_dict(state, assign=True)
    return nets


def rates(net: ResNet, stage: int) -> list[int]:
    """Of the 3 x 3 convolutions of a stage, in order."""
    convs = [m for m in net.get_submodule(f"layer{stage}").modules() if isinstance(m, nn.Conv2d)]
    assert all(conv.padding == conv.dilation for conv in convs if conv.kernel_size == (3, 3))
    return [conv.dilation[0] for conv in convs if conv.kernel_size == (3, 3)]


@pytest.mark.parametrize(
    ("options", "third", "fourth"),
    [
        ({"wiring": "torchvision"}, [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        ({"wiring": "mmseg"}, [1, 2, 2, 2, 2, 2], [2, 4, 4]),
        ({"wiring": "semseg"}, [2] * 6, [4] * 3),
        ({"wiring": "caffe"}, [2] * 6, [4] * 3),
        ({"wiring": "deeplab-pytorch", "multi_grid": (1, 2, 4)}, [2] * 6, [4, 8, 16]),
        ({"wiring": "jfzhang", "output_stride": 16, "multi_grid": (1, 2, 4)}, [1] * 6, [2, 4, 8]),
        ({"wiring": "mmseg", "output_stride": 16, "multi_grid": (1, 2, 4)}, [1] * 6, [1, 2, 4]),
        ({"output_stride": 32}, [1] * 6, [1] * 3),
        ({"depth": 34}, [1, *[2] * 11], [2, 4, 4, 4, 4, 4]),
        ({"depth": 34, "wiring": "mmseg"}, [1, 1, *[2, 1] * 5], [2, 1, 4, 1, 4, 1]),
        ({"depth": 34, "wiring": "smp"}, [2] * 12, [4] * 6),
        ({"contract_dilation": False}, [2] * 6, [4] * 3),
        ({"wiring": "semseg", "contract_dilation": True}, [1, 2, 2, 2, 2, 2], [2, 4, 4]),
    ],
    ids=str,
)  # fmt: skip
def test_rates(options: Any, third: list[int], fourth: list[int]) -> None:
    with torch.device("meta"):
        net = ResNet(**{"depth": 50, "output_stride": 8, **options})
    assert rates(net, 2) == [1] * len(rates(net, 2))
    assert rates(net, 3) == third
    assert rates(net, 4) == fourth


@pytest.mark.parametrize(
    ("depth", "wiring", "copies"),
    [
        (18, "torchvision", 2),
        (50, "torchvision", 0),
        (50, "mmseg", 0),
        (50, "caffe", 0),
        (50, "deeplab-pytorch", 1),
    ],
)
@torch.no_grad()
def test_dilation_computes_what_strides_leave_out(depth: int, wiring: str, copies: int) -> None:
    """The dilated network, seen at every other position, is the strided one: also at the edges."""
    x = filled_input((1, 3, 70, 45))
    nets = builds(depth, 8, 32 * 2**copies, wiring=wiring, copies=copies)
    dilated, strided = (net(x) for net in nets)
    for number, (fine, coarse) in enumerate(zip(dilated, strided, strict=True)):
        step = 2 ** max(number - 1, 0)
        torch.testing.assert_close(fine[..., ::step, ::step], coarse)


@torch.no_grad()
def test_rates_that_are_not_contracted_compute_something_else() -> None:
    """As published: the first block of a dilated stage has the rate one layer too early."""
    x = filled_input((1, 3, 64, 64))
    dilated, strided = (net(x)[3] for net in builds(50, 16, 32, wiring="smp"))
    assert dilated.shape[-1] == 4
    assert not torch.allclose(dilated[..., ::2, ::2], strided)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_stems_and_sizes(wiring: str) -> None:
    with torch.device("meta"):
        net = ResNet(50, in_channels=4, wiring=wiring)
        maps = net(torch.empty(1, 4, 97, 130))
    wires = WIRINGS[wiring]
    convs = [net.conv1] if net.stem is None else [m for m in net.stem if isinstance(m, nn.Conv2d)]
    assert tuple(conv.out_channels for conv in convs) == wires.stem
    assert convs[0].in_channels == 4
    # 97 and 130 -> 49 and 65 by the stem, which are odd: the pool's rounding does not matter
    assert maps[0].shape[-2:] == (25, 33)
    assert [m.shape[1] for m in maps] == list(net.channels) == [256, 512, 1024, 2048]
    first = net.get_submodule("layer2.0")
    assert first.conv1.stride == ((2, 2) if wires.stride_first else (1, 1))
    assert first.conv2.stride == ((1, 1) if wires.stride_first else (2, 2))


def test_pool_that_rounds_up() -> None:
    """95 -> 48 -> 24 + (the last window has one position), or 24."""
    with torch.device("meta"):
        x = torch.empty(1, 3, 95, 95)
        floor, ceil = (ResNet(50, wiring=name)(x)[0] for name in ("torchvision", "deeplab-pytorch"))
    assert (floor.shape[-1], ceil.shape[-1]) == (24, 25)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"depth": 51}, "depth must be one of 18, 34, 50, 101, 152; got 51"),
        ({"output_stride": 64}, "output_stride must be one of 8, 16, 32; got 64"),
        ({"output_stride": 12}, "output_stride must be one of 8, 16, 32; got 12"),
        ({"copies": 1, "output_stride": 4}, "output_stride must be one of 8, 16, 32, 64; got 4"),
        ({"copies": -1}, "copies must be at least 0, got -1"),
        ({"wiring": "keras"}, "wiring must be one of torchvision, mmseg"),
        ({"multi_grid": (1, 2)}, "multi_grid must have 3 rates, got (1, 2)"),
        ({"multi_grid": (1, 2, 0)}, "multi_grid must be at least 1, got 0"),
    ],
)
def test_options_are_checked(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        ResNet(**{"depth": 50, **options})
