"""The Triton kernels of dilated convolution on CUDA, imported at the first call.

Functions (problem, strides) -> Serve, as KERNELS of _dilated_conv_kernels.py holds them. PyTorch
serves where they do not: no Triton, a GPU older than sm_80, and what serves_triton in
_dilated_conv_plan.py leaves out.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import ModuleType

import torch
from torch import Tensor

from segfast._native import has_triton
from segfast.kernels.dilated_conv.triton_configurations import OLDEST
from segfast.ops._dilated_conv_plan import Problem, Strides


def available() -> bool:
    """Whether they run on every GPU of this machine."""
    devices = range(torch.cuda.device_count())
    return has_triton() and all(torch.cuda.get_device_capability(i) >= OLDEST for i in devices)


def served_by() -> str:
    if not has_triton():
        return "PyTorch: triton is not installed"
    return (
        "triton_dense.py, triton_depthwise.py, triton_context.py (PyTorch: float64, other groups,"
        " dense float32, little padding; segfast.explain says which)"
    )


@functools.cache
def launchers() -> ModuleType:
    from segfast.ops import _dilated_conv_triton

    return _dilated_conv_triton


def forward(problem: Problem, strides: Strides) -> Callable[..., Tensor]:
    """(x, weight, bias) -> y"""
    conv, geometry = launchers().conv, problem.geometry
    return lambda x, weight, bias: conv(x, weight, bias, geometry, strides)


def grad_input(problem: Problem, strides: Strides) -> Callable[..., Tensor]:
    """(grad, weight) -> grad_x"""
    compute, geometry = launchers().grad_input, problem.geometry
    return lambda grad, weight: compute(grad, weight, geometry, strides)


def grad_weight(problem: Problem, strides: Strides) -> Callable[..., Tensor]:
    """(grad, x) -> grad_weight"""
    compute, geometry = launchers().grad_weight, problem.geometry
    return lambda grad, x: compute(grad, x, geometry, strides)
