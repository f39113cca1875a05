"""Derivatives of the raw max_unpool operators, of any order.

Once the winners are chosen all of them are linear, and each one's gradient is its adjoint:

    pool           -> pool backward            pool backward <-> gather
    unpool        <-> gather of winners        unpool by indices <-> gather of winners by indices

Each is an autograd.Function, for torch.func and torch.compile, and the same formula is registered
for the raw operator, for exported graphs. The graph keeps packed offsets and sizes, no maps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from segfast.kernels.max_unpool.reference import Windows
from segfast.ops._function import call, forward_of
from segfast.ops._max_unpool_op import gapless

_ops = torch.ops.segfast


def _keep(ctx: Any, tensor: Tensor, inputs: tuple[Any, ...], tensors: int) -> None:
    """Keeps a tensor, and the windows, which follow the input `tensors`."""
    ctx.save_for_backward(tensor)
    ctx.windows = inputs[tensors : tensors + len(Windows._fields)]
    ctx.others = [None] * (len(inputs) - 1)  # gradients of all inputs but the first


class MaxPool(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._max_pool2d.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _keep(ctx, output[1], inputs, 1)
        ctx.input_size = inputs[0].shape[2:]
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # else zeros for packed

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad_y is None:
            return None, *ctx.others
        (packed,) = ctx.saved_tensors
        grad_y = gapless(grad_y, packed)
        return call(MaxPoolBackward, grad_y, packed, *ctx.windows, *ctx.input_size), *ctx.others


class MaxPoolValues(Function):
    """Keeps x and chooses again: it serves where no gradient is expected, and still gives it."""

    generate_vmap_rule = True
    forward = forward_of(_ops._max_pool2d_values.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep(ctx, inputs[0], inputs, 1)
        ctx.output_size = output.shape[2:]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        _, packed = call(MaxPool, x.detach(), *ctx.windows, *ctx.output_size)
        grad_y = gapless(grad_y, packed)
        return call(MaxPoolBackward, grad_y, packed, *ctx.windows, *x.shape[2:]), *ctx.others


class MaxPoolBackward(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._max_pool2d_backward.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep(ctx, inputs[1], inputs, 2)
        ctx.width = inputs[0].shape[3]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        grad = gapless(grad)
        packed = gapless(packed, grad)
        return call(MaxGather, grad, packed, *ctx.windows, ctx.width, False), *ctx.others


class MaxUnpool(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._max_unpool2d.default)
    setup_context = MaxPoolBackward.setup_context

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        grad = gapless(grad)
        packed = gapless(packed, grad)
        return call(MaxGather, grad, packed, *ctx.windows, ctx.width, True), *ctx.others


class MaxGather(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._max_gather2d.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _keep(ctx, inputs[1], inputs, 2)
        ctx.winners = inputs[-1]
        ctx.size = inputs[0].shape[2:]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        adjoint = MaxUnpool if ctx.winners else MaxPoolBackward
        grad = gapless(grad, packed)
        return call(adjoint, grad, packed, *ctx.windows, *ctx.size), *ctx.others


class MaxUnpoolIndices(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._max_unpool2d_indices.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        grad = gapless(grad)
        return call(MaxGatherIndices, grad, gapless(indices, grad), True), None, None, None


class MaxGatherIndices(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._max_gather2d_indices.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, indices, winners = inputs
        if not winners:
            raise NotImplementedError("_max_gather2d_indices: gradient for winners=True only")
        ctx.size = x.shape[2:]
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        return call(MaxUnpoolIndices, gapless(grad, indices), indices, *ctx.size), None, None


for _name, _function in {
    "_max_pool2d": MaxPool,
    "_max_pool2d_values": MaxPoolValues,
    "_max_pool2d_backward": MaxPoolBackward,
    "_max_unpool2d": MaxUnpool,
    "_max_gather2d": MaxGather,
    "_max_unpool2d_indices": MaxUnpoolIndices,
    "_max_gather2d_indices": MaxGatherIndices,
}.items():
    torch.library.register_autograd(
        f"segfast::{_name}", _function.backward, setup_context=_function.setup_context
    )
