"""What launchers of Triton kernels share."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

import torch
import triton.language as tl
from torch import Tensor


def on_device(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


@functools.cache
def multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 132  # in the interpreter: an H100's
    return torch.cuda.get_device_properties(device).multi_processor_count


def index_type(*maps: Tensor) -> tl.dtype:
    """Of offsets into maps without gaps."""
    return tl.int32 if max(x.numel() for x in maps) < 2**31 else tl.int64
