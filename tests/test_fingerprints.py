"""The rule that fills models is what the fingerprints were made with, and they do tell."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from segfast.nn import ChannelAttention2d
from tests.fingerprints import assert_reproduces, fill, filled_input, uniform


def test_hash_is_splitmix64() -> None:
    """The first number of the published generator with seed 0; crc32 of nothing is 0."""
    assert uniform("", 1)[0] == (0xE220A8397B1DCDAF >> 11) / 2**53


def test_every_rule() -> None:
    """One number of each, computed by hand from the rule (integers of any size)."""
    module = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3), nn.PReLU()).double()
    fill(module, {key: key for key in module.state_dict()})
    state = module.state_dict()
    u = {key: uniform(key, 6)[1] for key in state}
    assert state["0.weight"].flatten()[1] == (2 * u["0.weight"] - 1) * 1.5**0.5
    assert state["0.bias"][1] == 0.2 * (u["0.bias"] - 0.5)
    assert state["1.weight"][1] == 0.5 + u["1.weight"]
    assert state["1.running_mean"][1] == 0.2 * (u["1.running_mean"] - 0.5)
    assert state["1.running_var"][1] == 0.5 + u["1.running_var"]
    assert state["1.num_batches_tracked"] == 0
    assert state["2.weight"] == 0.5
    plain = nn.Conv2d(2, 3, 1).double()
    fill(plain, {"weight": "0.weight", "bias": "0.bias"})
    torch.testing.assert_close(plain.weight.data, state["0.weight"] * 2**0.5)  # no batch norm
    x = filled_input((2, 500))
    assert x[1, 0] == 4 * uniform("input", 501)[500] - 2


class Wrong(nn.Module):
    """Channel attention, one millionth off."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = ChannelAttention2d()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 1.000001 * self.attention(x)


def test_what_is_wrong_is_seen() -> None:
    renamed = {"attention.gamma": "gamma"}
    assert_reproduces(Wrong(), "mod_manet_CAM", torch.float32, renamed)
    with pytest.raises(AssertionError, match="mod_manet_CAM: val is off by"):
        assert_reproduces(Wrong(), "mod_manet_CAM", torch.float64, renamed)
    with pytest.raises(AssertionError):  # other keys
        assert_reproduces(Wrong(), "mod_manet_CAM")
    with pytest.raises(AssertionError):  # the other formula
        assert_reproduces(ChannelAttention2d("paper"), "mod_danet_CAM_64")
