"""What torch.jit.trace keeps of the operators that take sizes.

Sizes are tensors while it looks on; as integers of an operator they would be constants of the
graph. So it is TorchScript that makes integers of them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def _pool(x: Tensor, windows: list[int], height: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
    kh, kw, sh, sw, ph, pw, dh, dw = windows
    return torch.ops.segfast._max_pool2d(x, kh, kw, sh, sw, ph, pw, dh, dw, int(height), int(width))


def _pool_values(x: Tensor, windows: list[int], height: Tensor, width: Tensor) -> Tensor:
    kh, kw, sh, sw, ph, pw, dh, dw = windows
    return torch.ops.segfast._max_pool2d_values(
        x, kh, kw, sh, sw, ph, pw, dh, dw, int(height), int(width)
    )


def _unpool(y: Tensor, packed: Tensor, windows: list[int], height: Tensor, width: Tensor) -> Tensor:
    kh, kw, sh, sw, ph, pw, dh, dw = windows
    return torch.ops.segfast._max_unpool2d(
        y, packed, kh, kw, sh, sw, ph, pw, dh, dw, int(height), int(width)
    )


def _unpool_indices(
    y: Tensor, indices: Tensor, windows: list[int], height: Tensor, width: Tensor
) -> Tensor:
    return torch.ops.segfast._max_unpool2d_indices(y, indices, int(height), int(width))


@functools.cache
def _scripted(function: Callable[..., Any]) -> Callable[..., Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # who traces was told
        return torch.jit.script(function)


def _in_trace(function: Callable[..., Any]) -> Any:
    def traced(*arguments: Any) -> Any:
        *given, height, width = arguments
        tensors = [x for x in given if isinstance(x, Tensor)]
        windows = [x for x in given if not isinstance(x, Tensor)]
        sizes = torch.as_tensor(height), torch.as_tensor(width)
        return _scripted(function)(*tensors, windows, *sizes)

    return staticmethod(traced)


POOL, POOL_VALUES = _in_trace(_pool), _in_trace(_pool_values)
UNPOOL, UNPOOL_INDICES = _in_trace(_unpool), _in_trace(_unpool_indices)
