"""Derivatives of the raw linear-attention operators.

Each is an autograd.Function, for torch.func and torch.compile, and the same formula is registered
for the raw operator, for exported graphs. The graph keeps q, k, v and the state: phi is computed
again. Second derivatives go through the reference's formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from segfast.ops._function import call, forward_of
from segfast.ops._linear_attention_op import REFERENCE, rows

_ops = torch.ops.segfast


class Attend(Function):
    """o and the state, which only its gradient looks at."""

    generate_vmap_rule = True
    forward = forward_of(_ops._linear_attention.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, *ctx.options = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(q, k, v, output[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, _: Any) -> tuple[Tensor | None, ...]:
        return *call(AttendBackward, rows(grad), *ctx.saved_tensors, *ctx.options), None, None


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


def _through_reference(
    backward: Callable[..., Any], ctx: Any, *grads: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradient of a backward operator's reference."""
    tensors = [x for x in ctx.saved_tensors if x is not None]

    def formula(*given: Tensor) -> Any:
        remaining = iter(given)
        filled = [None if x is None else next(remaining) for x in ctx.saved_tensors]
        return backward(*filled, *ctx.options)

    gradients = iter(torch.func.vjp(formula, *tensors)[1](grads))
    filled = [None if x is None else next(gradients) for x in ctx.saved_tensors]
    return *filled, *[None] * len(ctx.options)


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, _: Tensor, index: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """As a function of all that it depends on: the state, left out, is one of k and v, too."""
    state = REFERENCE["_linear_attention_state"](k, v, index)
    result: tuple[Tensor, Tensor, Tensor] = REFERENCE["_linear_attention_backward"](
        grad, q, k, v, state, index, eps
    )
    return result


class AttendBackward(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._linear_attention_backward.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:5])
        ctx.options = inputs[5:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _through_reference(_attend_backward, ctx, *grads)


class StateBackward(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._linear_attention_state_backward.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:3])
        ctx.options = inputs[3:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _through_reference(REFERENCE["_linear_attention_state_backward"], ctx, *grads)


class ReadBackward(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._linear_attention_read_backward.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs[:4])
        ctx.options = inputs[4:]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _through_reference(REFERENCE["_linear_attention_read_backward"], ctx, *grads)


_FUNCTIONS: dict[str, Any] = {
    "_linear_attention": Attend,
    "_linear_attention_backward": AttendBackward,
    "_linear_attention_state": State,
    "_linear_attention_state_backward": StateBackward,
    "_linear_attention_read": Read,
    "_linear_attention_read_backward": ReadBackward,
}
for _name, _function in _FUNCTIONS.items():
    torch.library.register_autograd(
        f"segfast::{_name}", _function.backward, setup_context=_function.setup_context
    )
