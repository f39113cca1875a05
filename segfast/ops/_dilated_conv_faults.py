"""Convolutions that PyTorch 2.13's own kernels for CPUs get wrong, and what goes round them.

kernels/dilated_conv/README.md, "Where PyTorch serves", says on which processors, and what happens.
But for `few_columns` all are of channels_last maps or weights: of `plain` ones PyTorch is right. No
gradient of a map has been seen wrong.
"""

from __future__ import annotations

from torch import Tensor

from segfast.kernels.dilated_conv.geometry import Axis, Geometry


def plain(x: Tensor) -> Tensor:
    """Contiguous, strides along sizes of 1 included: by these PyTorch calls a map channels_last."""
    return x.contiguous().flatten().view(x.shape)


def nothing_read(geometry: Geometry) -> bool:
    """Every column of the result reads padding alone: PyTorch reads beyond its tensors."""
    return geometry.columns.live_pairs() == 0


def result_misread(bfloat16: bool, in_channels: int, geometry: Geometry) -> bool:
    """Whether a result holds what was in memory, or memory is written that is not the result's.

    in_channels: of a group.
    """
    columns = geometry.columns
    one_column = in_channels == columns.output == 1 and columns.stride > 1
    padding_alone = sum(len(span.outputs) for span in columns.spans()) < columns.output
    return one_column or padding_alone or (bfloat16 and _ends_with_map(columns))


def _ends_with_map(columns: Axis) -> bool:
    """The last column's last tap reads the map's: no padding behind it, though there is before."""
    last = (columns.output - 1) * columns.stride + columns.dilation * (columns.taps - 1)
    return columns.padding > 0 and last + 1 == columns.input


def gradient_misread(bfloat16: bool, in_channels: int, geometry: Geometry) -> bool:
    """The same of the gradient of the weight."""
    spread = bfloat16 and max(axis.dilation for axis in geometry) > 1 and in_channels % 16 != 0
    one_tap = all(axis.taps == 1 for axis in geometry)
    return spread or (one_tap and in_channels < 16 and any(axis.stride > 1 for axis in geometry))


def few_columns(bfloat16: bool, geometry: Geometry) -> bool:
    """The map is narrower than the stride: the gradient of the weight is garbage in any format."""
    return bfloat16 and geometry.columns.input < geometry.columns.stride


def odd_batch(x: Tensor, groups: int) -> bool:
    """A batch of one whose stride is not the size of an image, as permuted images have.

    PyTorch goes by that stride in the gradient of a channels_last weight of groups, in float64 and
    float16: a wrong sum.
    """
    return groups > 1 and x.shape[0] == 1 and x.stride(0) != x[0].numel()
