"""Launches the Triton kernels of linear attention: allocation, grids, fixed-order sums of splits.

Imported by the first call on a GPU. Tensors are as _linear_attention_op.py says. Nothing here looks
at values, so that CUDA graphs can hold it; memory is PyTorch's.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from segfast.kernels.linear_attention import reference, triton_configurations
from segfast.kernels.linear_attention.triton_configurations import Configuration
from segfast.kernels.linear_attention.triton_read import read_backward_kernel, read_kernel
from segfast.kernels.linear_attention.triton_state import state_kernel, sum_splits_kernel
from segfast.ops._layout import dtype_name
from segfast.ops._triton import on_device

SUM_BLOCK = 256
TAYLOR = reference.FEATURE_MAPS.index("taylor")
# The interpreter's bfloat16 is wrong: it multiplies the rounded numbers in float32.
DOT_DTYPES = {
    "bfloat16": tl.float32 if triton.knobs.runtime.interpret else tl.bfloat16,
    "tf32": tl.float32,
    "float32": tl.float32,
}


def configuration(kernel: str, x: Tensor, rows: int) -> Configuration | None:
    capability = torch.cuda.get_device_capability(x.device) if x.is_cuda else (9, 0)
    dtype = dtype_name(x.dtype)
    return triton_configurations.choose(kernel, dtype, rows, capability)


def _options(chosen: Configuration, feature_map: int, *maps: Tensor) -> dict[str, Any]:
    """What every kernel takes by name."""
    reach = max(x.shape[1] * max(x.stride(1), x.shape[2]) for x in maps)
    return {
        "FEATURES": feature_map,
        "INDEX": tl.int32 if reach < 2**31 else tl.int64,
        "DOT": chosen.dot,
        "DOT_DTYPE": DOT_DTYPES[chosen.dot],
        "BLOCK_R": chosen.block_r,
        "BLOCK_E": chosen.block_e,
        "BLOCK_N": chosen.block_n,
        "num_warps": chosen.num_warps,
        "num_stages": chosen.num_stages,
    }


def _strides(x: Tensor) -> tuple[int, int]:
    return x.stride(0), x.stride(1)


def _sum_splits(
    partial: Tensor,  # [B, splits, size]
    out: Tensor,  # [B, rows, columns]
    gamma: Tensor | None = None,
    last: Tensor | None = None,
) -> None:
    batch, splits, size = partial.shape
    blocks = triton.cdiv(size, SUM_BLOCK)
    sum_splits_kernel[(batch * blocks,)](
        partial,
        gamma,
        out,
        last,
        size,
        splits,
        out.shape[2],
        0 if gamma is None else gamma.stride(0),
        out.stride(0),
        out.stride(1),
        blocks,
        BLOCK=SUM_BLOCK,
    )


def _split_state(
    k: Tensor, v: Tensor, state: Tensor | None, feature_map: int, eps: float, chosen: Configuration
) -> Tensor:  # [B, splits, R, E + 1], for queries [B, splits, R, E]
    (batch, channels, positions), values = k.shape, v.shape[1]
    rows = channels + (feature_map == TAYLOR)
    width = values + (state is None)
    e_blocks = triton.cdiv(values, chosen.block_e)
    span, splits = triton_configurations.splits(
        chosen, positions, batch * e_blocks, triton_configurations.STATE_ROWS * rows
    )
    partial = k.new_empty((batch, splits, rows, width), dtype=torch.float32)
    state_kernel[(e_blocks * splits * batch,)](
        k,
        v,
        state,
        partial,
        channels,
        values,
        positions,
        rows,
        *_strides(k),
        *_strides(v),
        width,
        span,
        splits,
        e_blocks,
        eps,
        **_options(chosen, feature_map, k, v),
    )
    return partial


def state(k: Tensor, v: Tensor, feature_map: int, chosen: Configuration) -> Tensor:
    with on_device(k):
        partial = _split_state(k, v, None, feature_map, 0.0, chosen)
        if partial.shape[1] == 1:
            return partial[:, 0]
        out = torch.empty_like(partial[:, 0])
        _sum_splits(partial.flatten(2), out)
    return out


def state_backward(
    grad: Tensor, k: Tensor, v: Tensor, feature_map: int, chosen: Configuration
) -> tuple[Tensor, Tensor]:
    of_values = configuration("grad_v", k, grad.shape[1])
    assert of_values is not None  # every kernel serves the same shapes
    grad = grad.contiguous()
    with on_device(k):
        grad_k, _ = _through_state(v, k, grad, None, feature_map, 0.0, chosen, keys=True)
    grad_v = read(k, grad, None, None, feature_map, 0.0, of_values, keys=True)
    return grad_k, grad_v


def read(
    q: Tensor,
    state: Tensor,
    gamma: Tensor | None,
    residual: Tensor | None,
    feature_map: int,
    eps: float,
    chosen: Configuration,
    keys: bool = False,
) -> Tensor:
    state = state.contiguous()
    (batch, channels, positions), values = q.shape, state.shape[2] - 1
    o = q.new_empty((batch, values, positions))
    e_blocks = triton.cdiv(values, chosen.block_e)
    span, splits = triton_configurations.splits(chosen, positions, batch * e_blocks)
    maps = (q, o) if residual is None else (q, o, residual)
    with on_device(q):
        read_kernel[(e_blocks * splits * batch,)](
            q,
            state,
            gamma,
            residual,
            o,
            channels,
            values,
            positions,
            state.shape[1],
            *_strides(q),
            *((0, 0) if residual is None else _strides(residual)),
            0 if gamma is None else gamma.stride(0),
            span,
            splits,
            e_blocks,
            eps,
            KEYS=keys,
            **_options(chosen, feature_map, *maps),
        )
    return o


def read_backward(
    grad: Tensor,
    q: Tensor,
    state: Tensor,
    gamma: Tensor | None,
    feature_map: int,
    eps: float,
    chosen: Configuration,
) -> tuple[Tensor, Tensor, Tensor]:
    of_state = configuration("grad_state", q, state.shape[1])
    assert of_state is not None  # every kernel serves the same shapes
    state = state.contiguous()
    grad_state, grad_gamma = torch.empty_like(state), state.new_empty(q.shape[:1])
    with on_device(q):
        grad_q, partial = _through_state(grad, q, state, gamma, feature_map, eps, chosen)
        _sum_splits(partial, grad_state[..., -1:], gamma, grad_gamma)
        partial = _split_state(q, grad, state, feature_map, eps, of_state)
        _sum_splits(partial.flatten(2), grad_state[..., :-1], gamma)
    return grad_q, grad_state, grad_gamma


def _through_state(
    grad: Tensor,
    q: Tensor,
    state: Tensor,
    gamma: Tensor | None,
    feature_map: int,
    eps: float,
    chosen: Configuration,
    keys: bool = False,
) -> tuple[Tensor, Tensor]:  # grad_q, [B, splits, R + 1] (keys: of no use)
    (batch, channels, positions), values = q.shape, grad.shape[1]
    rows = state.shape[1]
    span, splits = triton_configurations.splits(chosen, positions, batch)
    grad_q = q.new_empty(q.shape)
    partial = state.new_empty((batch, 0 if keys else splits, rows + 1))
    read_backward_kernel[(splits * batch,)](
        grad,
        q,
        state,
        gamma,
        grad_q,
        partial,
        channels,
        values,
        positions,
        rows,
        *_strides(grad),
        *_strides(q),
        0 if gamma is None else gamma.stride(0),
        span,
        splits,
        eps,
        KEYS=keys,
        **_options(chosen, feature_map, grad, q),
    )
    return grad_q, partial
