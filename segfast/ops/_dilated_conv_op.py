"""The raw dilated-convolution operators: schemas, kernels, fakes, vmap rules.

A convolution and its two gradients, with the checked geometry as plain integers: stride, padding
before the first position and dilation, each vertical and horizontal, and the size of the result.
What is read behind the last position is zero, however much the geometry asks for. Which kernel
computes, _dilated_conv_plan.py says. Gradients: _dilated_conv_grad.py.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops import _dilated_conv_cpu, _dilated_conv_cuda
from segfast.ops._dilated_conv_plan import Direction, Plan, Problem, plan
from segfast.ops._layout import channels_last, dense


class Strides(NamedTuple):
    """The last seven arguments of every raw operator."""

    sh: int
    sw: int
    ph: int
    pw: int
    dh: int
    dw: int
    groups: int

    def geometry(self, input_size: Any, output_size: Any, kernel: Any) -> Geometry:
        sh, sw, ph, pw, dh, dw, _ = self
        sizes = (tuple(input_size), tuple(output_size), tuple(kernel))
        return Geometry.of(*sizes, (sh, sw), (ph, pw), (dh, dw))


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


def problem(x: Tensor, weight_shape: Sequence[int], geometry: Geometry, groups: int) -> Problem:
    """x is the input or the output's gradient: what tells device, dtype, memory format, batch."""
    return _problem(
        x.device.type, x.dtype, channels_last(x), x.shape[0], weight_shape, geometry, groups
    )


def _problem(
    device: str, dtype: torch.dtype, last: bool, batch: int, weight_shape: Sequence[int],
    geometry: Geometry, groups: int,
) -> Problem:  # fmt: skip
    name = str(dtype).removeprefix("torch.")
    outputs = weight_shape[0] // groups
    return Problem(device, name, last, batch, groups, weight_shape[1], outputs, geometry)


@functools.cache
def available(device: str) -> frozenset[str]:
    """The kernels that are there for a kind of device."""
    if device == "cpu":
        return frozenset({"torch", *_dilated_conv_cpu.available()})
    triton = device == "cuda" and _dilated_conv_cuda.available()
    return frozenset({"torch", "triton"} if triton else {"torch"})


def choose(direction: Direction, problem: Problem) -> Plan:
    return plan(direction, problem, available(problem.device))


def torch_serves(
    direction: Direction, device: str, dtype: torch.dtype, last: bool, batch: int,
    weight_shape: Sequence[int], geometry: Geometry, groups: int,
) -> bool:  # fmt: skip
    asked = _problem(device, dtype, last, batch, weight_shape, geometry, groups)
    return choose(direction, asked).kernel == "torch"


KERNELS: dict[tuple[str, Direction], Callable[..., Tensor]] = {}


@functools.lru_cache(4096)
def _serving(
    direction: Direction, device: str, dtype: torch.dtype, last: bool, batch: int,
    weight_shape: tuple[int, ...], inputs: tuple[int, ...], outputs: tuple[int, ...],
    strides: Strides,
) -> tuple[Callable[..., Tensor], Geometry]:  # fmt: skip
    geometry = strides.geometry(inputs, outputs, weight_shape[-2:])
    asked = _problem(device, dtype, last, batch, weight_shape, geometry, strides.groups)
    return KERNELS[choose(direction, asked).kernel, direction], geometry


def _conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, height: int, width: int, *rest: int
) -> Tensor:
    if x.shape[0] == 0:
        return _empty(x, weight.shape[0], (height, width))
    strides = Strides(*rest)
    kernel, geometry = _serving(
        "forward", x.device.type, x.dtype, channels_last(x), x.shape[0],
        weight.shape, x.shape[-2:], (height, width), strides,
    )  # fmt: skip
    return dense(kernel(dense(x), weight.contiguous(), bias, geometry, strides), like=x)


def _grad_input(grad: Tensor, weight: Tensor, height: int, width: int, *rest: int) -> Tensor:
    strides = Strides(*rest)
    if grad.shape[0] == 0:
        return _empty(grad, weight.shape[1] * strides.groups, (height, width))
    kernel, geometry = _serving(
        "grad_input", grad.device.type, grad.dtype, channels_last(grad), grad.shape[0],
        weight.shape, (height, width), grad.shape[-2:], strides,
    )  # fmt: skip
    return dense(kernel(dense(grad), weight.contiguous(), geometry, strides), like=grad)


