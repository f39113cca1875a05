"""Linear attention from its equation, in PyTorch's own operators."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from segfast.nn._shared import require_map, wide
from segfast.nn.linear_attention import LinearAttention2d
from segfast.ops._autocast import without_autocast

# phi; that of "taylor" has a feature more, 1, which the sums below have by themselves.
FEATURES: dict[str, Callable[[Tensor], Tensor]] = {
    "softplus": F.softplus,
    "taylor": lambda x: F.normalize(x, dim=1, eps=1e-6),
    "relu": F.relu,
    "elu": lambda x: F.elu(x) + 1,
}


class EagerLinearAttention2d(LinearAttention2d):
    r"""What its base class computes, step by step and with hooks on the projections.

        y_n = x_n + gamma sum_j sim(q_n, k_j) v_j / sum_j sim(q_n, k_j)
        sum_j sim(q_n, k_j) v_j = (sum_j v_j phi(k_j)^T) phi(q_n)      [+ sum_j v_j for "taylor"]

    Arguments, shapes and state are those of :class:`segfast.nn.LinearAttention2d`, which
    `segfast.swap(model, to="torch")` replaces by it. Sums are in float32 or wider.

    Example:
        >>> import torch
        >>> EagerLinearAttention2d(64, None, "taylor")(torch.randn(1, 64, 30, 40)).shape
        torch.Size([1, 64, 30, 40])
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> y [B, C, H, W]."""
        require_map(x, self.channels)
        q, k, v = (conv(x) for conv in (self.query_conv, self.key_conv, self.value_conv))
        with without_autocast(x):
            o = self._attend(*(wide(t.flatten(2)) for t in (q, k, v)))
            y = (self.gamma * o).unflatten(2, x.shape[2:]).to(x.dtype)
        return x + y if self.residual else y

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q and k [B, D, N], v [B, C, N] -> [B, C, N]."""
        phi = FEATURES[self.feature_map]
        queries, keys = phi(q), phi(k)
        above = (v @ keys.mT) @ queries  # [B, C, N]
        total = keys.sum(2, keepdim=True) + self.eps  # [B, D, 1]
        below = (queries * total).sum(1, keepdim=True)  # [B, 1, N]
        if self.feature_map == "taylor":
            above = above + v.sum(2, keepdim=True)
            below = (below + k.shape[2]).clamp(min=self.eps)
        return above / torch.where(below == 0, 1, below)  # 0 / 0 is 0
