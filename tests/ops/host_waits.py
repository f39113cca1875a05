"""Counts what the host would wait for on a GPU, with tensors of the CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

WAITS = {
    Tensor.tolist, Tensor.item, Tensor.nonzero, torch.nonzero,
    Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__,
}  # fmt: skip


class HostWaits(TorchFunctionMode):
    """While it lasts, `seen` lists the functions that need a tensor's numbers.

    Those of `known` are on the CPU anyway.
    """

    def __init__(self, *known: Tensor) -> None:
        super().__init__()
        self.known = {x.data_ptr() for x in known}
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = func in WAITS or (func is Tensor.to and "cpu" in args)
        if named and args[0].data_ptr() not in self.known:
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))
