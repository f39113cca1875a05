"""Attention between all positions, or all channels, of a map: DANet's two, the non-local block.

These take time in proportion to the square of what attends; `segfast.nn.LinearAttention2d` does
not.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segfast.nn._shared import require_map, wide
from segfast.nn.max_unpool import MaxPool2d
from segfast.ops import _check
from segfast.ops._autocast import without_autocast

SIGNS = {"code": -1, "paper": 1}
MODES = ("embedded_gaussian", "dot_product")


class ProjectedAttention2d(nn.Module):
    """What attentions between positions share: 1 x 1 convolutions and the weight gamma.

    The names are those of DANet's published code, which MANet, MAResU-Net and ABCNet kept. gamma
    starts as zero.
    """

    def __init__(
        self,
        channels: int,
        key_channels: int | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: Any = {"device": device, "dtype": dtype}
        channels = _check.require_count("channels", channels, 1)
        if key_channels is None:
            key_channels = max(channels // 8, 1)
        key_channels = _check.require_count("key_channels", key_channels, 1)
        self.channels, self.key_channels = channels, key_channels
        self.query_conv = nn.Conv2d(channels, key_channels, 1, **factory)
        self.key_conv = nn.Conv2d(channels, key_channels, 1, **factory)
        self.value_conv = nn.Conv2d(channels, channels, 1, **factory)
        self.gamma = nn.Parameter(torch.zeros(1, **factory))

    def extra_repr(self) -> str:
        """The arguments."""
        return f"{self.channels}, key_channels={self.key_channels}"


class PositionAttention2d(ProjectedAttention2d):
    r"""DANet's position attention: every position attends to every other, by softmax.

        y_n = x_n + gamma sum_j a_nj v_j,   a_n = softmax_j(q_n . k_j)
        q, k, v = 1 x 1 convolutions of x

    Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019, section 3.2. Time grows
    with the square of the positions N. PyTorch's `scaled_dot_product_attention` serves, and where
    one of its fused kernels takes the inputs no N x N matrix is formed; on a CPU that is inference.

    Args:
        channels: C of x.
        key_channels: of queries and keys; None means channels // 8, as published.
        device, dtype: of the parameters, as `torch.nn`'s modules have them.

    Shape:
        x [B, C, H, W] -> y [B, C, H, W] in the dtype of the parameters, any H and W from 1.
        Parameters: query_conv, key_conv, value_conv (weight and bias), gamma [1], which starts as
        zero.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.nn import PositionAttention2d
        >>> attention = PositionAttention2d(64)
        >>> x = torch.randn(1, 64, 12, 20)
        >>> torch.equal(attention(x), x)  # until gamma has been learned
        True
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> y [B, C, H, W]."""
        require_map(x, self.channels, getattr(self.query_conv, "weight", None))
        _require_pixels(x, 1)
        o = attend(self.query_conv(x), self.key_conv(x), self.value_conv(x), scale=1.0)
        return x + self.gamma * o


class ChannelAttention2d(nn.Module):
    r"""DANet's channel attention: every channel attends to every other, by softmax.

        y_c = x_c + gamma sum_d a_cd x_d,   a_c = softmax_d(s x_c . x_d)

    Fu et al., "Dual Attention Network for Scene Segmentation", CVPR 2019, section 3.3, prints
    s = 1. The published code computes softmax(max_d E_cd - E_cd), which is s = -1, and so do those
    of MANet and MAResU-Net: their weights need it. Products and softmax are in float32 for half
    precision, where sums over the positions overflow, and under autocast.

    Args:
        sign: "code" (s = -1, the default) or "paper" (s = 1).
        device, dtype: of the parameters, as `torch.nn`'s modules have them.

    Shape:
        x [B, C, H, W] -> y [B, C, H, W] in the dtype of x, any C, H, W. Parameter: gamma [1], which
        starts as zero.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.nn import ChannelAttention2d
        >>> ChannelAttention2d()(torch.randn(1, 64, 12, 20)).shape
        torch.Size([1, 64, 12, 20])
    """

    def __init__(
        self, sign: str = "code", device: Any = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        _check.require_choice("sign", sign, tuple(SIGNS))
        self.sign = sign
        self.gamma = nn.Parameter(torch.zeros(1, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> y [B, C, H, W]."""
        require_map(x)
        with without_autocast(x):
            channels = wide(x.flatten(2))  # [B, C, N]
            energy = channels @ channels.mT  # [B, C, C]
            o = (SIGNS[self.sign] * energy).softmax(-1) @ channels  # [B, C, N]
        return x + (self.gamma * o.unflatten(2, x.shape[2:])).to(x.dtype)

    def extra_repr(self) -> str:
        """The arguments."""
        return f"sign={self.sign!r}"


