"""Derivatives of the raw dilated-convolution operators.

A convolution y = C(x, w) and its gradients I(g, w) and W(g, x) are bilinear, and the derivative of
each is made of the other two: to any order. Each is an autograd.Function, for torch.func and
torch.compile, and the same formula is registered for the raw operator, for exported graphs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from segfast.ops import _dilated_conv_op
from segfast.ops._dilated_conv_op import SCHEMAS, Strides
from segfast.ops._function import call, forward_of

_ops = torch.ops.segfast
_NOTHING = (None,) * (2 + len(Strides._fields))  # for height, width and the strides


class Conv(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._dilated_conv.default, _dilated_conv_op.conv)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, _, _, *ctx.strides = inputs
        ctx.save_for_backward(x, weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        return (
            call(GradInput, grad, weight, *x.shape[-2:], *ctx.strides) if needs_x else None,
            call(GradWeight, grad, x, *weight.shape[-2:], *ctx.strides) if needs_weight else None,
            grad.sum((0, 2, 3)) if needs_bias else None,
            *_NOTHING,
        )


class GradInput(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._dilated_conv_grad_input.default, _dilated_conv_op.grad_input)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, weight, _, _, *ctx.strides = inputs
        ctx.save_for_backward(grad, weight)

    @staticmethod
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor | None, ...]:  # along: like x
        grad, weight = ctx.saved_tensors
        needs_grad, needs_weight = ctx.needs_input_grad[:2]
        size = grad.shape[-2:]
        return (
            call(Conv, along, weight, None, *size, *ctx.strides) if needs_grad else None,
            call(GradWeight, grad, along, *weight.shape[-2:], *ctx.strides)
            if needs_weight
            else None,
            *_NOTHING,
        )


class GradWeight(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._dilated_conv_grad_weight.default, _dilated_conv_op.grad_weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, x, _, _, *ctx.strides = inputs
        ctx.save_for_backward(grad, x)

    @staticmethod
    def backward(ctx: Any, along: Tensor) -> tuple[Tensor | None, ...]:  # along: like the weight
        grad, x = ctx.saved_tensors
        needs_grad, needs_x = ctx.needs_input_grad[:2]
        return (
            call(Conv, x, along, None, *grad.shape[-2:], *ctx.strides) if needs_grad else None,
            call(GradInput, grad, along, *x.shape[-2:], *ctx.strides) if needs_x else None,
            *_NOTHING,
        )


for _name, _function in zip(SCHEMAS, (Conv, GradInput, GradWeight), strict=True):
    torch.library.register_autograd(
        f"segfast::{_name}",
        _function.backward,
        setup_context=_function.setup_context,
    )
