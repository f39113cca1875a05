"""A module with other tensors: what is run in its place while it stays as it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only


def look_alike(
    module: nn.Module, replace: Callable[[Tensor], Tensor], known: dict[Any, nn.Module]
) -> nn.Module:
    """The module and all in it anew, with `replace(t)` for every tensor t that it holds.

    Other threads may run the module itself meanwhile. Hooks that write tensors into a module
    (weight and spectral normalisation) write into this one. `known` gets every module's new one;
    what is in it already is taken.
    """
    if module not in known:
        known[module] = new = object.__new__(type(module))
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                value = dict(value)
            vars(new)[name] = tree_map_only(Tensor, replace, value) if name != "_modules" else value
        for name, child in new._modules.items():
            new._modules[name] = child and look_alike(child, replace, known)
    return known[module]


def faker(mode: FakeTensorMode) -> Callable[[Tensor], Tensor]:
    """Tensors -> tensors of the mode, without numbers; those on meta are the CPU's."""

    def fake(x: Tensor) -> Tensor:
        where = "cpu" if x.is_meta else x.device
        with mode:
            return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=where)

    return fake
