"""The dense CRF operators on CUDA: whole batches by the lattice (`_dense_crf_cuda.py`).

With a `capacity` nothing here waits for the device, so that a call can be recorded in a CUDA
graph. Without one it waits for the number of a lattice's vertices, and to see whether weights are
zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segfast._native import native
from segfast.ops._dense_crf_cuda import (
    MAX_LABELS,
    ConvMessage,
    Engine,
    Lattice,
    LatticeMessage,
    Message,
    build,
    is_recording,
    row_of,
    update,
)
from segfast.ops._dense_crf_terms import require_finite_quotients


def available() -> bool:
    """Whether the CUDA kernels were compiled."""
    module = native()
    return module is not None and bool(module.build_info()["cuda_architectures"])


def serves(values: Tensor, method: str) -> bool:
    """Whether CUDA kernels serve `values` [B, L, ...]."""
    return (
        values.is_cuda
        and method == "lattice"
        and values.numel() > 0
        and values.shape[1] <= MAX_LABELS[_real(values)]
        and available()
    )


def _real(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def require_capacity(capacity: int | None) -> None:
    """Refuses to wait while a CUDA graph is recorded."""
    if capacity is None and is_recording():
        raise ValueError(
            "capacity must be given while a CUDA graph is recorded: how many vertices the lattice "
            "has is not known then"
        )


def gaussian_filter(
    values: Tensor, features: Tensor, normalization: str, capacity: int | None = None,
    transpose: bool = False, ops: Any = None,
) -> Tensor:  # fmt: skip
    """K~ values, or K~^T values: [B, C, N] and [B, F, N] -> [B, C, N], like `values`."""
    require_capacity(capacity)
    ops = torch.ops.segfast if ops is None else ops
    v, f = (x.to(_real(values)).contiguous() for x in (values, features))
    images, channels, pixels = v.shape
    message = LatticeMessage(build(f, capacity, ops), row_of(channels, v.dtype), normalization, ops)
    rows = v.new_empty(images * pixels, row_of(channels, v.dtype))
    update(ops, [], logits=v, belief=rows, normalize=False)
    message.send(rows, transpose)
    y = torch.empty_like(v)
    update(ops, [(message, v.new_ones(1))], scores=y, transpose=transpose)
    return y.to(values.dtype)


@dataclass(frozen=True)
class Model:
    """What refines the logits.

    Attributes:
        mixings: -mu W of the spatial and of the bilateral kernel, [], [L] or [L, L], any dtype.
        spatial_sigma, bilateral_sigma: (y, x), pixels.
        color_sigma: one, or one per channel.
        spatial: "conv" or "lattice".
        capacity: vertices that each lattice has room for, of all images; None: as many as needed.
    """

    image: Tensor  # [B, C, H, W]
    mixings: Sequence[Tensor]
    spatial_sigma: Sequence[float]
    bilateral_sigma: Sequence[float]
    color_sigma: Sequence[float]
    normalization: str
    spatial: str
    capacity: int | None = None


def _prepare(
    logits: Tensor, model: Model, iterations: int, wanted: Sequence[bool], ops: Any
) -> tuple[Engine, list[int]]:
    """The engine, and the numbers (0 spatial, 1 bilateral) of the kernels that it has.

    A mixing of zeros drops its kernel unless its gradient is wanted.
    """
    dtype = _real(logits)
    x = logits.to(dtype).flatten(2).contiguous()  # [B, L, N]
    if iterations == 0:
        return Engine(x, [], [], ops), []
    mixings = [m.to(dtype) for m in model.mixings]
    drops = model.capacity is None  # to know costs a wait
    present = torch.stack([m.count_nonzero() for m in mixings]) if drops else None

    def is_there(i: int) -> bool:
        return wanted[i] or present is None or bool(present[i])

    row = row_of(x.shape[1], dtype)
    shape = (logits.shape[2], logits.shape[3])
    messages: dict[int, Message] = {}
    if bilateral := _bilateral(model, dtype, lambda: is_there(1), ops):
        messages[1] = LatticeMessage(bilateral, row, model.normalization, ops)
    if is_there(0):
        messages[0] = _spatial(x, shape, model, row, ops)
    kept = sorted(messages)
    engine = Engine(x, [messages[i] for i in kept], [mixings[i] for i in kept], ops)
    return engine, kept


def _bilateral(
    model: Model, dtype: torch.dtype, is_there: Callable[[], bool], ops: Any
) -> Lattice | None:
    """The lattice; None where the kernel is dropped. Built first: the wait is over afterwards."""
    image = model.image.to(dtype).contiguous()
    y, x = model.bilateral_sigma
    colors = [*model.color_sigma] * (image.shape[1] if len(model.color_sigma) == 1 else 1)
    try:
        lattice = build(ops._crf_features(image, [x, y, *colors]), model.capacity, ops)
    except ValueError:
        if not is_there():
            return None
        raise
    if not is_there():
        return None
    if not lattice.finite:
        require_finite_quotients(image, model.bilateral_sigma, model.color_sigma)
    return lattice


def _spatial(x: Tensor, shape: tuple[int, int], model: Model, row: int, ops: Any) -> Message:
    if model.spatial == "conv":
        return ConvMessage(x, shape, model.spatial_sigma, row, model.normalization, ops)
    grid = x.new_empty(len(x), 0, *shape)  # an image without channels
    sigma_y, sigma_x = model.spatial_sigma
    lattice = build(ops._crf_features(grid, [sigma_x, sigma_y]), model.capacity, ops)
    return LatticeMessage(lattice, row, model.normalization, ops)


def mean_field(
    logits: Tensor, model: Model, iterations: int, keep_steps: bool = False,
    softmax: bool = False, ops: Any = None,
) -> Tensor:  # fmt: skip
    """logits [B, L, H, W] -> scores [S, B, L, H, W]: see `Engine.run`."""
    ops = torch.ops.segfast if ops is None else ops
    require_capacity(model.capacity)
    engine, _ = _prepare(logits, model, iterations, (False, False), ops)
    out = engine.run(iterations, keep_steps, softmax)
    return out.unflatten(3, logits.shape[2:]).to(logits.dtype)


def mean_field_gradients(
    grad: Tensor, logits: Tensor, model: Model, iterations: int, softmax: bool,
    wanted: Sequence[bool], ops: Any = None,
) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
    """From dL/d(what `mean_field` gave), S steps, to the logits and to the `wanted` mixings.

    Runs forward again; meanwhile beliefs of all iterations are kept: T B N L numbers.
    """
    ops = torch.ops.segfast if ops is None else ops
    require_capacity(model.capacity)
    engine, kept = _prepare(logits, model, iterations, wanted, ops)
    upstream = grad.to(engine.logits.dtype).flatten(3).contiguous()  # [S, B, L, N]
    total, of_kept = engine.gradients(upstream, iterations, softmax, [wanted[i] for i in kept])
    found: list[Tensor | None] = [
        torch.zeros_like(m) if w else None for m, w in zip(model.mixings, wanted, strict=True)
    ]
    for i, part in zip(kept, of_kept, strict=True):
        if part is not None:
            found[i] = part.to(model.mixings[i].dtype)
    return total.unflatten(2, logits.shape[2:]).to(logits.dtype), found
