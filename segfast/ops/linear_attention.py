r"""Attention in time proportional to the positions: softplus, first-order Taylor, the general form.

    o_n = sum_j sim(q_n, k_j) v_j / sum_j sim(q_n, k_j),   sim(q, k) = phi(q) . phi(k) >= 0

Since sim is a product, S = sum_j phi(k_j) [v_j, 1]^T serves every query: no N x M matrix is formed,
no phi is written to memory, and sums are in float32 whatever the inputs are.

Katharopoulos et al., "Transformers are RNNs", ICML 2020, section 3.2 (the general form, elu + 1);
Li et al., "Multiattention Network for Semantic Segmentation of Fine-Resolution Remote Sensing
Images", TGRS 2021, section III-A (softplus); Li et al., "Multistage Attention ResU-Net", GRSL 2021,
section II-A (first-order Taylor). Derivations: kernels/linear_attention/README.md.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from segfast._native import native
from segfast.kernels.linear_attention.reference import FEATURE_MAPS
from segfast.ops import _check, _linear_attention_cuda
from segfast.ops._autocast import autocast, autocast_dtype, without_autocast
from segfast.ops._function import call, compiled
from segfast.ops._linear_attention_grad import Attend, Read, State
from segfast.ops._linear_attention_op import rows


def linear_attention(
    q: Tensor,  # [..., N, D]
    k: Tensor,  # [..., M, D]
    v: Tensor,  # [..., M, E]
    feature_map: str = "softplus",
    eps: float = 1e-6,
) -> Tensor:
    r"""Linear attention of N queries to M keys.

    .. math:: o_n = \frac{\phi(q_n)^T \sum_j \phi(k_j) v_j^T}
                         {\phi(q_n) \cdot (\sum_j \phi(k_j) + \epsilon)}

    and with ``"taylor"``, where :math:`\hat x = x / \max(|x|, 10^{-6})` (no gradient below),

    .. math:: o_n = \frac{\sum_j v_j + \hat q_n^T \sum_j \hat k_j v_j^T}
                         {\max(M + \hat q_n \cdot (\sum_j \hat k_j + \epsilon), \epsilon)}

    Args:
        q, k, v: [..., N, D], [..., M, D], [..., M, E] of one dtype, float32, float64, float16 or
            bfloat16; leading dimensions (batch, heads) are broadcast; any sizes, any strides.
            Fastest are views of convolutions' outputs, ``x.flatten(2).mT``: positions next to each
            other. Other strides are copied once.
        feature_map: "softplus" (the default); "taylor"; "relu"; "elu" (elu(x) + 1); "identity": q
            and k are features already, not negative.
        eps: added to every component of the sum of keys, as the published code does, 1e-6; >= 0.

    Returns:
        o [..., N, E] in the dtype of v; laid out in memory as v is. 0 / 0 is 0: a query whose
        features are all zero gives zero. Under autocast, inputs are cast first; sums stay in
        float32.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.
        NotImplementedError: in forward-mode differentiation.

    Example:
        >>> import torch, segfast
        >>> q, k = torch.randn(2, 1, 8, 64 * 48).mT, torch.randn(2, 1, 8, 64 * 48).mT
        >>> v = torch.randn(2, 1, 64, 64 * 48).mT
        >>> segfast.ops.linear_attention(q, k, v, "taylor").shape
        torch.Size([2, 1, 3072, 64])
    """
    index, eps = _options(feature_map, eps)
    lead = _require_tokens(q, k, v)
    dtype = autocast_dtype(q)
    queries, keys, values = (_maps(x, dtype, lead) for x in (q, k, v))  # [B, D | E, N | M]
    o, _ = call(Attend, queries, keys, values, index, eps)  # [B, E, N]
    o = o.mT if len(lead) == 1 else o.reshape(*lead, *o.shape[1:]).mT
    return o.contiguous() if v.stride(-1) == 1 and v.stride(-2) != 1 else o


def linear_attention2d(
    x: Tensor,  # [B, C, H, W]
    w_q: Tensor,  # [D, C]
    b_q: Tensor | None,  # [D]
    w_k: Tensor,  # [D, C]
    b_k: Tensor | None,  # [D]
    w_v: Tensor,  # [C, C]
    b_v: Tensor | None,  # [C]
    gamma: Tensor,  # [1]
    feature_map: str = "softplus",
    eps: float = 1e-6,
    *,
    residual: bool = True,
) -> Tensor:
    r"""The position-attention block of MANet and MAResU-Net in one piece.

    .. math:: y = x + \gamma \, \mathrm{attention}(W_q x + b_q, W_k x + b_k, W_v x + b_v)

    On maps of more than D positions the value projection is folded, so values are never formed:
    :math:`\sum_j \phi(k_j) v_j^T = (\sum_j \phi(k_j) x_j^T) W_v^T + (\sum_j \phi(k_j)) b_v^T`.
    On smaller ones they are less work than the sums' projection.

    Args:
        x: [B, C, H, W], float32, float64, float16 or bfloat16. A channels-last map
            is copied, and y is contiguous: positions next to each other are what the sums need.
        w_q, w_k: [D, C] or [D, C, 1, 1], the weights of 1 x 1 convolutions; b_q, b_k: [D] or None.
        w_v: [C, C] or [C, C, 1, 1]; b_v: [C] or None.
        gamma: one element. It, weights and biases are in the dtype of x (autocast casts all).
        feature_map, eps: see :func:`linear_attention`, with the same defaults.
        residual: True (the default), or False, which leaves x + away, as in ABCNet.

    Returns:
        y [B, C, H, W] in the dtype of x; under autocast only attention is computed in its dtype.

    Raises:
        TypeError, ValueError: an argument breaks its contract; the message names it.
        NotImplementedError: in forward-mode differentiation.

    Example:
        >>> import torch, segfast
        >>> x, w = torch.randn(1, 64, 30, 40), torch.randn(8, 64) / 8
        >>> w_v, gamma = torch.randn(64, 64) / 8, torch.ones(1)
        >>> segfast.ops.linear_attention2d(x, w, None, w, None, w_v, None, gamma).shape
        torch.Size([1, 64, 30, 40])
    """
    index, eps = _options(feature_map, eps)
    weights = {"w_q": w_q, "w_k": w_k, "w_v": w_v}
    biases = {"b_q": b_q, "b_k": b_k, "b_v": b_v}
    _require_block(x, weights, biases, gamma)
    _check.require_bool("residual", residual)
    w_q, w_k, w_v = (autocast(w).flatten(1) for w in weights.values())
    b_q, b_k, b_v = (None if b is None else autocast(b) for b in biases.values())
    tokens = rows(autocast(x).flatten(2))  # [B, C, N]
    features, positions = w_q.shape[0], tokens.shape[-1]
    folded = not isinstance(positions, int) or positions > features  # of any size: folded
    b_qk = None
    if b_q is not None or b_k is not None:
        zeros = w_q.new_zeros(features)
        b_qk = torch.cat([zeros if b is None else b for b in (b_q, b_k)])
    q, k = _project(tokens, torch.cat([w_q, w_k]), b_qk).split(features, 1)  # [B, D, N]
    v = tokens if folded else _project(tokens, w_v, b_v)  # [B, C, N]
    state = call(State, k, v, index)  # [B, R, C + 1]
    if folded:
        ones = state[..., -1:]
        state = torch.cat([_project_sums(state[..., :-1], w_v, b_v, ones), ones], -1)
    scale = gamma.reshape(1).to(state.dtype).expand(x.shape[0])
    fused = residual and tokens.dtype == x.dtype
    y = call(Read, q, state, scale, tokens if fused else None, index, eps)
    y = y.reshape(x.shape).to(x.dtype)
    return x + y if residual and not fused else y


def served_by() -> dict[str, str]:
    """Device -> the kernel that serves there."""
    module = native()
    cpu = "reference (PyTorch)"
    if module is not None and compiled("_linear_attention_state", "cpu"):
        cpu = f"linear_attention_cpu.cpp ({module.instruction_set()})"
    return {"cpu": cpu, "cuda": _linear_attention_cuda.served_by()}


def _project(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W tokens + b in the dtype of tokens: [B, C, N], [D, C], [D] -> [B, D, N]."""
    dtype = tokens.dtype
    if tokens.device.type == "cpu" and dtype.itemsize < 4:  # PyTorch's products of halves are slow
        with without_autocast(tokens):
            projected = _multiply(tokens.float(), weight.float(), None).to(dtype)
        return projected if bias is None else projected + bias.to(dtype)[:, None]
    return _multiply(tokens, weight.to(dtype), None if bias is None else bias.to(dtype))


