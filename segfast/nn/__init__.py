"""Modules that wrap the operators."""

from segfast.nn.attention import ChannelAttention2d, NonLocal2d, PositionAttention2d
from segfast.nn.dense_crf import PRESETS, DenseCRF, Preset
from segfast.nn.linear_attention import LinearAttention2d
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
    "ChannelAttention2d",
    "DenseCRF",
    "FixedUnpool2d",
    "LinearAttention2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "NearestUpsample2d",
    "NonLocal2d",
    "PositionAttention2d",
    "Preset",
]
