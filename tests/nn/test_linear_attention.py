"""LinearAttention2d is the block of MANet, MAResU-Net and ABCNet. More: test_attention.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from segfast.nn import LinearAttention2d
from segfast.ops import linear_attention2d
from segfast.testing import assert_as_good_as
from tests.fingerprints import assert_reproduces, fill
from tests.nn.attention_cases import maps

TAYLOR = {"feature_map": "taylor"}
PUBLISHED: list[tuple[str, dict[str, Any]]] = [
    ("mod_manet_PAM_softplus_64", {}),
    ("mod_maresunet_PAM_taylor_64", TAYLOR),
    ("lironui_position_linear_attention_64", TAYLOR),
    ("mod_abcnet_Attention_64", {**TAYLOR, "residual": False}),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("name", "options"), PUBLISHED)
def test_golden(name: str, options: dict[str, Any], dtype: torch.dtype) -> None:
    assert_reproduces(LinearAttention2d(64, **options), name, dtype)


def test_parameters_are_the_published_ones() -> None:
    """5,201 at 64 channels."""
    assert sum(p.numel() for p in LinearAttention2d(64).parameters()) == 5201


@pytest.mark.parametrize("feature_map", ["softplus", "taylor", "relu", "elu"])
def test_every_option_reaches_the_operator(feature_map: str) -> None:
    module = LinearAttention2d(16, 3, feature_map, 0.25, False).double()
    fill(module, {key: key for key in module.state_dict()})
    p, x = dict(module.named_parameters()), maps(2, 16, 4, 6)
    weights = [p[f"{name}_conv.{part}"] for name in ("query", "key", "value")
               for part in ("weight", "bias")]  # fmt: skip
    expected = linear_attention2d(x, *weights, p["gamma"], feature_map, 0.25, residual=False)
    assert torch.equal(module(x), expected)
    assert repr(module).startswith("LinearAttention2d(\n  16, key_channels=3, feature_map=")
    assert "eps=0.25, residual=False" in repr(module)


def test_constant_values_stay() -> None:
    """The weights of every query sum to 1 without eps: y = x + gamma b."""
    module = LinearAttention2d(16, eps=0.0).double()
    fill(module, {key: key for key in module.state_dict()})
    torch.nn.init.zeros_(module.value_conv.weight)
    x = maps(2, 16, 7, 5)
    expected = x + 0.5 * module.value_conv.bias[:, None, None]  # type: ignore[index]
    assert_as_good_as(module(x), expected, expected, terms=7 * 5)


def test_half_precision_on_large_maps() -> None:
    """65,536 positions, more than float16 counts to: the published code returns x here, or NaN."""
    module = LinearAttention2d(8, feature_map="taylor").half()
    torch.nn.init.ones_(module.gamma)
    torch.nn.init.zeros_(module.value_conv.weight)
    torch.nn.init.constant_(module.value_conv.bias, 2.0)  # type: ignore[arg-type]
    x = maps(1, 8, 256, 256, dtype=torch.float16)
    with torch.no_grad():
        assert_as_good_as(module(x), x.double() + 2, x + 2)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"feature_map": "identity"}, ValueError, "^feature_map must be one of softplus, taylor"),
        ({"feature_map": 1}, ValueError, "^feature_map must be one of softplus, .* got int 1"),
        ({"eps": -1e-6}, ValueError, "^eps must be finite and not negative, got -1e-06"),
        ({"eps": "1"}, TypeError, "^eps must be a number, got str '1'"),
        ({"residual": "no"}, TypeError, "^residual must be True or False, got str 'no'"),
        ({"key_channels": 2.0}, TypeError, "^key_channels must be an integer, got float"),
    ],
)
def test_options_are_checked(options: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        LinearAttention2d(16, **options)