def _project_sums(sums: Tensor, weight: Tensor, bias: Tensor | None, ones: Tensor) -> Tensor:
    """sums W^T + ones b^T in the precision of sums, under autocast, too."""
    with without_autocast(sums):
        values = _multiply(sums.mT.contiguous(), weight.to(sums.dtype), None).mT
        return values if bias is None else values + ones * bias.to(sums.dtype)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """W x + b: [B, C, N], [D, C], [D] -> [B, D, N], as the convolution that its peers are.

    PyTorch's products of matrices take twice as long on AMD's processors with AVX-512.
    """
    if isinstance(x.shape[-1], int) and x.shape[-1] == 0:  # which convolutions refuse
        return weight @ x if bias is None else weight @ x + bias[:, None]
    return rows(F.conv2d(x[..., None], weight[..., None, None], bias)[..., 0])


def _options(feature_map: Any, eps: Any) -> tuple[int, float]:
    _check.require_choice("feature_map", feature_map, FEATURE_MAPS)
    return FEATURE_MAPS.index(feature_map), _check.not_negative("eps", eps)


def _require_like(first: str, like: Tensor, name: str, x: Tensor) -> None:
    """x is where `like` is, and in its dtype, if only under autocast."""
    _check.require_dtype(name, x)
    if x.device != like.device:
        raise ValueError(f"{name} is on {x.device}, expected {like.device}")
    if x.dtype != like.dtype and autocast_dtype(x) != autocast_dtype(like):
        raise TypeError(f"{name} must have the dtype of {first}, {like.dtype}; got {x.dtype}")


