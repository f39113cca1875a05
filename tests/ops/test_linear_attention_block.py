"""The block of linear attention: projections, attention and the residual in one piece."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segfast.kernels.linear_attention import reference
from segfast.ops import linear_attention2d
from segfast.testing import assert_as_good_as, dtypes
from tests.ops.linear_attention_cases import block_weights, theirs

feature_maps = pytest.mark.parametrize("feature_map", reference.FEATURE_MAPS)


def block(x: Tensor, weights: list[Tensor], feature_map: str, residual: bool = True) -> Tensor:
    """Three 1 x 1 convolutions and attention, nothing folded."""
    w_q, b_q, w_k, b_k, w_v, b_v, gamma = weights
    tokens = x.flatten(2)
    q, k, v = (
        w @ tokens + b[:, None] for w, b in ((w_q, b_q), (w_k, b_k), (w_v, b_v))
    )  # [B, D, N], [B, D, N], [B, C, N]
    o = gamma * theirs(q, k, v, feature_map)
    return o.view(x.shape) + (x if residual else 0)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("features", [5, 127], ids=["folded", "few positions"])
@pytest.mark.parametrize("feature_map", ["softplus", "taylor", "relu", "elu"])
def test_block(feature_map: str, features: int, residual: bool) -> None:
    """Values and every gradient, on a map that is not square, with fewer positions than features
    and with more, where the value projection is folded."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, 12, 9, 14, generator=generator, dtype=torch.float64).requires_grad_()
    weights = [w.requires_grad_() for w in block_weights(12, features, torch.float64)]
    y = linear_attention2d(x, *weights, feature_map, residual=residual)
    expected = block(x, weights, feature_map, residual)
    assert_as_good_as(y, expected.detach(), expected, terms=9 * 14)
    weight = y.detach().cos()
    gradients = torch.autograd.grad(y, (x, *weights), weight)
    theirs_ = torch.autograd.grad(expected, (x, *weights), weight)
    largest = max(float(g.abs().max()) for g in theirs_)  # where sums cancel, their terms do not
    for a, b in zip(gradients, theirs_, strict=True):
        assert_as_good_as(a, b, b, terms=x.numel(), magnitude=largest)


@pytest.mark.parametrize("features", [4, 80], ids=["folded", "few positions"])
@dtypes(torch.float32, torch.float16, torch.bfloat16)
def test_block_in_every_dtype_and_layout(dtype: torch.dtype, features: int) -> None:
    x = torch.randn(2, 16, 11, 7, generator=torch.Generator().manual_seed(2)).to(dtype)
    weights = block_weights(16, features, dtype)
    y = linear_attention2d(x, *weights)
    assert y.dtype == dtype
    expected = block(x.double(), [w.double() for w in weights], "softplus")
    assert_as_good_as(y, expected, block(x, weights, "softplus"), terms=11 * 7)
    channels_last = x.to(memory_format=torch.channels_last)
    assert torch.equal(linear_attention2d(channels_last, *weights), y)
    four = [w[..., None, None] if w.dim() == 2 else w for w in weights]
    assert torch.equal(linear_attention2d(x, *four), y)
    no_bias = linear_attention2d(x, *(None if i in (1, 3, 5) else w for i, w in enumerate(weights)))
    zeros = [torch.zeros_like(w) if i in (1, 3, 5) else w for i, w in enumerate(weights)]
    torch.testing.assert_close(no_bias, linear_attention2d(x, *zeros))


@pytest.mark.parametrize("shape", [(0, 16, 5, 4), (2, 16, 0, 5), (2, 16, 5, 0)], ids=str)
@feature_maps
def test_empty_block(feature_map: str, shape: tuple[int, ...]) -> None:
    leaves = [torch.empty(shape), *block_weights(16, 4, torch.float32)]
    leaves = [x.requires_grad_() for x in leaves]
    y = linear_attention2d(*leaves, feature_map)
    assert y.shape == shape
    for x, gradient in zip(leaves, torch.autograd.grad(y.sum(), leaves), strict=True):
        assert gradient.shape == x.shape
        assert not gradient.any()


def test_block_under_autocast() -> None:
    """Inputs in bfloat16, sums in float32, the residual as it came."""
    x = torch.randn(1, 16, 20, 30, generator=torch.Generator().manual_seed(2))
    weights = block_weights(16, 4, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = linear_attention2d(x, *weights)
    assert y.dtype == torch.float32
    oracle = block(x.double(), [w.double() for w in weights], "softplus")
    rounded = block(x.bfloat16(), [w.bfloat16() for w in weights], "softplus", residual=False)
    assert_as_good_as(y, oracle, x + rounded, terms=20 * 30)
    assert torch.equal(linear_attention2d(x, *weights[:-1], torch.zeros(1)), x)
