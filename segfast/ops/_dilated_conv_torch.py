"""PyTorch's own convolution and its gradients, for every geometry that the raw operators take.

Its padding is the same before and behind: what is read further behind is put there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops import _dilated_conv_faults as faults
from segfast.ops._dilated_conv_plan import Strides


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


def forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry, strides: Strides
) -> Tensor:
    sh, sw, ph, pw, dh, dw, groups = strides
    if x.device.type == "cpu":
        rows, columns = geometry
        if faults.nothing_read(geometry):
            zeros = x.new_zeros(x.shape[0], weight.shape[0], rows.output, columns.output)
            return zeros if bias is None else zeros + bias[:, None, None]
        if faults.result_misread(x.dtype == torch.bfloat16, weight.shape[1], geometry):
            x, weight = faults.plain(x), faults.plain(weight)
    behind_input, _ = _surplus(geometry)
    y = F.conv2d(_pad(x, behind_input), weight, bias, (sh, sw), (ph, pw), (dh, dw), groups)
    return _cut(y, geometry.rows.output, geometry.columns.output)


def _backward(
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


def grad_input(grad: Tensor, weight: Tensor, geometry: Geometry, strides: Strides) -> Tensor:
    height, width = geometry.rows.input, geometry.columns.input
    shape = (grad.shape[0], weight.shape[1] * strides.groups, height, width)
    x = torch.empty_like(grad[:1, :1, :1, :1]).expand(shape)  # only its shape matters
    return _cut(_backward(grad, x, weight, geometry, strides, 0), height, width)


def grad_weight(grad: Tensor, x: Tensor, geometry: Geometry, strides: Strides) -> Tensor:
    if x.device.type == "cpu":
        bfloat16 = x.dtype == torch.bfloat16
        if faults.few_columns(bfloat16, geometry):
            return grad_weight(grad.float(), x.float(), geometry, strides).bfloat16()
        if faults.gradient_misread(bfloat16, x.shape[1] // strides.groups, geometry):
            grad, x = faults.plain(grad), faults.plain(x)
    kernel = geometry.rows.taps, geometry.columns.taps
    shape = (grad.shape[1], x.shape[1] // strides.groups, *kernel)
    weight = x.new_empty(shape)  # only its shape and its format matter
    return _backward(grad, x, weight, geometry, strides, 1)
