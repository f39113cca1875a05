"""Derivatives of the raw dilated-convolution operators.

A convolution y = C(x, w) and its gradients I(g, w) and W(g, x) are bilinear, and the derivative of
each is made of the other two: to any order, backward and forward. Each is an autograd.Function, for
torch.func and torch.compile, and the same formula is registered for the raw operator, for exported
graphs (PyTorch takes none for forward mode there).
"""

from __future__ import annotations

import functools
from collections.abc import Callable
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
    in_forward_mode: Any
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
    in_forward_mode: Any
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
    in_forward_mode: Any
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


# ------------------------------------------------------------------------------ forward mode


def _in_forward_mode(function: type[Function], rest: Callable[[Any], tuple[Any, ...]]) -> Any:
    """function(left, right, ...), bilinear, with a tangent; torch.compile takes none with `jvp`."""

    class InForwardMode(function):  # type: ignore[misc, valid-type]
        generate_vmap_rule = True

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            function.setup_context(ctx, inputs, output)
            ctx.save_for_forward(*inputs[:2])
            ctx.rest = rest(inputs)

        @staticmethod
        def jvp(ctx: Any, dleft: Any, dright: Any, dbias: Any, *_: Any) -> Tensor:
            left, right = ctx.saved_tensors
            terms = []
            if dleft is not None:
                terms.append(call(function, dleft, right, *ctx.rest))
            if dright is not None:
                terms.append(call(function, left, dright, *ctx.rest))
            if dbias is not None:  # of Conv
                size = left.shape[0], dbias.shape[0], *ctx.rest[1:3]
                terms.append(dbias[:, None, None].expand(size))
            return functools.reduce(torch.add, terms)

    return InForwardMode


Conv.in_forward_mode = _in_forward_mode(Conv, lambda inputs: (None, *inputs[3:]))  # no bias
GradInput.in_forward_mode = _in_forward_mode(GradInput, lambda inputs: inputs[2:])
GradWeight.in_forward_mode = _in_forward_mode(GradWeight, lambda inputs: inputs[2:])

for _name, _function in zip(SCHEMAS, (Conv, GradInput, GradWeight), strict=True):
    torch.library.register_autograd(
        f"segfast::{_name}",
        _function.backward,
        setup_context=_function.setup_context,
    )
