"""The rules in both directions; the first that knows a module decides."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from segfast._swap import attention, convolutions, pools, pyramids
from segfast._swap.verdict import Leave, Rule, Swap, Verdict, hooked
from segfast.nn import CRFRNN, DenseCRF, LinearAttention2d
from segfast.nn.eager_attention import EagerLinearAttention2d


def to_segfast(model: nn.Module, example: Any) -> tuple[Rule, ...]:
    return (
        quantized,
        pyramids.version3,
        pyramids.version2,
        attention.to_segfast,
        convolutions.to_segfast,
        pools.to_segfast(model, example),
    )


def to_torch(model: nn.Module, example: Any) -> tuple[Rule, ...]:
    """(Pyramids and context modules compute layer by layer once their convolutions are torch's.)"""
    return convolutions.to_torch, pools.to_torch(model), attention_to_torch, no_other_form


RULES = {"segfast": to_segfast, "torch": to_torch}


def quantized(module: nn.Module) -> Verdict:
    """PyTorch's modules for quantization fuse and replace by exact classes."""
    prefixes = ("torch.ao.nn.", "torch.nn.quantized.", "torch.nn.intrinsic.", "torch.nn.qat.")
    if type(module).__module__.startswith(prefixes):
        return Leave("it is quantized, or is to be", enter=False)
    return None


def attention_to_torch(module: nn.Module) -> Verdict:
    """segfast.nn.LinearAttention2d, step by step."""
    if not isinstance(module, LinearAttention2d) or type(module) is EagerLinearAttention2d:
        return None
    if type(module) is not LinearAttention2d:
        return Leave("it is of a class derived from LinearAttention2d, whose forward may differ")
    if hooked(module):
        return Leave("it has hooks")
    with torch.device("meta"):
        new = EagerLinearAttention2d(
            module.channels, module.key_channels, module.feature_map, module.eps, module.residual
        )
    new._modules = dict(module._modules)
    new.gamma = module.gamma
    new.training = module.training
    return Swap(new, module.feature_map)


def no_other_form(module: nn.Module) -> Verdict:
    """Operators that PyTorch does not have."""
    if isinstance(module, (CRFRNN, DenseCRF)):
        return Leave("PyTorch has no dense CRF")
    return None
