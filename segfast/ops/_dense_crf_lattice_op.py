"""The dense CRF operators on CUDA: whole batches by the lattice (`_dense_crf_lattice_cuda.py`).

With a `capacity` nothing here waits for the device, so that a call can be recorded in a CUDA
graph. Without one it waits once for each lattice, for the number of its vertices, and sees then
whether weights are zero and what there is to warn about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from segfast._native import native
from segfast.ops._dense_crf_lattice_cuda import (
    MAX_LABELS,
    BatchEngine,
    ConvMessage,
    LatticeMessage,
    Message,
    build,
    row_of,
    update,
)
from segfast.ops._dense_crf_look import (
    Look,
    Seen,
    drop_undefined,
    is_recording,
    nan_where_undefined,
)
from segfast.ops._dense_crf_terms import compute_dtype, require_finite_quotients


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
        and values.shape[1] <= MAX_LABELS[compute_dtype(values.dtype)]
        and available()
    )


def require_no_wait(capacity: int | None) -> None:
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
    require_no_wait(capacity)
    ops = torch.ops.segfast if ops is None else ops
    v, f = (x.to(compute_dtype(values.dtype)).contiguous() for x in (values, features))
    images, channels, pixels = v.shape
    lattice, _ = build(f, capacity, ops)
    message = LatticeMessage(lattice, row_of(channels, v.dtype), normalization, ops)
    rows = v.new_empty(images * pixels, row_of(channels, v.dtype))
    update(ops, [], logits=v, belief=rows, normalize=False)
    message.send(rows, transpose)
    y = torch.empty_like(v)
    update(ops, [(message, v.new_ones(1))], scores=y, transpose=transpose)
    return y.to(values.dtype)


@dataclass(frozen=True)
class BatchModel:
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


@dataclass(frozen=True)
class _Prepared:
    """The engine, the numbers (0 spatial, 1 bilateral) of the kernels it has, what was seen.

    undefined: images whose bilateral kernel has weight 0 and no place for a pixel, [B].
    """

    engine: BatchEngine
    kernels: list[int]
    seen: Seen | None
    undefined: Tensor


def _prepare(
    logits: Tensor, model: BatchModel, iterations: int, learned: Sequence[bool], ops: Any
) -> _Prepared:
    """A mixing of zeros drops its kernel unless it is learned or a `capacity` is given."""
    dtype = compute_dtype(logits.dtype)
    x = logits.to(dtype).flatten(2).contiguous()  # [B, L, N]
    look = None
    if model.capacity is None:
        look = Look(logits, model.image, model.mixings, None)
    if iterations == 0:
        seen = None if look is None else look.read()
        return _Prepared(BatchEngine(x, [], [], ops), [], seen, x.new_zeros(1, dtype=torch.bool))
    mixings = [m.to(dtype) for m in model.mixings]
    image = model.image.to(dtype).contiguous()
    places = ops._crf_features(image, _sigmas(model))
    features, undefined = places, x.new_zeros(1, dtype=torch.bool)
    if model.capacity is not None or learned[1]:  # else a kernel without weight is not there
        features, undefined = drop_undefined(places, mixings[1])
    try:  # built first: the wait is over afterwards
        lattice, seen = build(features, model.capacity, ops, look)
    except ValueError:
        seen = None if look is None else look.read()
        if seen is None or seen.present[1] or learned[1]:
            raise
        lattice = None
    there = [seen is None or seen.present[i] or learned[i] for i in range(2)]
    row = row_of(x.shape[1], dtype)
    shape = (logits.shape[2], logits.shape[3])
    messages: dict[int, Message] = {}
    if there[0]:
        messages[0] = _spatial(x, shape, model, row, ops)
    if there[1] and lattice is not None:
        if not lattice.finite:
            require_finite_quotients(model.image, model.bilateral_sigma, model.color_sigma, dtype)
        messages[1] = LatticeMessage(lattice, row, model.normalization, ops)
    engine = BatchEngine(x, list(messages.values()), [mixings[i] for i in messages], ops)
    return _Prepared(engine, list(messages), seen, undefined)


def _sigmas(model: BatchModel) -> list[float]:
    """x, y, and one for each channel."""
    y, x = model.bilateral_sigma
    return [x, y, *model.color_sigma] + [*model.color_sigma] * (
        model.image.shape[1] - 1 if len(model.color_sigma) == 1 else 0
    )


def _spatial(x: Tensor, shape: tuple[int, int], model: BatchModel, row: int, ops: Any) -> Message:
    if model.spatial == "conv":
        return ConvMessage(x, shape, model.spatial_sigma, row, model.normalization, ops)
    grid = x.new_empty(len(x), 0, *shape)  # an image without channels
    sigma_y, sigma_x = model.spatial_sigma
    lattice, _ = build(ops._crf_features(grid, [sigma_x, sigma_y]), model.capacity, ops)
    return LatticeMessage(lattice, row, model.normalization, ops)


def mean_field(
    logits: Tensor, model: BatchModel, iterations: int, keep_steps: bool = False,
    softmax: bool = False, ops: Any = None,
) -> Tensor:  # fmt: skip
    """logits [B, L, H, W] -> scores [S, B, L, H, W]: see `BatchEngine.run`."""
    ops = torch.ops.segfast if ops is None else ops
    require_no_wait(model.capacity)
    prepared = _prepare(logits, model, iterations, (False, False), ops)
    if prepared.seen is not None:
        prepared.seen.warn(model.color_sigma)
    out = prepared.engine.run(iterations, keep_steps, softmax)
    return out.unflatten(3, logits.shape[2:]).to(logits.dtype)


def mean_field_gradients(
    grad: Tensor, logits: Tensor, model: BatchModel, iterations: int, softmax: bool,
    learned: Sequence[bool], ops: Any = None,
) -> tuple[Tensor, list[Tensor | None]]:  # fmt: skip
    """From dL/d(what `mean_field` gave), S steps, to the logits and to the `learned` mixings.

    Runs forward again; meanwhile beliefs of all iterations are kept: T B N L numbers.
    """
    ops = torch.ops.segfast if ops is None else ops
    require_no_wait(model.capacity)
    prepared = _prepare(logits, model, iterations, learned, ops)
    engine, kept = prepared.engine, prepared.kernels
    upstream = grad.to(engine.logits.dtype).flatten(3).contiguous()  # [S, B, L, N]
    total, of_kept = engine.gradients(upstream, iterations, softmax, [learned[i] for i in kept])
    found: list[Tensor | None] = [
        torch.zeros_like(m) if w else None for m, w in zip(model.mixings, learned, strict=True)
    ]
    for i, part in zip(kept, of_kept, strict=True):
        if part is not None:
            part = nan_where_undefined(prepared.undefined, part) if i == 1 else part
            found[i] = part.to(model.mixings[i].dtype)
    return total.unflatten(2, logits.shape[2:]).to(logits.dtype), found
