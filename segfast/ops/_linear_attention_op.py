"""Registration of the raw linear-attention operators: schemas, fakes, vmap, reference.

They take checked maps [B, channels, positions] of one dtype, positions next to each other, any
other strides. The state [B, R, E + 1] and its gradient are float32 (float64 for float64).
Gradients: _linear_attention_grad.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segfast._native import native
from segfast.kernels.linear_attention import reference
from segfast.ops._function import compiled

_QUERY = "Tensor q, Tensor state, Tensor? gamma"
SCHEMAS = {
    "_linear_attention_state": "(Tensor k, Tensor v, int feature_map) -> Tensor",
    "_linear_attention_state_backward": "(Tensor grad, Tensor k, Tensor v, int feature_map) -> "
    "(Tensor, Tensor)",
    "_linear_attention_read": f"({_QUERY}, Tensor? residual, int feature_map, float eps) -> Tensor",
    "_linear_attention_read_backward": f"(Tensor grad, {_QUERY}, int feature_map, float eps) -> "
    "(Tensor, Tensor, Tensor)",
}
TAYLOR = reference.FEATURE_MAPS.index("taylor")
for _name, _schema in SCHEMAS.items():
    torch.library.define(f"segfast::{_name}", _schema)


def rows(x: Tensor) -> Tensor:
    """x [B, C, N] with positions next to each other: x itself, or a copy."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


# Kernels. The compiled ones register themselves when segfast._C is imported, which the first call
# does; from then on these see the devices without one.
def _serve(name: str, compute: Callable[..., Any]) -> None:
    operator = getattr(torch.ops.segfast, name)

    def kernel(*arguments: Any) -> Any:
        if native() is not None and compiled(name, arguments[0].device.type):
            return operator(*arguments)
        return compute(*arguments)

    torch.library.impl(f"segfast::{name}", "default")(kernel)


def _read(
    q: Tensor, state: Tensor, gamma: Tensor | None, residual: Tensor | None, index: int, eps: float
) -> Tensor:
    return reference.read(q, state, reference.FEATURE_MAPS[index], eps, gamma, residual)


def _read_backward(
    grad: Tensor, q: Tensor, state: Tensor, gamma: Tensor | None, index: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    name = reference.FEATURE_MAPS[index]
    return reference.read_backward(grad, q, state, name, eps, gamma)


def _state(k: Tensor, v: Tensor, index: int) -> Tensor:
    return reference.state(k, v, reference.FEATURE_MAPS[index])


def _state_backward(grad: Tensor, k: Tensor, v: Tensor, index: int) -> tuple[Tensor, Tensor]:
    return reference.state_backward(grad, k, v, reference.FEATURE_MAPS[index])


REFERENCE: dict[str, Callable[..., Any]] = {
    "_linear_attention_state": _state,
    "_linear_attention_state_backward": _state_backward,
    "_linear_attention_read": _read,
    "_linear_attention_read_backward": _read_backward,
}


# Fakes: shapes and dtypes only.
def _fake_state(k: Tensor, v: Tensor, index: int) -> Tensor:
    shape = (k.shape[0], k.shape[1] + (index == TAYLOR), v.shape[1] + 1)
    return k.new_empty(shape, dtype=reference.accumulator(k.dtype))


def _fake_read(q: Tensor, state: Tensor, gamma: Any, residual: Any, index: int, eps: float) -> Any:
    return q.new_empty((q.shape[0], state.shape[2] - 1, q.shape[2]))


FAKES: dict[str, Callable[..., Any]] = {
    "_linear_attention_state": _fake_state,
    "_linear_attention_state_backward": lambda grad, k, v, index: (
        k.new_empty(k.shape),
        v.new_empty(v.shape),
    ),
    "_linear_attention_read": _fake_read,
    "_linear_attention_read_backward": lambda grad, q, state, gamma, index, eps: (
        q.new_empty(q.shape),
        state.new_empty(state.shape),
        state.new_empty(q.shape[:1]),
    ),
}


# vmap: a mapped dimension is one more batch dimension.
def _batch(name: str) -> None:
    operator = getattr(torch.ops.segfast, name)

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> Any:
        size = info.batch_size
        folded = [
            _fold(x, dim, size) if isinstance(x, Tensor) else x
            for x, dim in zip(arguments, in_dims, strict=True)
        ]
        first, dim = arguments[0], in_dims[0]
        maps = (first.shape if dim is None else first.movedim(dim, 0).shape[1:])[0]  # B
        result = operator(*folded)
        if isinstance(result, tuple):
            return tuple(x.unflatten(0, (size, maps)) for x in result), (0,) * len(result)
        return result.unflatten(0, (size, maps)), 0

    torch.library.register_vmap(f"segfast::{name}", rule)


def _fold(x: Tensor, dim: int | None, size: int) -> Tensor:
    """[B, ...] with a mapped dimension (or none) -> [size * B, ...]."""
    mapped = x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)
    folded = mapped.flatten(0, 1)
    return rows(folded) if folded.dim() == 3 else folded


for _name in SCHEMAS:
    _serve(_name, REFERENCE[_name])
    _batch(_name)
    torch.library.register_fake(f"segfast::{_name}", FAKES[_name])
