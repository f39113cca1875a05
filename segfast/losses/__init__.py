"""Losses built on the operators, and what networks with uncertainty are trained with."""

from segfast.losses.aleatoric import aleatoric_cross_entropy, aleatoric_regression
from segfast.losses.dense_crf import DenseCRFLoss, dense_crf_loss

__all__ = [
    "DenseCRFLoss",
    "aleatoric_cross_entropy",
    "aleatoric_regression",
    "dense_crf_loss",
]
