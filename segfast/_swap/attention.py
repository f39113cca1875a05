"""Linear attentions of known structure -> segfast.nn.LinearAttention2d, under the same keys.

The published modules of MANet, MAResU-Net and ABCNet hold the same: query_conv, key_conv and
value_conv, 1 x 1, and gamma. So does DANet's, which is no linear attention. What is computed of
them, with or without x, a probe tells.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import nn

from segfast._swap.probe import Probe
from segfast._swap.verdict import Leave, Swap, Verdict, hooked_below, is_plain_parameter, not_plain
from segfast.nn import LinearAttention2d, PositionAttention2d
from segfast.nn.linear_attention import FEATURE_MAPS
from segfast.ops import _check

PROJECTIONS = ("query_conv", "key_conv", "value_conv")
MAP = (2, 6, 6)  # images, rows, columns of the probe: square, as the published code wants it


def to_segfast(module: nn.Module) -> Verdict:
    """What computes a linear attention of its map with itself."""
    if type(module) in (LinearAttention2d, PositionAttention2d) or not _has_structure(module):
        return None
    if why := _unlike(module):
        return Leave(why)
    if why := hooked_below(module):
        return Leave(f"{why}, which attention in one piece does not call")
    query: Any = module.query_conv
    images, height, width = MAP
    probe = Probe(module, (images, query.in_channels, height, width))
    if probe.failed:
        return Leave(probe.failed)
    for residual, feature_map in product((True, False), FEATURE_MAPS):
        if probe.equals(new := _sharing(module, feature_map, residual)):
            return Swap(new, feature_map + ("" if residual else ", without x"))
    return Leave("on a probe it is none of the linear attentions")


def _sharing(module: Any, feature_map: str, residual: bool) -> LinearAttention2d:
    eps = _check.real(getattr(module, "eps", None))
    eps = float(eps) if eps is not None and eps >= 0 else 1e-6
    query = module.query_conv
    with torch.device("meta"):
        new = LinearAttention2d(query.in_channels, query.out_channels, feature_map, eps, residual)
    new._modules = {n: m for n, m in module._modules.items() if n in PROJECTIONS}
    new.gamma = module.gamma
    new.training = module.training
    return new


def _has_structure(module: nn.Module) -> bool:
    """Whether the names are those, and nothing else has state."""
    others = [child for name, child in module._modules.items() if name not in PROJECTIONS]
    return (
        set(PROJECTIONS) <= set(module._modules)
        and set(module._parameters) == {"gamma"}
        and not module._buffers
        and not any(child is not None and child.state_dict() for child in others)
    )


def _unlike(module: Any) -> str | None:
    query, key, value = convs = [getattr(module, name) for name in PROJECTIONS]
    for name, conv in zip(PROJECTIONS, convs, strict=True):
        if why := not_plain(conv, nn.Conv2d):
            return f"{name}: {why}"
        plain = (conv.kernel_size, conv.stride, conv.groups) == ((1, 1), (1, 1), 1)
        if not plain or tuple(conv.padding) != (0, 0):
            return f"{name} is {conv}"
    if not is_plain_parameter(module.gamma) or module.gamma.numel() != 1:
        return "its gamma is no parameter of one element"
    channels = query.in_channels
    if {key.in_channels, value.in_channels, value.out_channels} != {channels}:
        return "its projections do not keep the channels"
    if key.out_channels != query.out_channels:
        return "its queries and keys differ in channels"
    return None
