"""What computes a raw operator: decided once for all calls that look alike.

Small maps take less time than a decision. A raw operator asks for its tensors and its last
arguments (`rest`: the size of the result, Strides), and gets a function of the tensors.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops import _dilated_conv_cpu, _dilated_conv_cuda, _dilated_conv_torch
from segfast.ops._dilated_conv_plan import Direction, Plan, Problem, Strides, plan
from segfast.ops._dilated_conv_winograd import Setting, winograd_setting
from segfast.ops._function import Remembered
from segfast.ops._layout import channels_last, dtype_name, empty, gapless


def problem(x: Tensor, weight_shape: Sequence[int], geometry: Geometry, groups: int) -> Problem:
    """x is the input or the output's gradient: what tells device, dtype, memory format, batch."""
    device, name, (rows, channels, *_) = x.device.type, dtype_name(x.dtype), weight_shape
    outputs = rows // groups
    return Problem(device, name, channels_last(x), x.shape[0], groups, channels, outputs, geometry)


def available(device: str) -> frozenset[str]:
    """The kernels that are there for a kind of device, and allowed."""
    return _available(device, winograd_setting().allowed)


@functools.cache
def _available(device: str, winograd: bool) -> frozenset[str]:
    if device == "cpu":
        return frozenset({"torch", *_dilated_conv_cpu.available(winograd)})
    triton = device == "cuda" and _dilated_conv_cuda.available()
    return frozenset({"torch", "triton"} if triton else {"torch"})


def choose(direction: Direction, problem: Problem) -> Plan:
    return plan(direction, problem, available(problem.device))


# kernel -> forward, grad_input, grad_weight: (problem, strides) -> Serve
KERNELS: dict[str, Any] = {
    "torch": _dilated_conv_torch,
    "triton": _dilated_conv_cuda,
    **{family: _dilated_conv_cpu.Family(family) for family in _dilated_conv_cpu.FAMILIES},
}

Serve = Callable[..., Tensor]  # (x, weight, bias), (grad, weight) or (grad, x) -> result
SERVING: Remembered[Serve] = Remembered()


def conv_for(x: Tensor, weight: Tensor, rest: tuple[int, ...]) -> Serve:
    """(x, weight, bias) -> y"""
    setting = winograd_setting()
    key = (
        x.shape, x.stride(), x.dtype, x.device, weight.shape, weight.stride(), rest, setting.allowed
    )  # fmt: skip
    return SERVING.get(key) or _keep(setting, key, _conv(x, weight, rest))


def grad_input_for(grad: Tensor, weight: Tensor, rest: tuple[int, ...]) -> Serve:
    """(grad, weight) -> grad_x"""
    setting = winograd_setting()
    key = (
        "grad_input", grad.shape, grad.stride(), grad.dtype, grad.device,
        weight.shape, weight.stride(), rest, setting.allowed,
    )  # fmt: skip
    return SERVING.get(key) or _keep(setting, key, _grad_input(grad, weight, rest))


def grad_weight_for(grad: Tensor, x: Tensor, rest: tuple[int, ...]) -> Serve:
    """(grad, x) -> grad_weight"""
    key = (
        "grad_weight", grad.shape, grad.stride(), x.dtype, x.device, x.shape, x.stride(), rest
    )  # fmt: skip
    return SERVING.get(key) or SERVING.keep(key, _grad_weight(grad, x, rest))


def _keep(setting: Setting, key: Any, serve: Serve) -> Serve:
    """Remembers a decision, unless the setting changed while it was made."""
    return SERVING.keep(key, serve) if winograd_setting() == setting else serve


def _conv(x: Tensor, weight: Tensor, rest: tuple[int, ...]) -> Serve:
    strides, size = Strides(*rest[2:]), rest[:2]
    if x.shape[0] == 0:
        return lambda x, weight, bias: empty(x, weight.shape[0], size)
    geometry = strides.geometry(x.shape[-2:], size, weight.shape[-2:])
    asked = problem(x, weight.shape, geometry, strides.groups)
    kernel = choose("forward", asked).kernel
    compute: Serve = KERNELS[kernel].forward(asked, strides)
    if _keeps_format(kernel, x) and weight.is_contiguous():
        return compute
    return lambda x, weight, bias: _owned(
        gapless(compute(gapless(x), weight.contiguous(), bias), like=x)
    )


def _grad_input(grad: Tensor, weight: Tensor, rest: tuple[int, ...]) -> Serve:
    strides, size = Strides(*rest[2:]), rest[:2]
    if grad.shape[0] == 0:
        return lambda grad, weight: empty(grad, weight.shape[1] * strides.groups, size)
    geometry = strides.geometry(size, grad.shape[-2:], weight.shape[-2:])
    asked = problem(grad, weight.shape, geometry, strides.groups)
    kernel = choose("grad_input", asked).kernel
    compute: Serve = KERNELS[kernel].grad_input(asked, strides)
    if _keeps_format(kernel, grad) and weight.is_contiguous():
        return compute
    return lambda grad, weight: _owned(
        gapless(compute(gapless(grad), weight.contiguous()), like=grad)
    )


def _grad_weight(grad: Tensor, x: Tensor, rest: tuple[int, ...]) -> Serve:
    strides, size = Strides(*rest[2:]), rest[:2]
    shape = (grad.shape[1], x.shape[1] // strides.groups, *size)
    if x.shape[0] == 0:
        return lambda grad, x: x.new_zeros(shape)
    geometry = strides.geometry(x.shape[-2:], grad.shape[-2:], size)
    asked = problem(x, shape, geometry, strides.groups)
    kernel = choose("grad_weight", asked).kernel
    compute: Serve = KERNELS[kernel].grad_weight(asked, strides)
    return lambda grad, x: compute(gapless(grad, like=x), gapless(x)).contiguous()


def _keeps_format(kernel: str, x: Tensor) -> bool:
    """Whether a kernel takes x as it is, and gives its result in the format of x."""
    usual = x.is_contiguous() != channels_last(x)  # sizes of 1 leave both open
    return kernel in _dilated_conv_cpu.FAMILIES and usual and gapless(x) is x


def _owned(y: Tensor) -> Tensor:
    """y, copied if it is a view: autograd lets nobody change what an operator returns as one."""
    return y.clone() if y._is_view() else y
