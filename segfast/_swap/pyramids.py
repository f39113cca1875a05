"""Atrous pyramids of known structure -> segfast.nn.ASPP and ASPPv2, under the same keys.

Version 3, as torchvision and segmentation_models.pytorch publish it (and whoever builds it alike):

    convs.0          1 x 1 convolution, batch norm, ReLU
    convs.1, ...     3 x 3 convolution of rate r (or depthwise, then 1 x 1), batch norm, ReLU
    convs.last       average of the map, 1 x 1 convolution, batch norm, ReLU
    project          1 x 1 convolution, batch norm, ReLU, dropout

Version 2, as kazuto1011/deeplab-pytorch publishes it: c0, c1, ..., 3 x 3 convolutions that are
summed. What lies between the parts, a probe tells.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from segfast._swap.probe import Probe
from segfast._swap.verdict import Leave, Swap, Verdict, held, hooked_below, not_plain
from segfast.nn import ASPP, ASPPv2, DilatedConv2d, SeparableDilatedConv2d

ONLY_CONVOLUTIONS = "only its convolutions are looked at"
MAP = (2, 4, 5)  # images, rows, columns of the probe


class Unlike(Exception):
    """The structure is another one, and where."""


def version3(module: nn.Module) -> Verdict:
    """A module with `convs` and `project`, some of them dilated."""
    if isinstance(module, ASPP) or held(module) != {"convs", "project"} or not dilated_in(module):
        return None
    try:
        new, below = _version3(module)
    except Unlike as unlike:
        return Leave(f"no ASPP of known structure ({unlike}): {ONLY_CONVOLUTIONS}")
    rates = ", ".join(str(conv.dilation[0]) for conv in dilated_in(new))
    return _proven(module, new, new.in_channels, below, f"rates {rates}")


def version2(module: nn.Module) -> Verdict:
    """A module of c0, c1, ... that are dilated convolutions of one shape."""
    convs: list[Any] = list(module.children())
    names = [f"c{i}" for i in range(len(convs))]
    if isinstance(module, ASPPv2) or len(convs) < 2 or list(module._modules) != names:
        return None
    if held(module) != set(names) or not dilated_in(module):
        return None
    try:
        for name, conv in zip(names, convs, strict=True):
            _require_conv(conv, name, 3, convs[0].in_channels, convs[0].out_channels)
    except Unlike as unlike:
        return Leave(f"no ASPP of known structure ({unlike}): {ONLY_CONVOLUTIONS}")
    with torch.device("meta"):
        rates = [conv.dilation[0] for conv in convs]
        new = ASPPv2(convs[0].in_channels, convs[0].out_channels, rates)
    below: Below = [(module, new)]
    for name, conv in zip(names, convs, strict=True):
        setattr(new, name, _dilated(conv, below))
    new.training = module.training
    return _proven(module, new, new.in_channels, below, f"rates {', '.join(map(str, rates))}")


def _proven(module: nn.Module, new: nn.Module, channels: int, below: Any, note: str) -> Verdict:
    """The exchange, if nothing hangs on the parts and a probe sees no difference."""
    if why := hooked_below(module):
        return Leave(f"{why}, which a pyramid in one piece does not call: {ONLY_CONVOLUTIONS}")
    images, height, width = MAP
    probe = Probe(module, (images, channels, height, width))
    if probe.equals(new):
        return Swap(new, note, tuple(below))
    why = probe.failed or "on a probe it computes something else"
    return Leave(f"{why}: {ONLY_CONVOLUTIONS}")


def dilated_in(module: nn.Module) -> list[nn.Conv2d]:
    """All dilated convolutions below it."""
    convs = [child for child in module.modules() if isinstance(child, nn.Conv2d)]
    return [conv for conv in convs if conv.dilation != (1, 1)]


# ------------------------------------------------------------------------------ version 3

Below = list[tuple[nn.Module, nn.Module]]  # (old, new)
Kind = type[nn.Module] | Callable[[Any, str], None]  # a class, or what raises Unlike
NORMALIZED: tuple[Kind, ...] = (nn.BatchNorm2d, nn.ReLU)


def _version3(module: Any) -> tuple[ASPP, Below]:
    convs = module.convs
    if not isinstance(convs, nn.ModuleList) or len(convs) < 3:
        raise Unlike("convs is no ModuleList of three branches at least")
    last, first = len(convs) - 1, next(iter(convs[0].children()), None)
    if not isinstance(first, nn.Conv2d):
        raise Unlike("convs.0 does not begin with a convolution")
    inputs, outputs = first.in_channels, first.out_channels
    separable = isinstance(next(iter(convs[1].children()), None), nn.Sequential)

    def conv(
        kernel: int, inputs: int = inputs, outputs: int = outputs, groups: int = 1
    ) -> Callable[[Any, str], None]:
        return lambda part, name: _require_conv(part, name, kernel, inputs, outputs, groups, False)

    def pair(part: Any, name: str) -> None:
        _require_parts(part, name, (conv(3, inputs, inputs, groups=inputs), conv(1)))

    _require_parts(convs[0], "convs.0", (conv(1), *NORMALIZED))
    for i in range(1, last):
        _require_parts(convs[i], f"convs.{i}", (pair if separable else conv(3), *NORMALIZED))
    _require_parts(convs[last], f"convs.{last}", (_require_average, conv(1), *NORMALIZED))
    ends = (conv(1, len(convs) * outputs), *NORMALIZED, nn.Dropout)
    _require_parts(module.project, "project", ends)
    with torch.device("meta"):
        new = ASPP(inputs, [1] * (last - 1), outputs, separable)  # the convolutions have the rates
    new.project = nn.Sequential(*module.project)
    below: Below = [(module, new), (module.convs, new.convs), (module.project, new.project)]
    branches: Any = convs
    for i, branch in enumerate(branches):
        head, *tail = branch
        if 0 < i < last:
            head = _separable(head, below) if separable else _dilated(head, below)
        new.convs[i] = nn.Sequential(head, *tail)
        below.append((branch, new.convs[i]))
    for old, copy in below:
        copy.training = old.training
    return new, below


def _separable(pair: Any, below: Below) -> SeparableDilatedConv2d:
    depthwise, pointwise = pair
    with torch.device("meta"):
        new = SeparableDilatedConv2d(1, 1, 1)
    new[0], new[1] = _dilated(depthwise, below), pointwise
    below.append((pair, new))
    return new


def _dilated(conv: nn.Conv2d, below: Below) -> DilatedConv2d:
    new = DilatedConv2d.from_conv(conv)
    below.append((conv, new))
    return new


# ------------------------------------------------------------------------------ structure


def _require_parts(module: nn.Module, name: str, kinds: Sequence[Kind]) -> None:
    """A Sequential of such parts, or a class derived from it, whose forward the probe judges."""
    numbers = [str(i) for i in range(len(kinds))]
    if not isinstance(module, nn.Sequential) or list(module._modules) != numbers:
        raise Unlike(f"{name} is no Sequential of {len(kinds)}")
    for i, (part, kind) in enumerate(zip(module, kinds, strict=True)):
        if not isinstance(kind, type):
            kind(part, f"{name}.{i}")
        elif type(part) is not kind:
            raise Unlike(f"{name}.{i} is no {kind.__name__}")


def _require_average(part: Any, name: str) -> None:
    if type(part) is not nn.AdaptiveAvgPool2d or part.output_size not in (1, (1, 1)):
        raise Unlike(f"{name} is no average of the map")


def _require_conv(
    conv: Any, name: str, kernel: int, inputs: int, outputs: int, groups: int = 1,
    bias: bool | None = None,
) -> None:  # fmt: skip
    """A convolution of that shape that keeps the size; a 3 x 3 one may be ours already."""
    kinds = (nn.Conv2d,) if kernel == 1 else (nn.Conv2d, DilatedConv2d)
    if type(conv) not in kinds:
        raise Unlike(f"{name} is no plain convolution")
    if why := not_plain(conv, type(conv)):
        raise Unlike(f"{name}: {why}")
    rate = conv.dilation[0]
    margin = rate * (kernel // 2)
    wanted = (inputs, outputs, groups, (kernel, kernel), (1, 1), (rate, rate), (margin, margin))
    found = (
        conv.in_channels, conv.out_channels, conv.groups, conv.kernel_size, conv.stride,
        conv.dilation, conv.padding,
    )  # fmt: skip
    biased = bias is not None and (conv.bias is not None) != bias
    if found != wanted or biased or conv.padding_mode != "zeros":
        raise Unlike(f"{name} is {conv}")
