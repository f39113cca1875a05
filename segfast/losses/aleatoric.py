"""Losses that learn how uncertain each prediction is."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.ops import _check


def aleatoric_cross_entropy(
    scores: Tensor,
    log_variance: Tensor,
    target: Tensor,
    samples: int = 10,
    ignore_index: int = 255,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Cross-entropy of the mean softmax of scores with Gaussian noise.

        L = -mean_n log (1 / T) sum_t softmax(f_n + sigma_n e_nt)[y_n],   e_nt ~ N(0, I)

    Kendall and Gal, "What Uncertainties Do We Need in Bayesian Deep Learning for Computer Vision?",
    NIPS 2017, equation 12; in logarithms throughout.

    Args:
        scores: f, [N, L, H, W], floating.
        log_variance: log sigma^2, of the same shape.
        target: y, int64 [N, H, W], labels below L or `ignore_index`.
        samples: T.
        ignore_index: pixels that do not count.
        generator: of the noise.

    Returns:
        A scalar; NaN where no pixel counts, as `torch.nn.functional.cross_entropy`.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> scores, target = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
        >>> certain = torch.full_like(scores, -40.0)
        >>> aleatoric_cross_entropy(scores, certain, target).exp().round()
        tensor(3.)
    """
    _require_pair("scores", scores, "log_variance", log_variance)
    if scores.dim() != 4:
        raise ValueError(f"scores must be [N, L, H, W], got {_check.describe(scores)}")
    _check.require_count("samples", samples, 1)
    _check.require_tensor("target", target, "int64 [N, H, W]")
    if target.dtype != torch.int64 or target.shape != (scores.shape[0], *scores.shape[2:]):
        raise ValueError(f"target must be int64 [N, H, W], got {_check.describe(target)}")
    sigma = (log_variance / 2).exp()

    def drawn() -> Tensor:
        noise = torch.randn(
            scores.shape, generator=generator, device=scores.device, dtype=scores.dtype
        )
        return (scores + sigma * noise).log_softmax(1)

    total = drawn()
    for _ in range(samples - 1):
        total = torch.logaddexp(total, drawn())
    return F.nll_loss(total - math.log(samples), target, ignore_index=ignore_index)


def aleatoric_regression(prediction: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    r"""Squared errors, attenuated by the variance that is predicted with them.

        L = mean( exp(-s) (y - y')^2 / 2 + s / 2 ),   s = log sigma^2

    Kendall and Gal, 2017, equation 8: smallest where sigma^2 is the squared error.

    Args:
        prediction, log_variance, target: y', s and y, floating, of one shape.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> y = torch.tensor([1.0, 3.0])
        >>> aleatoric_regression(y + 2, torch.zeros(2), y)
        tensor(2.)
    """
    _require_pair("prediction", prediction, "log_variance", log_variance)
    _require_pair("prediction", prediction, "target", target)
    squares = (target - prediction).square()
    return ((-log_variance).exp() * squares / 2 + log_variance / 2).mean()


def _require_pair(name: str, x: Tensor, other: str, y: Tensor) -> None:
    _check.require_floating(name, x, "")
    _check.require_floating(other, y, f"of the shape of {name}")
    if x.shape != y.shape:
        raise ValueError(
            f"{other} must have the shape of {name}, {tuple(x.shape)}, got {_check.describe(y)}"
        )
