"""The attention modules, and what they compute by its definition, every pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.kernels.linear_attention import reference
from segfast.nn import ChannelAttention2d, LinearAttention2d, NonLocal2d, PositionAttention2d
from tests.fingerprints import fill


def linear(module: Any, x: Tensor) -> Tensor:
    q, k, v = (
        conv(x).flatten(2) for conv in (module.query_conv, module.key_conv, module.value_conv)
    )
    o = module.gamma * reference.quadratic(q, k, v, module.feature_map, module.eps)
    return o.view(x.shape) + (x if module.residual else 0)


def position(module: Any, x: Tensor) -> Tensor:
    q, k, v = (
        conv(x).flatten(2) for conv in (module.query_conv, module.key_conv, module.value_conv)
    )
    o = v @ (q.mT @ k).softmax(-1).mT
    return x + module.gamma * o.view(x.shape)


def channel(module: Any, x: Tensor) -> Tensor:
    """DANet's code, or its paper."""
    tokens = x.flatten(2)
    energy = tokens @ tokens.mT
    if module.sign == "code":
        energy = energy.amax(-1, keepdim=True) - energy
    return x + module.gamma * (energy.softmax(-1) @ tokens).view(x.shape)


def non_local(module: Any, x: Tensor) -> Tensor:
    theta, phi, g = (
        F.conv2d(x, state["weight"], state["bias"])
        for state in (
            {key.split(".")[-1]: p for key, p in part.named_parameters()}
            for part in (module.theta, module.phi, module.g)
        )
    )
    if module.sub_sample:
        phi, g = (F.max_pool2d(y, 2) for y in (phi, g))
    theta, phi, g = theta.flatten(2), phi.flatten(2), g.flatten(2)
    pairs = theta.mT @ phi  # [B, N, M]
    if module.mode == "dot_product":
        pairs = pairs / phi.shape[2]
    else:
        pairs = (pairs / (phi.shape[1] ** 0.5 if module.use_scale else 1)).softmax(-1)
    return x + module.conv_out((g @ pairs.mT).unflatten(2, x.shape[2:]))


@dataclass(frozen=True)
class Case:
    """A module of 16 channels and its formula."""

    cls: Any
    options: dict[str, Any]
    formula: Callable[[Any, Tensor], Tensor]

    def __str__(self) -> str:
        values = [str(value) for value in self.options.values()]
        return "-".join([self.cls.__name__, *values])

    def build(self, dtype: torch.dtype = torch.float64) -> nn.Module:
        """Filled without a random generator; gamma is 0.5; batch normalisation as in inference."""
        sizes = [] if self.cls is ChannelAttention2d else [16]
        module = self.cls(*sizes, **self.options).to(dtype).eval()
        fill(module, {key: key for key in module.state_dict()})
        return module


CASES = [
    Case(LinearAttention2d, {}, linear),
    Case(LinearAttention2d, {"feature_map": "taylor"}, linear),
    Case(LinearAttention2d, {"feature_map": "taylor", "residual": False}, linear),
    Case(LinearAttention2d, {"feature_map": "relu", "eps": 0.5}, linear),
    Case(LinearAttention2d, {"feature_map": "elu", "key_channels": 7}, linear),
    Case(PositionAttention2d, {}, position),
    Case(PositionAttention2d, {"key_channels": 20}, position),
    Case(ChannelAttention2d, {"sign": "code"}, channel),
    Case(ChannelAttention2d, {"sign": "paper"}, channel),
    Case(NonLocal2d, {}, non_local),
    Case(NonLocal2d, {"mode": "embedded_gaussian", "sub_sample": True}, non_local),
    Case(NonLocal2d, {"use_scale": False, "batch_norm": False}, non_local),
    Case(NonLocal2d, {"mode": "dot_product", "inner_channels": 5}, non_local),
    Case(NonLocal2d, {"mode": "dot_product", "sub_sample": True}, non_local),
]


def maps(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)
