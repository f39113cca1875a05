"""Linear attention as a module: the position attention of MANet, MAResU-Net and ABCNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from segfast.nn._shared import require_map
from segfast.nn.attention import ProjectedAttention2d
from segfast.ops import _check, linear_attention2d

# An "identity" of convolutions could not promise features that are not negative.
FEATURE_MAPS = ("softplus", "taylor", "relu", "elu")


class LinearAttention2d(ProjectedAttention2d):
    r"""Position attention in time proportional to the positions: `segfast.ops.linear_attention2d`.

        y_n = x_n + gamma sum_j sim(q_n, k_j) v_j / sum_j sim(q_n, k_j)
        sim(q, k) = phi(q) . phi(k), or 1 + q . k / (|q| |k|) for "taylor"
        q, k, v = 1 x 1 convolutions of x

    ========================  ==========  ========
    block of                  map         residual
    ========================  ==========  ========
    MANet                     "softplus"  True
    MAResU-Net                "taylor"    True
    ABCNet                    "taylor"    False
    ========================  ==========  ========

    Li et al., "Multiattention Network for Semantic Segmentation of Fine-Resolution Remote Sensing
    Images", TGRS 2021, section III-A; "Multistage Attention ResU-Net", GRSL 2021, section II-A;
    "ABCNet", ISPRS Journal 2021. Their code wants H = W; this does not.

    Args:
        channels: C of x.
        key_channels: of queries and keys; None means channels // 8, as published.
        feature_map: "softplus" (the default), "taylor", "relu" or "elu" (elu + 1).
        eps: added to every component of the sum of keys, as published: 1e-6.
        residual: True (the default), or False, which leaves x + away.
        device, dtype: of the parameters, as `torch.nn`'s modules have them.

    Shape:
        x [B, C, H, W] in the dtype of the parameters -> y [B, C, H, W] in that of x, any H and W.
        Parameters as published:
        query_conv, key_conv, value_conv (weight and bias), gamma [1], which starts as zero.

    The projections are part of the operator: hooks on them are not called.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.nn import LinearAttention2d
        >>> attention = LinearAttention2d(64, feature_map="taylor")
        >>> attention(torch.randn(1, 64, 30, 40)).shape
        torch.Size([1, 64, 30, 40])
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        feature_map: str = "softplus",
        eps: float = 1e-6,
        residual: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(channels, key_channels, device, dtype)
        _check.require_choice("feature_map", feature_map, FEATURE_MAPS)
        _check.require_bool("residual", residual)
        self.feature_map, self.residual = feature_map, residual
        self.eps = _check.not_negative("eps", eps)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> y [B, C, H, W]."""
        require_map(x, self.channels, self.query_conv.weight)
        q, k, v = self.query_conv, self.key_conv, self.value_conv
        return linear_attention2d(
            x, q.weight, q.bias, k.weight, k.bias, v.weight, v.bias, self.gamma,
            self.feature_map, self.eps, residual=self.residual,
        )  # fmt: skip

    def extra_repr(self) -> str:
        """The arguments."""
        return (
            f"{super().extra_repr()}, feature_map={self.feature_map!r}, eps={self.eps}, "
            f"residual={self.residual}"
        )
