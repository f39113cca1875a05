"""Linear attention from its equation, in PyTorch's own operators."""

from __future__ import annotations

from torch import Tensor

from segfast.kernels.linear_attention import reference
from segfast.nn._shared import require_map, wide
from segfast.nn.linear_attention import LinearAttention2d
from segfast.ops._autocast import without_autocast


class EagerLinearAttention2d(LinearAttention2d):
    r"""What its base class computes, step by step and with hooks on the projections.

        y_n = x_n + gamma sum_j sim(q_n, k_j) v_j / sum_j sim(q_n, k_j)
        sum_j sim(q_n, k_j) v_j = (sum_j v_j phi(k_j)^T) phi(q_n)

    Arguments, shapes and state are those of :class:`segfast.nn.LinearAttention2d`, which
    `segfast.swap(model, to="torch")` replaces by it. Sums are in float32 or wider.

    Example:
        >>> import torch
        >>> from segfast.nn.eager_attention import EagerLinearAttention2d
        >>> EagerLinearAttention2d(64, None, "taylor")(torch.randn(1, 64, 30, 40)).shape
        torch.Size([1, 64, 30, 40])
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> y [B, C, H, W]."""
        require_map(x, self.channels, getattr(self.query_conv, "weight", None))
        q, k, v = (conv(x) for conv in (self.query_conv, self.key_conv, self.value_conv))
        with without_autocast(x):
            tokens = (wide(t.flatten(2)) for t in (q, k, v))  # [B, D, N] twice, [B, C, N]
            o = reference.linear(*tokens, self.feature_map, self.eps)  # [B, C, N]
            y = (self.gamma * o).unflatten(2, x.shape[2:]).to(x.dtype)
        return x + y if self.residual else y