class NonLocal2d(nn.Module):
    r"""The non-local block.

        y_n = x_n + W_z sum_j f(x_n, x_j) g_j        theta, phi, g = 1 x 1 convolutions of x
        f = softmax_j(s theta_n . phi_j)             "embedded_gaussian"
        f = theta_n . phi_j / M                      "dot_product", M positions j

    Wang et al., "Non-local Neural Networks", CVPR 2018, sections 3.2 and 3.3. The dot product is
    computed in time proportional to the positions: theta^T (sum_j phi_j g_j^T) / M. The block
    starts as the identity: W_z ends in a batch normalisation whose scale is zero (section 4.1), or
    is zero itself.

    Args:
        channels: C of x.
        inner_channels: C' of theta, phi and g; None means channels // 2.
        mode: "embedded_gaussian" (the default) or "dot_product".
        use_scale: True (the default): s = 1 / sqrt(C'), as the released code and mmcv have it;
            False: s = 1, as the paper prints it. Of the embedded Gaussian only.
        sub_sample: max-pool phi and g by 2 x 2, a quarter of the work (section 3.3); False is the
            default.
        batch_norm: after W_z, which then has no bias; True is the default.
        device, dtype: of the parameters, as `torch.nn`'s modules have them.

    Shape:
        x [B, C, H, W] -> y [B, C, H, W], any H and W from 1 (from 2 with `sub_sample`). State as
        published by mmcv and mmseg: theta.conv, phi.conv, g.conv (weight and bias), conv_out.conv,
        conv_out.bn; with `sub_sample` g.0.conv and phi.0.conv.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.

    Example:
        >>> import torch
        >>> from segfast.nn import NonLocal2d
        >>> block = NonLocal2d(64, sub_sample=True)
        >>> x = torch.randn(2, 64, 13, 21)
        >>> torch.equal(block(x), x)  # until its batch normalisation has learned a scale
        True
    """

    def __init__(
        self,
        channels: int,
        inner_channels: int | None = None,
        mode: str = "embedded_gaussian",
        use_scale: bool = True,
        sub_sample: bool = False,
        batch_norm: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        factory: Any = {"device": device, "dtype": dtype}
        channels = _check.require_count("channels", channels, 1)
        if inner_channels is None:
            inner_channels = max(channels // 2, 1)
        inner_channels = _check.require_count("inner_channels", inner_channels, 1)
        _check.require_choice("mode", mode, MODES)
        for name, flag in (
            ("use_scale", use_scale), ("sub_sample", sub_sample), ("batch_norm", batch_norm)
        ):  # fmt: skip
            _check.require_bool(name, flag)
        self.channels, self.inner_channels = channels, inner_channels
        self.mode, self.use_scale = mode, use_scale
        self.sub_sample, self.batch_norm = sub_sample, batch_norm
        self.theta = self._projection(False, factory)
        self.phi = self._projection(sub_sample, factory)
        self.g = self._projection(sub_sample, factory)
        last = nn.Conv2d(inner_channels, channels, 1, bias=not batch_norm, **factory)
        self.conv_out = nn.Sequential(OrderedDict(conv=last))
        if batch_norm:
            self.conv_out.add_module("bn", nn.BatchNorm2d(channels, **factory))
        for p in self.conv_out[-1].parameters():
            nn.init.zeros_(p)

    def _projection(self, pooled: bool, factory: Any) -> nn.Module:
        conv = nn.Conv2d(self.channels, self.inner_channels, 1, **factory)
        nn.init.normal_(conv.weight, std=0.01)  # as released
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        named = nn.Sequential(OrderedDict(conv=conv))
        return nn.Sequential(named, MaxPool2d(2)) if pooled else named

    def forward(self, x: Tensor) -> Tensor:
        """x [B, C, H, W] -> y [B, C, H, W]."""
        require_map(x, self.channels, getattr(self.conv_out[0], "weight", None))
        _require_pixels(x, 2 if self.sub_sample else 1)
        theta, phi, g = self.theta(x), self.phi(x), self.g(x)  # [B, C', H, W], then twice M
        if self.mode == "dot_product":
            o = multiply(theta, phi, g)
        else:
            o = attend(theta, phi, g, self.inner_channels**-0.5 if self.use_scale else 1.0)
        return x + self.conv_out(o)

    def extra_repr(self) -> str:
        """The arguments."""
        names = ("inner_channels", "mode", "use_scale", "sub_sample", "batch_norm")
        return f"{self.channels}, " + ", ".join(f"{n}={getattr(self, n)!r}" for n in names)


# ------------------------------------------------------------------------------ of maps


def _require_pixels(x: Tensor, least: int) -> None:
    # Sizes one by one: `min` would tie H to W in exported graphs.
    if x.shape[2] < least or x.shape[3] < least:
        raise ValueError(f"x must be at least {least} x {least} pixels, got {_check.describe(x)}")


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """sum_j softmax_j(scale q_n . k_j) v_j.

    q [B, D, H, W], k [B, D, H', W'], v [B, E, H', W'] -> [B, E, H, W].
    """
    # Fused kernels ask for channels next to each other: [B, 1, positions, channels].
    tokens = [x.flatten(2).mT.unsqueeze(1).contiguous() for x in (q, k, v)]
    learns = torch.is_grad_enabled() and any(x.requires_grad for x in tokens)
    if q.device.type == "cpu" and not learns:
        # That of the CPU wants D = E, too. It saves N x M numbers at about the same speed, but its
        # gradient takes 1.3 times as long in float32, 20 times in bfloat16: to learn, none pads.
        width = max(q.shape[1], v.shape[1])
        tokens = [F.pad(x, (0, width - x.shape[-1])) for x in tokens]
    queries, keys, values = tokens
    o = F.scaled_dot_product_attention(queries, keys, values, scale=scale)
    return o[:, 0, :, : v.shape[1]].mT.unflatten(2, q.shape[2:])


def multiply(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """sum_j (q_n . k_j) v_j / M = (sum_j v_j k_j^T / M) q_n. Shapes as of `attend`."""
    with without_autocast(q):
        keys, values = wide(k.flatten(2)), wide(v.flatten(2))
        mean = (values @ keys.mT / keys.shape[2]).to(q.dtype)  # [B, E, D]
        return (mean @ q.flatten(2)).unflatten(2, q.shape[2:])
