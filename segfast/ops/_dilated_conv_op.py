"""The raw dilated-convolution operators: schemas, kernels, fakes, vmap rules.

A convolution and its two gradients, with the checked geometry as plain integers: stride, padding
before the first position and dilation, each vertical and horizontal, and the size of the result.
What is read behind the last position is zero, however much the geometry asks for. Which kernel
computes, _dilated_conv_kernels.py says. Gradients: _dilated_conv_grad.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segfast.ops import _dilated_conv_cpu
from segfast.ops._dilated_conv_kernels import conv_for, grad_input_for, grad_weight_for
from segfast.ops._dilated_conv_plan import Strides
from segfast.ops._layout import empty
from segfast.ops._register import fold

_SIZE = "SymInt height, SymInt width"  # of the result
_STRIDES = ", ".join(f"int {name}" for name in Strides._fields)
SCHEMAS = {
    # x [N, G C, H, W], weight [G O, C, kh, kw] -> y [N, G O, height, width]
    "_dilated_conv": f"(Tensor x, Tensor weight, Tensor? bias, {_SIZE}, {_STRIDES}) -> Tensor",
    # grad [N, G O, Ho, Wo], weight -> grad_x [N, G C, height, width]
    "_dilated_conv_grad_input": f"(Tensor grad, Tensor weight, {_SIZE}, {_STRIDES}) -> Tensor",
    # grad, x -> grad_weight [G O, C, height, width]
    "_dilated_conv_grad_weight": f"(Tensor grad, Tensor x, {_SIZE}, {_STRIDES}) -> Tensor",
}
for _name, _schema in SCHEMAS.items():
    torch.library.define(f"segfast::{_name}", _schema)
_dilated_conv_cpu.define(SCHEMAS)


# ------------------------------------------------------------------------------ kernels


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: int) -> Tensor:
    """_dilated_conv"""
    return conv_for(x, weight, rest)(x, weight, bias)


def grad_input(grad: Tensor, weight: Tensor, *rest: int) -> Tensor:
    """_dilated_conv_grad_input"""
    return grad_input_for(grad, weight, rest)(grad, weight)


def grad_weight(grad: Tensor, x: Tensor, *rest: int) -> Tensor:
    """_dilated_conv_grad_weight"""
    return grad_weight_for(grad, x, rest)(grad, x)


SERVE: tuple[Callable[..., Tensor], ...] = (conv, grad_input, grad_weight)
for _name, _function in zip(SCHEMAS, SERVE, strict=True):
    torch.library.impl(f"segfast::{_name}", "default")(_function)


# ------------------------------------------------------------------------------ fakes


@torch.library.register_fake("segfast::_dilated_conv")
def _(x: Tensor, weight: Tensor, bias: Any, height: int, width: int, *strides: int) -> Tensor:
    return empty(x, weight.shape[0], (height, width))


@torch.library.register_fake("segfast::_dilated_conv_grad_input")
def _(grad: Tensor, weight: Tensor, height: int, width: int, *strides: int) -> Tensor:
    return empty(grad, weight.shape[1] * Strides(*strides).groups, (height, width))


@torch.library.register_fake("segfast::_dilated_conv_grad_weight")
def _(grad: Tensor, x: Tensor, height: int, width: int, *strides: int) -> Tensor:
    groups = Strides(*strides).groups
    return x.new_empty((grad.shape[1], x.shape[1] // groups, height, width))


# ------------------------------------------------------------------------------ vmap
# A mapped batch dimension is folded into the batch, unless the weights are mapped, too: then into
# the groups.


def _into_channels(x: Tensor, dim: int | None, size: int) -> Tensor:
    """[..., V, ...], or not mapped -> [N, V C, H, W]"""
    if dim is None:
        return x.unsqueeze(1).expand(-1, size, -1, -1, -1).flatten(1, 2)
    return x.movedim(dim, 1).flatten(1, 2)


def _grouped(size: int, strides: Sequence[int]) -> Strides:
    given = Strides(*strides)
    return given._replace(groups=given.groups * size)


def _map_over(name: str) -> None:
    """For the operators (map, weight, perhaps a bias) -> map."""
    operator = getattr(torch.ops.segfast, name)

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Tensor, int]:
        size: int = info.batch_size
        count = sum(x is None or isinstance(x, Tensor) for x in arguments)
        (x, weight, *bias), rest = arguments[:count], arguments[count:]
        dims = in_dims[:count]
        if all(dim is None for dim in dims[1:]):
            y = operator(fold(x, dims[0], size), weight, *bias, *rest)
            return y.unflatten(0, (size, -1)) if y.shape[0] else y.unflatten(0, (size, 0)), 0
        height, width, *strides = rest
        y = operator(
            _into_channels(x, dims[0], size),
            fold(weight, dims[1], size),
            *(None if b is None else fold(b, dims[2], size) for b in bias),
            height,
            width,
            *_grouped(size, strides),
        )
        return y.unflatten(1, (size, -1)), 1

    torch.library.register_vmap(f"segfast::{name}", rule)


_map_over("_dilated_conv")
_map_over("_dilated_conv_grad_input")


@torch.library.register_vmap("segfast::_dilated_conv_grad_weight")
def _(
    info: Any, in_dims: Sequence[int | None], grad: Tensor, x: Tensor, height: int, width: int,
    *strides: int,
) -> tuple[Tensor, int]:  # fmt: skip
    size: int = info.batch_size
    maps = (_into_channels(m, dim, size) for m, dim in zip((grad, x), in_dims, strict=False))
    weight = torch.ops.segfast._dilated_conv_grad_weight(
        *maps, height, width, *_grouped(size, strides)
    )
    return weight.unflatten(0, (size, -1)), 0
