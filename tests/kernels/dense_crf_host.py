"""What csrc/cuda/dense_crf.cpp registers, on the processor: the lattice's launchers run on it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

import host_cuda
from segfast.ops._dense_crf_lattice_cuda import FINITE, TILE

DTYPE = {torch.float32: 0, torch.float64: 1}
KEY_PLAN = 528  # sizeof(KeyPlan)
RANGE_PIXELS = 4096


def _ceil(a: int, b: int) -> int:
    return -(-a // b)


def _null(x: Tensor) -> Tensor | None:
    return x if x.numel() else None


class Host:
    """segfast::_crf_*, run one way; what is allocated holds poison."""

    def __init__(self, run: host_cuda.Run = host_cuda.RUNS[0]) -> None:
        self.program, self.run_as = host_cuda.operator("dense_crf"), run

    def _launch(self, name: str, *arguments: Any) -> None:
        assert self.program(name, *arguments, run=self.run_as, timeout=600) == 0, name

    @staticmethod
    def _empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        dtype = dtype or like.dtype
        poison = float("nan") if dtype.is_floating_point else 99 if dtype == torch.uint8 else -77777
        return torch.full(shape, poison, dtype=dtype)

    @staticmethod
    def _size(images: int, pixels: int, dims: int, words: int, dtype: torch.dtype) -> bytes:
        return struct.pack("qqiii4x", images, pixels, dims, words, DTYPE[dtype])

    def _crf_features(self, image: Tensor, sigma: Sequence[float]) -> Tensor:
        images, channels, height, width = image.shape
        features = self._empty(image, images, channels + 2, height * width)
        size = struct.pack("qqqii", images, height, width, channels, DTYPE[image.dtype])
        size += struct.pack("32d", *sigma, *[0.0] * (32 - len(sigma)))
        self._launch("features", size, image, features)
        return features

    def _crf_embed(self, features: Tensor, words: int) -> list[Tensor]:
        images, dims, pixels = features.shape
        size = self._size(images, pixels, dims, words, features.dtype)
        ranges = self._empty(features, images * dims * _ceil(pixels, RANGE_PIXELS) * 2)
        plan = self._empty(features, KEY_PLAN, dtype=torch.uint8)
        state = self._empty(features, FINITE + images, dtype=torch.int64)
        points, corners = images * pixels, dims + 1
        keys = self._empty(features, words, points * corners, dtype=torch.int64)
        weight = self._empty(features, points, corners)
        self._launch("plan", size, features, ranges, plan, state)
        self._launch("embed", size, features, plan, state, keys, weight)
        return [keys, weight, plan, state]

    def _crf_number(self, keys: Tensor, state: Tensor, dims: int, capacity: int) -> list[Tensor]:
        images = len(state) - FINITE
        entries = keys.shape[1] // images
        tiles = images * _ceil(entries, TILE)
        heads = self._empty(keys, tiles)
        base = self._empty(keys, tiles, dtype=torch.int32)
        size = self._size(images, entries // (dims + 1), dims, len(keys), torch.float32)
        self._launch("number", size, capacity, keys, heads, base, state)
        return [heads, base]

    def _crf_link(
        self, keys: Tensor, order: Tensor, tiles: Sequence[Tensor], weight: Tensor, plan: Tensor,
        state: Tensor, capacity: int,
    ) -> list[Tensor]:  # fmt: skip
        (points, corners), images = weight.shape, len(state) - FINITE
        size = self._size(images, points // images, corners - 1, len(keys), weight.dtype)
        i32 = {"dtype": torch.int32}
        vertex_keys = self._empty(keys, len(keys), capacity)
        vertex, pixel = (
            self._empty(keys, points, corners, **i32),
            self._empty(keys, points * corners, **i32),
        )
        list_weight = self._empty(weight, points * corners)
        neighbours = self._empty(keys, corners, 2, capacity, **i32)
        self._launch(
            "link", size, capacity, keys, order, *tiles, weight, plan, state, vertex_keys, vertex,
            pixel, list_weight, neighbours,
        )  # fmt: skip
        return [vertex, pixel, list_weight, neighbours]

    def _crf_deliver(
        self, lattice: Sequence[Tensor], scale: Tensor, values: Tensor, partial: Tensor,
        tables: Tensor, reverse: bool,
    ) -> None:  # fmt: skip
        pixel, list_weight, neighbours, heads, base, state = lattice
        corners, _, capacity = neighbours.shape
        images = len(state) - FINITE
        size = self._size(images, len(values) // images, corners - 1, 1, values.dtype)
        row = values.shape[1]
        assert partial.shape == (2, len(heads), row)
        assert tables.shape == (2, capacity, row)
        self._launch(
            "deliver", size, capacity, row, reverse, state, heads, base, pixel, list_weight,
            _null(scale), neighbours, values, partial, tables,
        )  # fmt: skip

    def _crf_convolve(
        self, axes: Sequence[Tensor], values: Tensor, between: Tensor, out: Tensor
    ) -> None:
        images, height, width, row = out.shape
        radii = [len(taps) - 1 for taps in axes[:2]]
        size = struct.pack("qqqqqii", images, height, width, *radii, row, DTYPE[out.dtype])
        self._launch("convolve", size, *axes, values, between, out)

    @staticmethod
    def _terms(terms: Sequence[Tensor], gains: Sequence[float]) -> tuple[bytes, list[Any]]:
        each = [list(terms[i : i + 7]) for i in range(0, len(terms), 7)]
        corners, kinds, arrays = [0, 0], [0, 0], []
        for i, (vertex, weight, scale, rows, state, mixing, kept) in enumerate(each):
            corners[i] = vertex.shape[1] if vertex.numel() else 0
            kinds[i] = 2 if mixing.dim() == 2 else int(mixing.numel() > 1)
            arrays += map(_null, (vertex, weight, scale, rows, state, mixing, kept))
        gains = [*gains, *[0.0] * (2 - len(gains))]
        packed = struct.pack("qqqqqdd", len(each), *corners, *kinds, *gains)
        return packed, [*arrays, *[None] * (14 - len(arrays))]

    @staticmethod
    def _update_size(images: int, labels: int, pixels: int, dtype: torch.dtype) -> bytes:
        lanes = 16 // dtype.itemsize
        row = _ceil(labels, lanes) * lanes
        return struct.pack("qqiii4x", images, pixels, labels, row, DTYPE[dtype])

    def _crf_update(
        self, logits: Tensor, scores: Tensor, result: Tensor, belief: Tensor, size: Sequence[int],
        normalize: bool, terms: Sequence[Tensor], gains: Sequence[float],
    ) -> None:  # fmt: skip
        packed, arrays = self._terms(terms, gains)
        tensors = [_null(x) for x in (logits, scores, result, belief)]
        update = self._update_size(*size, logits.dtype)
        self._launch("update", update, packed, normalize, *tensors, *arrays)

    def _crf_update_backward(
        self, belief: Tensor, upstream: Tensor, gradient: Tensor, total: Tensor,
        terms: Sequence[Tensor], gains: Sequence[float],
    ) -> None:  # fmt: skip
        packed, arrays = self._terms(terms, gains)
        size = self._update_size(*total.shape, total.dtype)
        tensors = _null(belief), _null(upstream), gradient, total
        self._launch("update_backward", size, packed, *tensors, *arrays)

    def _crf_products(self, a: Tensor, b: Tensor, partial: Tensor, labels: int) -> None:
        diagonal = partial.dim() == 2
        size = struct.pack(
            "qqii?3xi", len(a), len(partial), labels, a.shape[1], diagonal, DTYPE[a.dtype]
        )
        self._launch("products", size, a, b, partial)
