"""Modules that wrap the operators."""

from segfast.nn.dense_crf import PRESETS, DenseCRF, Preset
from segfast.nn.max_unpool import FixedUnpool2d, MaxPool2d, MaxUnpool2d
from segfast.nn.upsample import (
    BicubicUpsample2d,
    BilinearConvTranspose2d,
    BilinearUpsample2d,
    NearestUpsample2d,
)

__all__ = [
    "PRESETS",
    "BicubicUpsample2d",
    "BilinearConvTranspose2d",
    "BilinearUpsample2d",
    "DenseCRF",
    "FixedUnpool2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "NearestUpsample2d",
    "Preset",
]
