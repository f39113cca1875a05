"""Modules that wrap the operators."""

from segfast.nn.aspp import ASPP, ASPP_RATES, ASPPv2
from segfast.nn.attention import ChannelAttention2d, NonLocal2d, PositionAttention2d
from segfast.nn.context import CONTEXT_DILATIONS, ContextModule
from segfast.nn.crf_rnn import CRFRNN
from segfast.nn.dense_crf import PRESETS, DenseCRF, Preset
from segfast.nn.dilated_conv import (
    DilatedConv2d,
    SeparableDilatedConv2d,
    dilate_stage,
    multi_grid,
)
from segfast.nn.linear_attention import LinearAttention2d
from segfast.nn.max_unpool import FixedUnpool2d, MaxPool2d, MaxUnpool2d
from segfast.nn.upsample import (
    BicubicUpsample2d,
    BilinearConvTranspose2d,
    BilinearUpsample2d,
    NearestUpsample2d,
)

__all__ = [
    "ASPP",
    "ASPP_RATES",
    "CONTEXT_DILATIONS",
    "CRFRNN",
    "PRESETS",
    "ASPPv2",
    "BicubicUpsample2d",
    "BilinearConvTranspose2d",
    "BilinearUpsample2d",
    "ChannelAttention2d",
    "ContextModule",
    "DenseCRF",
    "DilatedConv2d",
    "FixedUnpool2d",
    "LinearAttention2d",
    "MaxPool2d",
    "MaxUnpool2d",
    "NearestUpsample2d",
    "NonLocal2d",
    "PositionAttention2d",
    "Preset",
    "SeparableDilatedConv2d",
    "dilate_stage",
    "multi_grid",
]
