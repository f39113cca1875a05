"""PyTorch's own convolution and its gradients, for every geometry that the raw operators take.

Its padding is the same before and behind: what is read further behind is put there.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops import _dilated_conv_faults as faults
from segfast.ops._dilated_conv_plan import Problem, Strides
from segfast.ops._layout import empty


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


def _cut(x: Tensor, height: int, width: int) -> Tensor:
    """[..., height, width]; x itself, not a view of it, where that is its size."""
    return x if x.shape[-2:] == (height, width) else x[..., :height, :width]


def forward(problem: Problem, strides: Strides) -> Callable[..., Tensor]:
    """(x, weight, bias) -> y"""
    geometry, on_cpu = problem.geometry, problem.device == "cpu"
    height, width = geometry.rows.output, geometry.columns.output
    if on_cpu and faults.nothing_read(geometry):
        return functools.partial(_bias_alone, height, width)
    sh, sw, ph, pw, dh, dw, groups = strides
    behind, _ = _surplus(geometry)
    bfloat16 = problem.dtype == "bfloat16"
    misread = on_cpu and faults.result_misread(bfloat16, problem.in_channels, geometry)

    def serve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if misread:
            x, weight = faults.plain(x), faults.plain(weight)
        y = F.conv2d(_pad(x, behind), weight, bias, (sh, sw), (ph, pw), (dh, dw), groups)
        return _cut(y, height, width)

    return serve


def _bias_alone(height: int, width: int, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    y = x.new_zeros(x.shape[0], weight.shape[0], height, width)
    return y if bias is None else y + bias[:, None, None]


def _backward(strides: Strides, wanted: int) -> Callable[..., Tensor]:
    """(grad, x, weight) -> the gradient of x (0) or of the weight (1), which is not read itself."""
    sh, sw, ph, pw, dh, dw, groups = strides
    mask = [i == wanted for i in range(3)]
    rest = None, [sh, sw], [ph, pw], [dh, dw], False, [0, 0], groups, mask
    operator = torch.ops.aten.convolution_backward.default

    def serve(grad: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        found: Tensor = operator(grad, x, weight, *rest)[wanted]
        return found

    return serve


def _any_x(grad: Tensor, problem: Problem, channels: int, size: Sequence[int]) -> Tensor:
    """What stands for x where it is not read: its shape and its format choose PyTorch's kernel.

    On CPUs those of float16 are faster, and sum better, in planes. On GPUs planes need no memory.
    """
    shape, on_cpu = (grad.shape[0], channels, *size), problem.device == "cpu"
    if problem.channels_last and not (on_cpu and problem.dtype == "float16"):
        return empty(grad, channels, size)
    return grad.new_empty(shape) if on_cpu else grad.new_empty(1).expand(shape)


def grad_input(problem: Problem, strides: Strides) -> Callable[..., Tensor]:
    """(grad, weight) -> grad_x"""
    geometry, channels = problem.geometry, problem.groups * problem.in_channels
    height, width = geometry.rows.input, geometry.columns.input
    behind_input, behind_output = _surplus(geometry)
    padded = height + behind_input[0], width + behind_input[1]
    backward = _backward(strides, 0)

    def serve(grad: Tensor, weight: Tensor) -> Tensor:
        x = _any_x(grad, problem, channels, padded)
        return _cut(backward(_pad(grad, behind_output), x, weight), height, width)

    return serve


def grad_weight(problem: Problem, strides: Strides) -> Callable[..., Tensor]:
    """(grad, x) -> grad_weight"""
    geometry, on_cpu = problem.geometry, problem.device == "cpu"
    bfloat16 = problem.dtype == "bfloat16"
    if on_cpu and faults.few_columns(bfloat16, geometry):
        wide = grad_weight(problem._replace(dtype="float32"), strides)
        return lambda grad, x: wide(grad.float(), x.float()).bfloat16()
    kernel = geometry.rows.taps, geometry.columns.taps
    shape = (problem.groups * problem.out_channels, problem.in_channels, *kernel)
    behind_input, behind_output = _surplus(geometry)
    backward = _backward(strides, 1)
    misread = on_cpu and faults.gradient_misread(bfloat16, problem.in_channels, geometry)

    def serve(grad: Tensor, x: Tensor) -> Tensor:
        if misread:
            grad, x = faults.plain(grad), faults.plain(x)
        weight = x.new_empty(shape)  # only its shape and its format matter
        return backward(_pad(grad, behind_output), _pad(x, behind_input), weight)

    return serve
