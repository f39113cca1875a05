"""Losses built on the operators."""

from segfast.losses.dense_crf import DenseCRFLoss, dense_crf_loss

__all__ = ["DenseCRFLoss", "dense_crf_loss"]
