"""Dropout as an approximate posterior: what a network says of itself when it is sampled."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from segfast.models._base import SegmentationModel
from segfast.nn._shared import wide
from segfast.ops import _check

DROPOUTS = (nn.Dropout, nn.Dropout2d)


class Prediction(NamedTuple):
    """Mean probabilities [N, L, H, W]; their variance, averaged over the classes [N, H, W]."""

    mean: Tensor
    variance: Tensor


class Sampled(SegmentationModel):
    """A network with dropout that says how sure it is: Bayesian SegNet, FC-DenseNet."""

    def predict(self, x: Tensor, samples: int = 50) -> Prediction:
        """Probabilities and uncertainty: dropout stays on, and is averaged over.

            mean = 1/T sum_t p_t,   variance = 1/L sum_l 1/T sum_t (p_t - mean)^2

        Args:
            x: [N, C, H, W].
            samples: T, drawn from PyTorch's generator; 50 is Kendall and Gal's number (NIPS 2017).

        Returns:
            (mean [N, L, H, W], variance [N, H, W]).

        Raises:
            TypeError, ValueError: an argument breaks its contract; the message names it.
        """
        return monte_carlo(self, x, samples)


def monte_carlo(model: nn.Module, x: Tensor, samples: int) -> Prediction:
    """p_t = softmax(model(x)) with dropout, t = 1 to T: their mean, and their variance (over T).

    Gal and Ghahramani, "Dropout as a Bayesian Approximation", ICML 2016. Only dropout is as in
    training; batch normalisations keep their recorded statistics. Modes are as before afterwards.

    Args:
        model: x [N, C, H, W] -> scores [N, L, H, W].
        samples: T.
    """
    _check.require_count("samples", samples, 1)
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    for module, _ in modes:
        if isinstance(module, DROPOUTS):
            module.train()
    try:
        with torch.no_grad():
            mean = wide(model(x)).softmax(1)
            spread = torch.zeros_like(mean)  # sum of squared differences, by Welford's recurrence
            for count in range(2, samples + 1):
                p = wide(model(x)).softmax(1)
                difference = p - mean
                mean = mean + difference / count
                spread = spread + difference * (p - mean)
    finally:
        for module, training in modes:
            module.training = training
    return Prediction(mean, spread.mean(1) / samples)
