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
from segfast.ops import _max_unpool_trace
from segfast.ops._function import call, forward_of
from segfast.ops._max_unpool_op import gapless

_ops = torch.ops.segfast


_EIGHT = len(Windows._fields)
_NOTHING = (None,) * (_EIGHT + 2)  # gradients of the windows and of what follows them, a pair


class MaxPool(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._max_pool2d.default)
    in_trace = _max_unpool_trace.POOL

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, *windows = inputs[: 1 + _EIGHT]
        ctx.save_for_backward(output[1])
        ctx.rest = *windows, *x.shape[2:]  # of the gradient's arguments, here and below
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # else zeros for packed

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad_y is None:
            return None, *_NOTHING
        (packed,) = ctx.saved_tensors
        return call(MaxPoolBackward, gapless(grad_y, packed), packed, *ctx.rest), *_NOTHING


class MaxPoolValues(Function):
    """Keeps x and chooses again: it serves where no gradient is expected, and still gives it."""

    generate_vmap_rule = True
    forward = forward_of(_ops._max_pool2d_values.default)
    in_trace = _max_unpool_trace.POOL_VALUES

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0])
        ctx.windows = inputs[1 : 1 + _EIGHT]
        ctx.output_size = output.shape[2:]

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        _, packed = call(MaxPool, x.detach(), *ctx.windows, *ctx.output_size)
        rest = *ctx.windows, *x.shape[2:]
        return call(MaxPoolBackward, gapless(grad_y, packed), packed, *rest), *_NOTHING


class MaxPoolBackward(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._max_pool2d_backward.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _from_windows(ctx, inputs, winners=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gathered(ctx, grad)


class MaxUnpool(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._max_unpool2d.default)
    in_trace = _max_unpool_trace.UNPOOL

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _from_windows(ctx, inputs, winners=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _gathered(ctx, grad)


def _from_windows(ctx: Any, inputs: tuple[Any, ...], winners: bool) -> None:
    y, packed, *windows = inputs[: 2 + _EIGHT]
    ctx.save_for_backward(packed)
    ctx.rest = *windows, y.shape[3], winners


def _gathered(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (packed,) = ctx.saved_tensors
    grad = gapless(grad)
    return call(MaxGather, grad, gapless(packed, grad), *ctx.rest), None, *_NOTHING


class MaxGather(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._max_gather2d.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, packed, *windows = inputs[: 2 + _EIGHT]
        ctx.save_for_backward(packed)
        ctx.rest = *windows, *x.shape[2:]
        ctx.winners = inputs[-1]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        adjoint = MaxUnpool if ctx.winners else MaxPoolBackward
        return call(adjoint, gapless(grad, packed), packed, *ctx.rest), None, *_NOTHING


class MaxUnpoolIndices(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops._max_unpool2d_indices.default)
    in_trace = _max_unpool_trace.UNPOOL_INDICES

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