def _grad_weight(grad: Tensor, x: Tensor, height: int, width: int, *rest: int) -> Tensor:
    strides = Strides(*rest)
    shape = (grad.shape[1], x.shape[1] // strides.groups, height, width)
    if x.shape[0] == 0:
        return x.new_zeros(shape)
    kernel, geometry = _serving(
        "grad_weight", x.device.type, x.dtype, channels_last(x), x.shape[0],
        shape, x.shape[-2:], grad.shape[-2:], strides,
    )  # fmt: skip
    return kernel(dense(grad, like=x), dense(x), geometry, strides).contiguous()


# PyTorch's own, whose padding is the same before and behind.
def _surplus(geometry: Geometry) -> tuple[list[int], list[int]]:
    """Rows and columns of zeros to put behind the input, then behind the output."""
    behind_input, behind_output = [], []
    for axis in geometry:
        reach = axis.input + 2 * axis.padding - axis.dilation * (axis.taps - 1) - 1
        missing = (axis.output - 1) * axis.stride - reach
        behind_input.append(max(0, missing))
        behind_output.append(max(0, reach + max(0, missing)) // axis.stride + 1 - axis.output)
    return behind_input, behind_output


def _pad(x: Tensor, behind: list[int]) -> Tensor:
    return F.pad(x, (0, behind[1], 0, behind[0])) if any(behind) else x


def _torch_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, strides: Strides
) -> Tensor:
    sh, sw, ph, pw, dh, dw, groups = strides
    behind_input, _ = _surplus(geometry)
    y = F.conv2d(_pad(x, behind_input), weight, bias, (sh, sw), (ph, pw), (dh, dw), groups)
    return y[..., : geometry.rows.output, : geometry.columns.output]


def _torch_backward(
    grad: Tensor, x: Tensor, weight: Tensor, geometry: Geometry, strides: Strides, wanted: int
) -> Tensor:
    """x and the weight are read only where the other's gradient is wanted."""
    sh, sw, ph, pw, dh, dw, groups = strides
    behind_input, behind_output = _surplus(geometry)
    mask = [i == wanted for i in range(3)]
    return torch.ops.aten.convolution_backward(
        _pad(grad, behind_output), _pad(x, behind_input), weight, None,
        [sh, sw], [ph, pw], [dh, dw], False, [0, 0], groups, mask,
    )[wanted]  # fmt: skip


def _torch_grad_input(grad: Tensor, weight: Tensor, geometry: Geometry, strides: Strides) -> Tensor:
    height, width = geometry.rows.input, geometry.columns.input
    shape = (grad.shape[0], weight.shape[1] * strides.groups, height, width)
    x = torch.empty_like(grad[:1, :1, :1, :1]).expand(shape)  # only its shape matters
    return _torch_backward(grad, x, weight, geometry, strides, 0)[..., :height, :width]


def _torch_grad_weight(grad: Tensor, x: Tensor, geometry: Geometry, strides: Strides) -> Tensor:
    kernel = geometry.rows.taps, geometry.columns.taps
    shape = (grad.shape[1], x.shape[1] // strides.groups, *kernel)
    weight = x.new_empty(()).expand(shape)
    return _torch_backward(grad, x, weight, geometry, strides, 1)


KERNELS["torch", "forward"] = _torch_conv
KERNELS["torch", "grad_input"] = _torch_grad_input
KERNELS["torch", "grad_weight"] = _torch_grad_weight
KERNELS["triton", "forward"] = _dilated_conv_cuda.conv
KERNELS["triton", "grad_input"] = _dilated_conv_cuda.grad_input
KERNELS["triton", "grad_weight"] = _dilated_conv_cuda.grad_weight
for _family in _dilated_conv_cpu.FAMILIES:
    KERNELS[_family, "forward"] = functools.partial(_dilated_conv_cpu.conv, _family)
    KERNELS[_family, "grad_input"] = functools.partial(_dilated_conv_cpu.grad_input, _family)
    KERNELS[_family, "grad_weight"] = functools.partial(_dilated_conv_cpu.grad_weight, _family)

_SERVE: tuple[Callable[..., Tensor], ...] = (_conv, _grad_input, _grad_weight)
for _name, _function in zip(SCHEMAS, _SERVE, strict=True):
    torch.library.impl(f"segfast::{_name}", "default")(_function)


# ------------------------------------------------------------------------------ fakes


def _empty(like: Tensor, channels: int, size: Sequence[int]) -> Tensor:
    layout = torch.channels_last if channels_last(like) else torch.contiguous_format
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=layout)


@torch.library.register_fake("segfast::_dilated_conv")
def _(x: Tensor, weight: Tensor, bias: Any, height: int, width: int, *strides: int) -> Tensor:
    return _empty(x, weight.shape[0], (height, width))


@torch.library.register_fake("segfast::_dilated_conv_grad_input")
def _(grad: Tensor, weight: Tensor, height: int, width: int, *strides: int) -> Tensor:
    return _empty(grad, weight.shape[1] * Strides(*strides).groups, (height, width))


@torch.library.register_fake("segfast::_dilated_conv_grad_weight")
def _(grad: Tensor, x: Tensor, height: int, width: int, *strides: int) -> Tensor:
    groups = Strides(*strides).groups
    return x.new_empty((grad.shape[1], x.shape[1] // groups, height, width))


# ------------------------------------------------------------------------------ vmap
# A mapped batch dimension is folded into the batch, unless the weights are mapped, too: then into
# the groups.


def _into_batch(x: Tensor, dim: int) -> Tensor:
    """[..., V, ...] -> [V N, C, H, W]"""
    return x.movedim(dim, 0).flatten(0, 1)


def _into_channels(x: Tensor, dim: int | None, size: int) -> Tensor:
    """[..., V, ...], or not mapped -> [N, V C, H, W]"""
    if dim is None:
        return x.unsqueeze(1).expand(-1, size, -1, -1, -1).flatten(1, 2)
    return x.movedim(dim, 1).flatten(1, 2)


def _into_rows(weight: Tensor, dim: int | None, size: int) -> Tensor:
    """[..., V, ...], or not mapped -> [V O, ...]"""
    mapped = weight.expand(size, *weight.shape) if dim is None else weight.movedim(dim, 0)
    return mapped.flatten(0, 1)


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
            y = operator(_into_batch(x, dims[0]), weight, *bias, *rest)  # type: ignore[arg-type]
            return y.unflatten(0, (size, -1)) if y.shape[0] else y.unflatten(0, (size, 0)), 0
        height, width, *strides = rest
        y = operator(
            _into_channels(x, dims[0], size),
            _into_rows(weight, dims[1], size),
            *(None if b is None else _into_rows(b, dims[2], size) for b in bias),
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
