"""Calls into autograd.Functions and raw operators with as little in between as possible."""

from __future__ import annotations

from inspect import Parameter, Signature
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad


def transformed() -> bool:
    """Whether a compiler or torch.func looks on."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def call(function: type[Function], *arguments: Any) -> Any:
    """`function.apply(*arguments)`, whose 60 us are saved where nothing needs them."""
    if transformed():
        return function.apply(*arguments)
    needs_graph = torch.is_grad_enabled() and any(
        isinstance(x, Tensor) and x.requires_grad for x in arguments
    )
    if needs_graph or forward_ad._current_level >= 0:
        # What Function.apply ends in, without its look at the signature and for torch.func.
        return super(Function, function).apply(*arguments)  # type: ignore[misc]
    return function.forward(*arguments)


def compiled(name: str, device: str) -> bool:
    """Whether a compiled kernel is registered for a kind of device."""
    key = {"cpu": "CPU", "cuda": "CUDA"}.get(device)
    return key is not None and torch._C._dispatch_has_kernel_for_dispatch_key(
        f"segfast::{name}", key
    )


def forward_of(operator: Any) -> Any:
    """A raw operator as the forward of a Function, which differentiates in its place."""

    def forward(*arguments: Any) -> Any:
        if transformed():
            return operator(*arguments)
        with torch._C._AutoDispatchBelowAutograd():  # past the registered formula, in Python
            return operator(*arguments)

    names = [argument.name for argument in operator._schema.arguments]
    forward.__signature__ = Signature(  # type: ignore[attr-defined]
        [Parameter(name, Parameter.POSITIONAL_ONLY) for name in names]
    )  # torch.compile counts the parameters
    return staticmethod(forward)
