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
from torch.autograd import Function, forward_ad

from segfast.ops._max_unpool_op import Size, dense

_ops = torch.ops.segfast


def call(function: type[Function], *arguments: Any) -> Any:
    """`function.apply(*arguments)`, whose 60 us are saved where nothing needs them.

    Only the first argument may be differentiable. Small maps take less time than that.
    """
    if _transformed():
        return function.apply(*arguments)
    needs_graph = torch.is_grad_enabled() and arguments[0].requires_grad
    if needs_graph or forward_ad._current_level >= 0:
        # What Function.apply ends in, without its look at the signature and for torch.func.
        return super(Function, function).apply(*arguments)  # type: ignore[misc]
    return function.forward(*arguments)


def _transformed() -> bool:
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


def _run(operator: Any, *arguments: Any) -> Any:
    """A raw operator inside of a Function, which differentiates in its place."""
    if _transformed():
        return operator(*arguments)
    with torch._C._AutoDispatchBelowAutograd():  # past the registered formula, written in Python
        return operator(*arguments)


class MaxPool(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, kernel: Size, stride: Size, padding: Size, dilation: Size, output_size: Size,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        return _run(_ops._max_pool2d.default, x, kernel, stride, padding, dilation, output_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        x, *ctx.windows, _ = inputs
        ctx.input_size = list(x.shape[2:])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # else zeros for packed
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor | None, _: Any) -> tuple[Tensor | None, ...]:
        if grad_y is None:
            return (None,) * 6
        (packed,) = ctx.saved_tensors
        grad_y = dense(grad_y, packed)
        grad_x = call(MaxPoolBackward, grad_y, packed, *ctx.windows, ctx.input_size)
        return grad_x, *[None] * 5


class MaxPoolValues(Function):
    """Keeps x and chooses again: it serves where no gradient is expected, and still gives it."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, kernel: Size, stride: Size, padding: Size, dilation: Size, output_size: Size,
    ) -> Tensor:  # fmt: skip
        return _run(
            _ops._max_pool2d_values.default, x, kernel, stride, padding, dilation, output_size
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, *ctx.geometry = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        _, packed = _run(_ops._max_pool2d.default, x.detach(), *ctx.geometry)
        grad_y = dense(grad_y, packed)
        grad_x = call(MaxPoolBackward, grad_y, packed, *ctx.geometry[:4], list(x.shape[2:]))
        return grad_x, *[None] * 5


class MaxPoolBackward(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        grad_y: Tensor, packed: Tensor, kernel: Size, stride: Size, padding: Size, dilation: Size,
        input_size: Size,
    ) -> Tensor:  # fmt: skip
        return _run(
            _ops._max_pool2d_backward.default,
            grad_y,
            packed,
            kernel,
            stride,
            padding,
            dilation,
            input_size,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad_y, packed, *ctx.windows, _ = inputs
        ctx.width = grad_y.shape[3]
        ctx.save_for_backward(packed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        grad = dense(grad)
        y = call(MaxGather, grad, dense(packed, grad), *ctx.windows, ctx.width, False)
        return y, *[None] * 6


class MaxUnpool(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor, packed: Tensor, kernel: Size, stride: Size, padding: Size, dilation: Size,
        output_size: Size,
    ) -> Tensor:  # fmt: skip
        return _run(
            _ops._max_unpool2d.default, y, packed, kernel, stride, padding, dilation, output_size
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        y, packed, *ctx.windows, _ = inputs
        ctx.width = y.shape[3]
        ctx.save_for_backward(packed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        grad = dense(grad)
        y = call(MaxGather, grad, dense(packed, grad), *ctx.windows, ctx.width, True)
        return y, *[None] * 6


class MaxGather(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, packed: Tensor, kernel: Size, stride: Size, padding: Size, dilation: Size,
        output_width: int, winners: bool,
    ) -> Tensor:  # fmt: skip
        return _run(
            _ops._max_gather2d.default,
            x,
            packed,
            kernel,
            stride,
            padding,
            dilation,
            output_width,
            winners,
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, packed, *ctx.windows, _, ctx.winners = inputs
        ctx.size = list(x.shape[2:])
        ctx.save_for_backward(packed)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (packed,) = ctx.saved_tensors
        adjoint = MaxUnpool if ctx.winners else MaxPoolBackward
        x = call(adjoint, dense(grad, packed), packed, *ctx.windows, ctx.size)
        return x, *[None] * 7


class MaxUnpoolIndices(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        y: Tensor, indices: Tensor, output_size: Size,
    ) -> Tensor:  # fmt: skip
        return _run(_ops._max_unpool2d_indices.default, y, indices, output_size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        grad = dense(grad)
        return call(MaxGatherIndices, grad, dense(indices, grad), True), None, None


class MaxGatherIndices(Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, indices: Tensor, winners: bool,
    ) -> Tensor:  # fmt: skip
        return _run(_ops._max_gather2d_indices.default, x, indices, winners)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, indices, winners = inputs
        if not winners:
            raise NotImplementedError("_max_gather2d_indices: gradient for winners=True only")
        ctx.size = list(x.shape[2:])
        ctx.save_for_backward(indices)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (indices,) = ctx.saved_tensors
        return call(MaxUnpoolIndices, dense(grad, indices), indices, ctx.size), None, None


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
