"""Derivatives of the raw linear-attention operators.

Each is an autograd.Function, for torch.func and torch.compile, and the same formula is registered
for the raw operator, for exported graphs. The graph keeps q, k, v and the state: phi is computed
again. Second derivatives go through the reference's formulas.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from segfast.ops._function import call, forward_of
from segfast.ops._linear_attention_op import REFERENCE, rows

_ops = torch.ops.segfast


class State(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._linear_attention_state.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        k, v, ctx.feature_map = inputs
        ctx.save_for_backward(k, v)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return *call(StateBackward, grad, *ctx.saved_tensors, ctx.feature_map), None


class Read(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._linear_attention_read.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, state, gamma, residual, *ctx.options = inputs
        ctx.has_residual = residual is not None
        ctx.save_for_backward(q, state, gamma)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, state, gamma = ctx.saved_tensors
        grad_q, grad_state, grad_gamma = call(
            ReadBackward, rows(grad), q, state, gamma, *ctx.options
        )
        return (
            grad_q,
            grad_state,
            None if gamma is None else grad_gamma.to(gamma.dtype),
            grad if ctx.has_residual else None,
            None,
            None,
        )


def _through_reference(name: str, ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
    """The gradient of a backward operator's reference."""
    tensors = [x for x in ctx.saved_tensors if x is not None]

    def formula(*given: Tensor) -> Any:
        remaining = iter(given)
        filled = [None if x is None else next(remaining) for x in ctx.saved_tensors]
        return REFERENCE[name](*filled, *ctx.options)

    gradients = iter(torch.func.vjp(formula, *tensors)[1](grads))
    filled = [None if x is None else next(gradients) for x in ctx.saved_tensors]
    return *filled, *[None] * len(ctx.options)


class StateBackward(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._linear_attention_state_backward.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.options = inputs[3:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _through_reference("_linear_attention_state_backward", ctx, *grads)


class ReadBackward(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._linear_attention_read_backward.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.options = inputs[4:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _through_reference("_linear_attention_read_backward", ctx, *grads)


_FUNCTIONS: dict[str, Any] = {
    "_linear_attention_state": State,
    "_linear_attention_state_backward": StateBackward,
    "_linear_attention_read": Read,
    "_linear_attention_read_backward": ReadBackward,
}
for _name, _function in _FUNCTIONS.items():
    torch.library.register_autograd(
        f"segfast::{_name}", _function.backward, setup_context=_function.setup_context
    )