def _maps(x: Tensor, dtype: torch.dtype, lead: torch.Size) -> Tensor:
    """x [..., N, C] -> [B, C, N], positions next to each other; B = all of `lead`."""
    x = x.mT if x.dtype == dtype else x.mT.to(dtype)
    if x.shape[:-2] != lead:
        x = x.expand(*lead, *x.shape[-2:])
    return rows(x if len(lead) == 1 else x.reshape(math.prod(lead), *x.shape[-2:]))


def _require_tokens(q: Any, k: Any, v: Any) -> torch.Size:
    """Checks; returns the leading dimensions, broadcast."""
    shapes = {"q": "[..., N, D]", "k": "[..., M, D]", "v": "[..., M, E]"}
    for (name, shape), x in zip(shapes.items(), (q, k, v), strict=True):
        _check.require_floating(name, x, shape)
        if x.dim() < 2 or x.shape[-1] < 1:
            raise ValueError(f"{name} must be {shape} with channels, got {_check.describe(x)}")
        _require_like("q", q, name, x)
    if k.shape[-1] != q.shape[-1]:
        raise ValueError(f"k must have the channels of q, {q.shape[-1]}; got {_check.describe(k)}")
    if v.shape[-2] != k.shape[-2]:
        raise ValueError(
            f"v must have the positions of k, {k.shape[-2]}; got {_check.describe(v)} "
            "(maps [B, C, H, W] are passed as x.flatten(2).mT)"
        )
    leads = [x.shape[:-2] for x in (q, k, v)]
    if leads[0] == leads[1] == leads[2]:  # `broadcast_shapes` takes 15 us
        return leads[0]
    try:
        return torch.broadcast_shapes(*leads)
    except RuntimeError:
        raise ValueError(
            "leading dimensions of q, k and v must broadcast, got "
            f"{tuple(q.shape[:-2])}, {tuple(k.shape[:-2])} and {tuple(v.shape[:-2])}"
        ) from None


def _require_block(x: Any, weights: dict[str, Any], biases: dict[str, Any], gamma: Any) -> None:
    _check.require_floating("x", x, "[B, C, H, W]")
    if x.dim() != 4 or x.shape[1] < 1:
        raise ValueError(f"x must be [B, C, H, W] with channels, got {_check.describe(x)}")
    _check.require_dtype("x", x)
    channels = x.shape[1]
    for name, w in weights.items():
        _check.require_floating(name, w, "[D, C]")
        _require_like("x", x, name, w)
        matrix = w.dim() in (2, 4) and w.shape[1] == channels  # sizes may be symbols: one by one
        if not matrix or w.shape[0] < 1 or w.numel() != w.shape[0] * channels:
            raise ValueError(
                f"{name} must be [D, {channels}] or [D, {channels}, 1, 1], got {_check.describe(w)}"
            )
    if weights["w_k"].shape[0] != weights["w_q"].shape[0]:
        raise ValueError(
            f"w_k must have the rows of w_q, {weights['w_q'].shape[0]}; "
            f"got {_check.describe(weights['w_k'])}"
        )
    if weights["w_v"].shape[0] != channels:
        raise ValueError(
            f"w_v must have {channels} rows, as x has channels; "
            f"got {_check.describe(weights['w_v'])}"
        )
    for name, b in biases.items():
        if b is None:
            continue
        size = weights["w" + name[1:]].shape[0]
        _check.require_floating(name, b, f"[{size}] or None")
        _require_like("x", x, name, b)
        if tuple(b.shape) != (size,):
            raise ValueError(f"{name} must be [{size}], got {_check.describe(b)}")
    _check.require_floating("gamma", gamma, "of one element")
    _require_like("x", x, "gamma", gamma)
    if gamma.numel() != 1:
        raise ValueError(f"gamma must have one element, got {_check.describe(gamma)}")
