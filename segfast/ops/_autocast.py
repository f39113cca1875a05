"""What autocast does to an argument, as it does to matmul's and convolution's."""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor


@torch.compiler.assume_constant_result  # torch.compile of torch 2.11 cannot ask
def _available(device: str) -> bool:
    return torch.amp.is_autocast_available(device)  # not on meta


def autocast_dtype(x: Tensor) -> torch.dtype:
    if x.dtype == torch.float64 or not torch._C._is_any_autocast_enabled():
        return x.dtype
    device = x.device.type
    if not _available(device) or not torch.is_autocast_enabled(device):
        return x.dtype
    return torch.get_autocast_dtype(device)


def autocast(x: Tensor) -> Tensor:
    return x.to(autocast_dtype(x))


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Arithmetic on the device of x stays in the dtypes it is written in."""
    device = x.device.type
    if not _available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
