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
        target: y, int64 [N, H, W], labels 0 to L - 1 or `ignore_index`.
        samples: T.
        ignore_index: pixels that do not count.
        generator: of the noise.

    Returns:
        A scalar, float64 if scores or log_variance are and float32 otherwise, as it is computed;
        NaN where no pixel counts, as of `torch.nn.functional.cross_entropy`.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.losses import aleatoric_cross_entropy
        >>> scores, target = torch.zeros(1, 3, 4, 4), torch.zeros(1, 4, 4, dtype=torch.long)
        >>> certain = torch.full_like(scores, -40.0)
        >>> aleatoric_cross_entropy(scores, certain, target).exp().round()
        tensor(3.)
    """
    _require_pair("scores", scores, "log_variance", log_variance)
    if scores.dim() != 4 or scores.shape[1] < 1:
        raise ValueError(f"scores must be [N, L, H, W], got {_check.describe(scores)}")
    _check.require_count("samples", samples, 1)
    _require_labels(target, scores, ignore_index)
    _require_generator(generator, scores.device)
    f, log_variance = _wide(scores, log_variance)
    sigma = (log_variance / 2).exp()  # [N, L, H, W]

    def drawn() -> Tensor:
        """log softmax(f_n + sigma_n e_n)[y_n], 0 where y is ignored: [N, H, W]."""
        noise = torch.randn(f.shape, generator=generator, device=f.device, dtype=f.dtype)
        noisy = f + sigma * noise
        return -F.cross_entropy(noisy, target, ignore_index=ignore_index, reduction="none")

    total = drawn()
    for _ in range(samples - 1):
        total = torch.logaddexp(total, drawn())
    only = (total - math.log(samples)).unsqueeze(1)  # [N, 1, H, W]: of one label, that of y
    return F.nll_loss(only, torch.where(target == ignore_index, -100, 0), ignore_index=-100)


def aleatoric_regression(prediction: Tensor, log_variance: Tensor, target: Tensor) -> Tensor:
    r"""Squared errors, attenuated by the variance that is predicted with them.

        L = mean( exp(-s) (y - y')^2 / 2 + s / 2 ),   s = log sigma^2

    Kendall and Gal, 2017, equation 8: smallest where sigma^2 is the squared error.

    Args:
        prediction, log_variance, target: y', s and y, floating, of one shape.

    Returns:
        A scalar, float64 if one of them is and float32 otherwise, as it is computed.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.losses import aleatoric_regression
        >>> y = torch.tensor([1.0, 3.0])
        >>> aleatoric_regression(y + 2, torch.zeros(2), y)
        tensor(2.)
    """
    _require_pair("prediction", prediction, "log_variance", log_variance)
    _require_pair("prediction", prediction, "target", target)
    prediction, log_variance, target = _wide(prediction, log_variance, target)
    squares = (target - prediction).square()
    return ((-log_variance).exp() * squares / 2 + log_variance / 2).mean()


def _wide(*tensors: Tensor) -> list[Tensor]:
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in tensors) else torch.float32
    return [x.to(dtype) for x in tensors]


def _require_labels(target: Tensor, scores: Tensor, ignore_index: int) -> None:
    _check.require_tensor("target", target, "int64 [N, H, W]")
    if target.dtype != torch.int64 or target.shape != (scores.shape[0], *scores.shape[2:]):
        raise ValueError(f"target must be int64 [N, H, W], got {_check.describe(target)}")
    _require_device("target", target, "scores", scores)
    if _check.integer(ignore_index) is None:
        raise TypeError(f"ignore_index must be an integer, got {_check.describe(ignore_index)}")
    if torch.compiler.is_compiling() or target.is_meta or not target.numel():
        return
    low, high = (int(end) for end in torch.aminmax(target.masked_fill(target == ignore_index, 0)))
    if low < 0 or high >= scores.shape[1]:
        raise ValueError(
            f"target must hold labels 0 to {scores.shape[1] - 1}, or {ignore_index} "
            f"(ignore_index); got {low if low < 0 else high}"
        )


def _require_generator(generator: object, device: torch.device) -> None:
    if not isinstance(generator, torch.Generator | None):
        raise TypeError(f"generator must be a torch.Generator, got {_check.describe(generator)}")
    if generator is not None and generator.device.type != device.type:
        raise ValueError(
            f"generator must be of the device of scores, {device.type}, got {generator.device}"
        )


def _require_device(name: str, x: Tensor, other: str, y: Tensor) -> None:
    if x.device != y.device:
        raise ValueError(
            f"{name} must be on the device of {other}, {y.device}; it is on {x.device}"
        )


def _require_pair(name: str, x: Tensor, other: str, y: Tensor) -> None:
    _check.require_floating(name, x, f"like {other}")
    _check.require_floating(other, y, f"of the shape of {name}")
    if x.shape != y.shape:
        raise ValueError(
            f"{other} must have the shape of {name}, {tuple(x.shape)}, got {_check.describe(y)}"
        )
    _require_device(other, y, name, x)
