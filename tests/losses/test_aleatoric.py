"""Learned uncertainty: the limits that the equations name."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from segfast.losses import aleatoric_cross_entropy, aleatoric_regression


def maps(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    target = torch.randint(0, 4, (2, 5, 6))
    target[0, 0] = 255
    return torch.randn(2, 4, 5, 6, dtype=dtype), target


def test_without_noise_it_is_cross_entropy() -> None:
    scores, target = maps()
    certain = torch.full_like(scores, -math.inf)  # sigma = 0
    expected = F.cross_entropy(scores, target, ignore_index=255)
    torch.testing.assert_close(aleatoric_cross_entropy(scores, certain, target, 3), expected)


def test_mean_of_softmaxes() -> None:
    """Against probabilities that are averaged as such, with the same noise."""
    scores, target = maps()
    log_variance = torch.randn_like(scores)
    found = aleatoric_cross_entropy(
        scores, log_variance, target, 5, generator=torch.Generator().manual_seed(3)
    )
    generator = torch.Generator().manual_seed(3)
    mean = torch.zeros_like(scores)
    for _ in range(5):
        noise = torch.randn(scores.shape, generator=generator, dtype=scores.dtype)
        mean += (scores + log_variance.exp().sqrt() * noise).softmax(1) / 5
    torch.testing.assert_close(found, F.nll_loss(mean.log(), target, ignore_index=255))


def test_scores_far_apart_stay_finite() -> None:
    scores = torch.tensor([[1e4, -1e4]]).reshape(1, 2, 1, 1).requires_grad_()
    target = torch.ones(1, 1, 1, dtype=torch.int64)
    loss = aleatoric_cross_entropy(scores, torch.zeros_like(scores), target)
    (grad,) = torch.autograd.grad(loss, scores)
    assert loss.isfinite()
    assert grad.isfinite().all()


def test_regression_is_smallest_at_the_squared_error() -> None:
    y, found = torch.tensor([1.0, 4.0]).double(), torch.tensor([3.0, 3.5]).double()
    s = (y - found).square().log().requires_grad_()
    (grad,) = torch.autograd.grad(aleatoric_regression(found, s, y), s)
    torch.testing.assert_close(grad, torch.zeros(2, dtype=torch.float64))


def test_regression_attenuates_gradients() -> None:
    y = torch.zeros(1, dtype=torch.float64)
    found = torch.ones(1, dtype=torch.float64, requires_grad=True)
    for s in (0.0, 2.0):
        (grad,) = torch.autograd.grad(
            aleatoric_regression(found, torch.full((1,), s, dtype=torch.float64), y), found
        )
        torch.testing.assert_close(grad, torch.tensor([math.exp(-s)], dtype=torch.float64))


def test_refusals() -> None:
    scores, target = maps()
    with pytest.raises(ValueError, match="log_variance must have the shape of scores"):
        aleatoric_cross_entropy(scores, scores[:1], target)
    with pytest.raises(ValueError, match=r"target must be int64 \[N, H, W\]"):
        aleatoric_cross_entropy(scores, scores, target[:, :1])
    with pytest.raises(ValueError, match=r"scores must be \[N, L, H, W\]"):
        aleatoric_cross_entropy(scores[0], scores[0], target)
    with pytest.raises(ValueError, match="samples must be at least 1"):
        aleatoric_cross_entropy(scores, scores, target, 0)
    with pytest.raises(TypeError, match="prediction must be a floating-point tensor"):
        aleatoric_regression(target, target, target)
