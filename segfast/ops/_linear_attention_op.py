"""Registration of the raw linear-attention operators: schemas, fakes, vmap, reference.

They take checked maps [B, channels, positions] of one dtype, positions next to each other, any
other strides. The state [B, R, E + 1] and its gradient are float32 (float64 for float64).
Gradients: _linear_attention_grad.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from segfast.kernels.linear_attention import reference
from segfast.ops._register import batch, serve

_QUERY = "Tensor q, Tensor state, Tensor? gamma"
SCHEMAS = {
    "_linear_attention": "(Tensor q, Tensor k, Tensor v, int feature_map, float eps) -> "
    "(Tensor, Tensor)",  # o, state: both at once, where nothing comes between them
    "_linear_attention_backward": "(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor state, "
    "int feature_map, float eps) -> (Tensor, Tensor, Tensor)",
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


def in_two_steps(steps: dict[str, Callable[..., Any]]) -> dict[str, Callable[..., Any]]:
    """_linear_attention and its gradient, made of the operators for state and read."""

    def forward(q: Tensor, k: Tensor, v: Tensor, index: int, eps: float) -> tuple[Tensor, Tensor]:
        state = steps["_linear_attention_state"](k, v, index)
        return steps["_linear_attention_read"](q, state, None, None, index, eps), state

    def backward(
        grad: Tensor, q: Tensor, k: Tensor, v: Tensor, state: Tensor, index: int, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        read_backward = steps["_linear_attention_read_backward"]
        grad_q, grad_state, _ = read_backward(grad, q, state, None, index, eps)
        return grad_q, *steps["_linear_attention_state_backward"](grad_state, k, v, index)

    return {"_linear_attention": forward, "_linear_attention_backward": backward}


_STEPS: dict[str, Callable[..., Any]] = {
    "_linear_attention_state": _state,
    "_linear_attention_state_backward": _state_backward,
    "_linear_attention_read": _read,
    "_linear_attention_read_backward": _read_backward,
}
REFERENCE = _STEPS | in_two_steps(_STEPS)


# Fakes: shapes and dtypes only.
def _fake_state(k: Tensor, v: Tensor, index: int) -> Tensor:
    ones = 1 if index == TAYLOR else 0  # a bool is no summand for torch 2.11's symbols
    shape = (k.shape[0], k.shape[1] + ones, v.shape[1] + 1)
    return k.new_empty(shape, dtype=reference.accumulator(k.dtype))


def _fake_attention(
    q: Tensor, k: Tensor, v: Tensor, index: int, eps: float
) -> tuple[Tensor, Tensor]:
    return q.new_empty((q.shape[0], v.shape[1], q.shape[2])), _fake_state(k, v, index)


def _fake_read(q: Tensor, state: Tensor, gamma: Any, residual: Any, index: int, eps: float) -> Any:
    return q.new_empty((q.shape[0], state.shape[2] - 1, q.shape[2]))


FAKES: dict[str, Callable[..., Any]] = {
    "_linear_attention": _fake_attention,
    "_linear_attention_backward": lambda grad, q, k, v, state, index, eps: (
        q.new_empty(q.shape),
        k.new_empty(k.shape),
        v.new_empty(v.shape),
    ),
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


def _laid_out(x: Tensor, first: Tensor) -> Tensor:
    return rows(x) if x.dim() == 3 else x


for _name in SCHEMAS:
    serve(_name, REFERENCE[_name])
    batch(_name, _laid_out)
    torch.library.register_fake(f"segfast::{_name}", FAKES[_name])
