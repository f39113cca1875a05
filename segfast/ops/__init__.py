"""The operators: one file each."""

from segfast.ops.dense_crf import gaussian_filter, mean_field
from segfast.ops.dilated_conv import (
    atrous_pyramid2d,
    context_module2d,
    dilated_conv1d,
    dilated_conv2d,
    dilated_conv_transpose2d,
)
from segfast.ops.linear_attention import linear_attention, linear_attention2d
from segfast.ops.max_unpool import (
    max_pool2d,
    max_pool2d_packed,
    max_unpool2d,
    pack_indices,
    unpack_indices,
)

__all__ = [
    "atrous_pyramid2d",
    "context_module2d",
    "dilated_conv1d",
    "dilated_conv2d",
    "dilated_conv_transpose2d",
    "gaussian_filter",
    "linear_attention",
    "linear_attention2d",
    "max_pool2d",
    "max_pool2d_packed",
    "max_unpool2d",
    "mean_field",
    "pack_indices",
    "unpack_indices",
]
