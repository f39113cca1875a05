"""Modules that wrap the operators."""

from segfast.nn.dense_crf import PRESETS, DenseCRF, Preset

__all__ = ["PRESETS", "DenseCRF", "Preset"]
