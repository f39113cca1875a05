"""Learned uncertainty: the limits that the equations name."""

from __future__ import annotations

import math
from typing import Any

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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_is_computed_in_float32(dtype: torch.dtype) -> None:
    """Variances that half has no exponential of, and a mean that it cannot hold."""
    scores, target = maps(torch.float32)
    halves = scores.to(dtype), torch.full_like(scores, 30.0).to(dtype)
    found, expected = (
        aleatoric_cross_entropy(*each, target, 5, generator=torch.Generator().manual_seed(3))
        for each in (halves, [x.float() for x in halves])
    )
    assert expected.isfinite()
    assert torch.equal(found, expected)
    y, s = scores.to(dtype), torch.full_like(scores, -30.0).to(dtype)
    found = aleatoric_regression(y, s, y + 1)
    assert found.isfinite()
    assert torch.equal(found, aleatoric_regression(y.float(), s.float(), (y + 1).float()))


def test_what_is_ignored_has_no_gradient() -> None:
    scores, target = maps()
    target[0, 0] = 1
    leaf = scores.clone().requires_grad_()
    loss = aleatoric_cross_entropy(leaf, torch.randn_like(scores), target, ignore_index=1)
    (grad,) = torch.autograd.grad(loss, leaf)
    ignored = (target == 1)[:, None].expand_as(grad)
    assert not grad[ignored].any()
    assert grad[~ignored].all()
    assert aleatoric_cross_entropy(scores, scores, torch.full_like(target, 255)).isnan()


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
    with pytest.raises(ValueError, match="log_variance must be on the device of scores, cpu"):
        aleatoric_cross_entropy(scores, scores.to("meta"), target)
    with pytest.raises(ValueError, match="target must be on the device of scores, cpu"):
        aleatoric_cross_entropy(scores, scores, target.to("meta"))
    with pytest.raises(ValueError, match=r"scores must be \[N, L, H, W\]"):
        aleatoric_cross_entropy(scores[:, :0], scores[:, :0], target)


@pytest.mark.parametrize("label", [4, -1, 254])
def test_labels_out_of_range(label: int) -> None:
    scores, target = maps()
    target[1, 2, 3] = label
    with pytest.raises(ValueError, match=rf"target must hold labels 0 to 3, or 255 .* got {label}"):
        aleatoric_cross_entropy(scores, scores, target)
    target[0, 0] = 0  # 255 before
    assert aleatoric_cross_entropy(scores, scores, target, ignore_index=label).isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples": 1.5}, "samples must be an integer"),
        ({"ignore_index": "none"}, "ignore_index must be an integer, got str"),
        ({"ignore_index": None}, "ignore_index must be an integer"),
        ({"generator": 3}, "generator must be a torch.Generator, got int 3"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    scores, target = maps()
    with pytest.raises(TypeError, match=message):
        aleatoric_cross_entropy(scores, scores, target, **options)
