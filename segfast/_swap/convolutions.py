"""Convolutions: torch.nn.Conv2d <-> segfast.nn.DilatedConv2d, which shares their parameters."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.conv import _ConvNd

from segfast._swap.verdict import Leave, Swap, Verdict, keep_attributes, not_plain
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.nn import DilatedConv2d
from segfast.nn.dilated_conv import sharing
from segfast.ops._check import DTYPES
from segfast.ops._dilated_conv_plan import EVERY, Problem, candidates

PLAIN = "neither dilated nor grouped: PyTorch's is as good"


def to_segfast(module: nn.Module) -> Verdict:
    """Dilated convolutions, and those of a few channels in a group, which kernels of ours serve."""
    if isinstance(module, DilatedConv2d) or not isinstance(module, _ConvNd):
        return None
    dilated = any(k > 1 and r > 1 for k, r in zip(module.kernel_size, module.dilation, strict=True))
    if not isinstance(module, nn.Conv2d):
        return Leave("segfast.nn has no module for it") if dilated else None
    if not dilated and module.groups == 1:
        return Leave(PLAIN)
    if module.groups > 1 and not serves_groups(module):
        each = module.in_channels // module.groups
        return Leave(f"no kernel of ours takes groups of {each} channels")
    if why := not_plain(module, nn.Conv2d):
        return Leave(why)
    if module.weight.dtype not in DTYPES:
        return Leave(f"no kernel of ours takes {module.weight.dtype}")
    new = DilatedConv2d.from_conv(module)
    keep_attributes(new, module)
    return Swap(new, describe(module))


def to_torch(module: nn.Module) -> Verdict:
    """Every DilatedConv2d."""
    if not isinstance(module, DilatedConv2d):
        return None
    if why := not_plain(module, DilatedConv2d):
        return Leave(why)
    new = sharing(nn.Conv2d, module, module.stride, module.padding, module.dilation)
    keep_attributes(new, module)
    return Swap(new, describe(module))


def serves_groups(conv: nn.Conv2d) -> bool:
    """Whether a kernel of ours computes it, on a processor or a GPU, in maps of any usual size."""
    inputs, outputs = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    height, width = conv.kernel_size
    geometry = Geometry.same((64, 64), (height, width), conv.dilation[0])
    problems = [
        Problem(device, "float32", False, 1, conv.groups, inputs, outputs, geometry)
        for device in ("cpu", "cuda")
    ]
    return any(candidates("forward", problem, EVERY) != ("torch",) for problem in problems)


def describe(conv: nn.Conv2d) -> str:
    """ "rate 2, depthwise" """
    vertical, horizontal = conv.dilation
    rate = str(vertical) if vertical == horizontal else f"{vertical} x {horizontal}"
    depthwise = conv.groups == conv.in_channels == conv.out_channels
    kind = "depthwise" if depthwise else f"{conv.groups} groups"
    facts = [f"rate {rate}"] if conv.dilation != (1, 1) else []
    return ", ".join(facts + [kind] * (conv.groups > 1))
