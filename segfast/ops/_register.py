"""How raw operators are registered: what serves without a compiled kernel, and vmap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segfast._native import native
from segfast.ops._function import compiled


def serve(name: str, compute: Callable[..., Any]) -> None:
    """compute(*arguments) serves the devices without a compiled kernel.

    The compiled ones register themselves when segfast._C is imported, which the first call does.
    """
    operator = getattr(torch.ops.segfast, name)

    def kernel(*arguments: Any) -> Any:
        if native() is not None and compiled(name, arguments[0].device.type):
            return operator(*arguments)
        return compute(*arguments)

    torch.library.impl(f"segfast::{name}", "default")(kernel)


def _as_it_is(x: Tensor, first: Tensor) -> Tensor:
    return x


def batch(name: str, laid_out: Callable[[Tensor, Tensor], Tensor] = _as_it_is) -> None:
    """vmap: a mapped dimension is one more batch dimension, the first of every tensor.

    laid_out(x, first): x in memory as the operator takes it beside its first tensor.
    """
    operator = getattr(torch.ops.segfast, name)

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> Any:
        size = info.batch_size
        folded = [
            fold(x, dim, size) if isinstance(x, Tensor) else x
            for x, dim in zip(arguments, in_dims, strict=True)
        ]
        result = operator(*(laid_out(x, folded[0]) if isinstance(x, Tensor) else x for x in folded))
        first, dim = arguments[0], in_dims[0]
        each = (first.shape if dim is None else first.movedim(dim, 0).shape[1:])[0]  # B
        if isinstance(result, tuple):
            return tuple(x.unflatten(0, (size, each)) for x in result), (0,) * len(result)
        return result.unflatten(0, (size, each)), 0

    torch.library.register_vmap(f"segfast::{name}", rule)


def fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    """[B, ...] with a mapped dimension (or none) -> [size * B, ...]."""
    mapped = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    return mapped.flatten(0, 1)
