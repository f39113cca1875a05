"""Registers the Triton kernels of linear attention for CUDA; imports them at the first call.

The reference serves where they do not: no Triton, float64, a GPU older than sm_80, more than 256
rows of the state (128 in float32), nothing to compute.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from segfast._native import has_triton
from segfast.kernels.linear_attention.triton_configurations import most_rows
from segfast.ops._linear_attention_op import REFERENCE, TAYLOR, in_two_steps

_PREFIX = "_linear_attention_"


@functools.cache
def launchers() -> ModuleType | None:
    """The module that launches, None without Triton."""
    if not has_triton():
        return None
    from segfast.ops import _linear_attention_triton

    return _linear_attention_triton


def served_by() -> str:
    if not has_triton():
        return "reference (PyTorch): triton is not installed"
    half, single = most_rows("float16"), most_rows("float32")
    limits = f"up to {half} features, {single} in float32; float64: reference"
    return f"triton_state.py, triton_read.py ({limits})"


def _serve(name: str, like: int) -> Callable[..., Any]:
    """The kernel of an operator, the reference where it does not serve; `like`: where k or q is."""
    kernel = name.removeprefix(_PREFIX)

    def serve(*arguments: Any) -> Any:
        x: Tensor = arguments[like]
        module = launchers()
        if module is not None and all(a.numel() for a in arguments if isinstance(a, Tensor)):
            index = next(a for a in arguments if type(a) is int)
            chosen = module.configuration(kernel, x, x.shape[1] + (index == TAYLOR))
            if chosen is not None:
                return getattr(module, kernel)(*arguments, chosen)
        return REFERENCE[name](*arguments)

    return serve


_LIKE = {"state": 0, "state_backward": 1, "read": 0, "read_backward": 1}
KERNELS = {_PREFIX + name: _serve(_PREFIX + name, like) for name, like in _LIKE.items()}
KERNELS |= in_two_steps(KERNELS)
for _name, _kernel in KERNELS.items():
    torch.library.impl(f"segfast::{_name}", "CUDA")(_kernel)
