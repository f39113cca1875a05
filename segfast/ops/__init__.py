"""The operators: one file each."""

from segfast.ops.dense_crf import gaussian_filter, mean_field

__all__ = ["gaussian_filter", "mean_field"]
