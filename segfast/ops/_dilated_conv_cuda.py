"""The Triton kernels of dilated convolution on CUDA, imported at the first call.

They have the signatures of KERNELS in _dilated_conv_kernels.py. PyTorch serves where they do not:
no Triton, a GPU older than sm_80, and what serves_triton in _dilated_conv_plan.py leaves out.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from segfast._native import has_triton
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.kernels.dilated_conv.triton_configurations import OLDEST


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


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, strides: Any
) -> Tensor:
    return launchers().conv(x, weight, bias, geometry, strides)


def grad_input(grad: Tensor, weight: Tensor, geometry: Geometry, strides: Any) -> Tensor:
    return launchers().grad_input(grad, weight, geometry, strides)


def grad_weight(grad: Tensor, x: Tensor, geometry: Geometry, strides: Any) -> Tensor:
    return launchers().grad_weight(grad, x, geometry, strides)
