"""Modules with parameters of their own take the device and dtype of torch.nn, integers of NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segfast import nn as ours

INT = np.int64
BUILD: dict[str, Callable[..., nn.Module]] = {
    "ASPP": lambda **f: ours.ASPP(INT(4), range(2, 6, 2), INT(3), **f),
    "ASPP separable": lambda **f: ours.ASPP(4, [INT(2)], 3, True, **f),
    "ASPPv2": lambda **f: ours.ASPPv2(INT(4), INT(3), (INT(2), INT(3)), **f),
    "BilinearConvTranspose2d": lambda **f: ours.BilinearConvTranspose2d(4, None, INT(2), **f),
    "CRFRNN": lambda **f: ours.CRFRNN(nn.Identity(), INT(4), iterations=INT(2), **f),
    "ChannelAttention2d": lambda **f: ours.ChannelAttention2d(**f),
    "ContextModule": lambda **f: ours.ContextModule(INT(4), dilations=(INT(1), INT(2)), **f),
    "DilatedConv2d": lambda **f: ours.DilatedConv2d(4, 3, 3, **f),
    "LinearAttention2d": lambda **f: ours.LinearAttention2d(INT(16), INT(4), **f),
    "NonLocal2d": lambda **f: ours.NonLocal2d(INT(4), INT(2), sub_sample=True, **f),
    "PositionAttention2d": lambda **f: ours.PositionAttention2d(INT(16), INT(4), **f),
    "SeparableDilatedConv2d": lambda **f: ours.SeparableDilatedConv2d(
        INT(4), INT(3), INT(3), INT(1), INT(2), INT(2), True, True, "relu", **f
    ),
}


def floats(module: nn.Module) -> list[torch.Tensor]:
    return [t for t in module.state_dict().values() if t.is_floating_point()]


@pytest.mark.parametrize("name", BUILD)
def test_device_and_dtype(name: str) -> None:
    usual = BUILD[name]()
    built = BUILD[name](device="meta", dtype=torch.bfloat16)
    assert floats(built)
    assert {(t.device.type, t.dtype) for t in floats(built)} == {("meta", torch.bfloat16)}
    assert {t.dtype for t in floats(usual)} == {torch.float32}
    assert built.state_dict().keys() == usual.state_dict().keys()
    wide = BUILD[name](dtype=torch.float64)
    assert {(t.device.type, t.dtype) for t in floats(wide)} == {("cpu", torch.float64)}


# Without parameters, or, DenseCRF, with those that are given as tensors.
OTHERS = (ours.MaxPool2d, ours.MaxUnpool2d, ours.FixedUnpool2d, ours.DenseCRF)
UPSAMPLE = (ours.NearestUpsample2d, ours.BilinearUpsample2d, ours.BicubicUpsample2d)


def test_every_module_is_looked_at() -> None:
    named: dict[str, Any] = {name: getattr(ours, name) for name in ours.__all__}
    modules = {n for n, m in named.items() if isinstance(m, type) and issubclass(m, nn.Module)}
    assert modules - {m.__name__ for m in (*OTHERS, *UPSAMPLE)} == {n.split()[0] for n in BUILD}
