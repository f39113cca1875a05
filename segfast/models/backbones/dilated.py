"""Backbones whose last stages can be dilated, by name: for networks that choose one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from segfast.models.backbones.mobilenet_v2 import MobileNetV2
from segfast.models.backbones.mobilenet_v3 import MobileNetV3
from segfast.models.backbones.resnet import RESNETS, ResNet
from segfast.models.backbones.xception import Xception
from segfast.ops import _check


class Row(NamedTuple):
    """A name of :func:`create_dilated`.

    Attributes:
        build: called with in_channels, output_stride and wiring.
        picks: which of its maps a decoder joins (stride 4), an auxiliary head sees, are the last.
        grids: whether it takes `multi_grid` and `copies`.
    """

    build: Callable[..., Any]
    picks: tuple[int, int, int]
    grids: bool = False


def _mobilenet_v3(in_channels: int, output_stride: int, wiring: str) -> MobileNetV3:
    _check.require_choice("layout", wiring, ("torchvision",))
    return MobileNetV3(in_channels, output_stride, taps=(3, 4, 16))


def _xception(in_channels: int, output_stride: int, wiring: str) -> Xception:
    _check.require_choice("layout", wiring, ("jfzhang",))
    return Xception(in_channels, output_stride)


DILATED = {
    "mobilenet_v2": Row(MobileNetV2, (1, 3, 4)),
    "mobilenet_v3_large": Row(_mobilenet_v3, (0, 1, 2)),
    **{f"resnet{depth}": Row(partial(ResNet, depth), (0, 2, -1), grids=True) for depth in RESNETS},
    "xception": Row(_xception, (0, 1, 2)),
}


def create_dilated(
    name: str,
    in_channels: int,
    output_stride: int,
    wiring: str,
    multi_grid: Sequence[int] | None = None,
    published_grid: Sequence[int] = (),
    copies: int = 0,
) -> tuple[Any, tuple[int, int, int]]:
    """A backbone x [N, C, H, W] -> maps, with `channels`; and its row's `picks`.

    Args:
        name: of `DILATED`.
        in_channels, output_stride, wiring: as the backbone's class has them.
        multi_grid, copies: of residual networks only.
        published_grid: of three blocks, where `multi_grid` is None; a ResNet-18, which has two,
            is left without.
    """
    _check.require_choice("backbone", name, tuple(DILATED))
    row = DILATED[name]
    if not row.grids and (multi_grid or copies):
        raise ValueError(f"multi_grid and cascade need a residual network, got backbone {name!r}")
    options: dict[str, Any] = {"copies": copies} if row.grids else {}
    if row.grids and multi_grid is not None:
        options["multi_grid"] = multi_grid
    elif row.grids and name != "resnet18":  # whose last stage has two blocks
        options["multi_grid"] = published_grid
    net = row.build(in_channels=in_channels, output_stride=output_stride, wiring=wiring, **options)
    return net, row.picks
