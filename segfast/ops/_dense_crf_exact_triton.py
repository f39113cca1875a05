"""Launches the exact filter's Triton kernels: order, lists of tiles, sums in a fixed order.

Imported by the first call on a GPU. Nothing here looks at values, so that nothing waits for the GPU
and CUDA graphs can hold it; memory is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from torch import Tensor

from segfast.kernels.dense_crf import triton_configurations as tiles
from segfast.kernels.dense_crf.triton_exact import (
    filter_kernel,
    list_kernel,
    pack_kernel,
    reach_kernel,
    unpack_kernel,
)
from segfast.kernels.dense_crf.triton_exact_grad import feature_gradient_kernel
from segfast.kernels.dense_crf.triton_spatial import convolve_kernel
from segfast.ops._dense_crf_exact_order import centred_parts, in_order, kd_order
from segfast.ops._triton import index_type, on_device

REACH_BLOCK = 128  # tiles
CONVOLVE_BLOCK = 512
PACK_PIXELS, PACK_CHANNELS = 32, 32
LARGEST = 15  # binary exponent of the largest value as it is multiplied
UNSCALED = -LARGEST - 15  # what undoes it and the kernel's 2^15
LEAST_EXPONENT = -96  # 2^(-96 + UNSCALED) is the least normal number: smaller values lose digits


@dataclass(frozen=True)
class Lists:
    """The tiles that `rows` rows from `first` on see."""

    first: int
    rows: int
    lists: Tensor  # [B, rows, tiles] int32: near tiles from the front, others from the back
    counts: Tensor  # [B, rows, 2] int32: of these


class ExactFilter:
    """y = K v for K_ij = exp(-|f_i - f_j|^2 / 2) within `tolerance`, prepared once.

    Args:
        features: [B, F, N] float32, nothing empty.
        tolerance: |y - exact| <= tolerance max|v|, besides rounding.
    """

    def __init__(self, features: Tensor, tolerance: float) -> None:
        self.batch, self.dims, self.pixels = features.shape
        self.order = kd_order(features)  # [B, N]
        self.features, self.boxes = in_order(features, self.order)
        self.slots = self.features.shape[2]
        self.tiles = self.slots // tiles.TILE
        self.rows = self.slots // tiles.ROW
        self.tolerance = tolerance
        self.centres, self.centred, self.left, self.right = centred_parts(self.features)
        self._reach: dict[bool, Tensor] = {}  # [B, rows]
        self._kept: dict[bool, Lists] = {}

    def __call__(self, values: Tensor) -> Tensor:
        """[B, C, N] float32 -> [B, C, N]"""
        channels = values.shape[1]
        chosen = tiles.choose(channels)
        blocks = triton.cdiv(channels, chosen.block_c)
        width = blocks * chosen.block_c
        splits = tiles.splits(self.batch * self.rows * blocks, self.tiles)
        scale, unscale, special = _scales(values)
        packed = values.new_empty((self.batch, 2, self.slots, width), dtype=torch.float16)
        sums = values.new_empty((splits, self.batch, self.slots, width))
        out = torch.empty_like(values, memory_format=torch.contiguous_format)
        with on_device(values):
            pieces = self.slots // PACK_PIXELS * triton.cdiv(width, PACK_CHANNELS)
            pack_kernel[(pieces * self.batch,)](
                values,
                self.order,
                scale,
                packed,
                self.pixels,
                channels,
                self.slots,
                width,
                *values.stride(),
                BLOCK=PACK_PIXELS,
                BLOCK_C=PACK_CHANNELS,
            )
            for seen in self.lists():
                filter_kernel[(blocks * splits * seen.rows * self.batch,)](
                    self.features,
                    self.centred,
                    self.centres,
                    self.left,
                    self.right,
                    packed,
                    seen.lists,
                    seen.counts,
                    sums,
                    self.batch,
                    self.slots,
                    width,
                    self.rows,
                    self.tiles,
                    seen.first,
                    seen.rows,
                    splits,
                    F=self.dims,
                    AXES=tiles.axes(self.dims),
                    DEPTH=self.left.shape[2],
                    INDEX=index_type(packed[0], self.left[0]),
                    BLOCK_M=chosen.block_m,
                    BLOCK_C=chosen.block_c,
                    num_warps=chosen.num_warps,
                    num_stages=chosen.num_stages,
                )
            pieces = triton.cdiv(self.pixels, PACK_PIXELS) * triton.cdiv(channels, PACK_CHANNELS)
            unpack_kernel[(pieces * self.batch,)](
                sums,
                self.order,
                unscale,
                special,
                out,
                self.pixels,
                channels,
                self.slots,
                width,
                splits,
                sums.stride(0),
                BLOCK=PACK_PIXELS,
                BLOCK_C=PACK_CHANNELS,
            )
        return out

    def feature_gradient(self, grads: Tensor, values: Tensor) -> Tensor:
        """g = dL/dy and v of y = K v, [B, C, N] float32 -> df and rho, [B, F + 1, N].

        |df_i - exact| <= tolerance max_j |g_i . v_j + v_i . g_j|, besides rounding.
        """
        chosen = tiles.GRADIENT
        parts = tiles.ROW // chosen.block_m
        splits = tiles.splits(self.batch * self.rows * parts, self.tiles)
        g, v = (self._by_pixel(x, chosen.block_c) for x in (grads, values))
        axes = tiles.moments(self.dims)
        sums = values.new_empty((splits, self.batch, self.slots, axes))
        with on_device(values):
            for seen in self.lists(moment=True):
                feature_gradient_kernel[(parts * splits * seen.rows * self.batch,)](
                    self.features,
                    g,
                    v,
                    seen.lists,
                    seen.counts,
                    sums,
                    self.batch,
                    self.slots,
                    g.shape[2],
                    self.tiles,
                    seen.first,
                    seen.rows,
                    splits,
                    F=self.dims,
                    AXES=axes,
                    INDEX=index_type(g[0], self.features[0]),
                    BLOCK_M=chosen.block_m,
                    BLOCK_C=chosen.block_c,
                    num_warps=chosen.num_warps,
                    num_stages=chosen.num_stages,
                )
        sorted_sums = sums.sum(0)[..., : self.dims + 1].transpose(1, 2)  # [B, F + 1, slots]
        slot = self.order.argsort(1)[:, None].expand(-1, self.dims + 1, -1)  # of each pixel
        return sorted_sums.gather(2, slot)

    def _by_pixel(self, x: Tensor, multiple: int) -> Tensor:
        """[B, C, N] -> [B, slots, width] in order, zeros in channels and slots that are not."""
        channels = x.shape[1]
        tiled = x.gather(2, self.order[:, None].expand(-1, channels, -1)).transpose(1, 2)
        filling = (0, -channels % multiple, 0, self.slots - self.pixels)
        return torch.nn.functional.pad(tiled, filling).contiguous()

    def lists(self, moment: bool = False) -> Iterator[Lists]:
        """What each row sees, some rows at a time; kept where one launch holds all."""
        if moment not in self._reach:
            self._reach[moment] = self._reaches(moment)
        rounds = tiles.rounds(self.batch, self.rows, self.tiles)
        for first, rows in rounds:
            kept = self._kept.get(moment)
            if kept is None:
                kept = self._listed(self._reach[moment], first, rows)
            if len(rounds) == 1:
                self._kept[moment] = kept
            yield kept

    def _reaches(self, moment: bool) -> Tensor:
        reach = self.features.new_empty((self.batch, self.rows))
        with on_device(reach):
            reach_kernel[(reach.numel(),)](
                self.boxes,
                reach,
                self.pixels,
                self.dims,
                self.rows,
                self.tiles,
                self.tolerance,
                MOMENT=moment,
                BLOCK=REACH_BLOCK,
            )
        return reach

    def _listed(self, reach: Tensor, first: int, rows: int) -> Lists:
        lists = reach.new_empty((self.batch, rows, self.tiles), dtype=torch.int32)
        counts = lists.new_empty((self.batch, rows, 2))
        with on_device(reach):
            list_kernel[(self.batch * rows,)](
                self.boxes,
                reach,
                self.centres,
                lists,
                counts,
                self.pixels,
                self.dims,
                self.rows,
                self.tiles,
                first,
                rows,
                BLOCK=REACH_BLOCK,
            )
        return Lists(first, rows, lists, counts)


def _scales(values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """[B, C] each: the power of 2 before the product, the one after it, and what is not finite.

    The last is the sum of a channel's NaN and infinities, 0 if it has none. K_ij > 0, so that they
    reach every row; the kernels multiply finite numbers only.
    """
    finite = torch.nan_to_num(values, 0.0, 0.0, 0.0)
    special = (values - finite).sum(2)
    exponent = torch.frexp(finite.abs().amax(2)).exponent.clamp(min=LEAST_EXPONENT)  # [B, C]
    return _power_of_2(LARGEST - exponent), _power_of_2(exponent + UNSCALED), special


def _power_of_2(exponent: Tensor) -> Tensor:
    """float32, by its bits: torch.ldexp promises no exact power."""
    return ((exponent + 127) << 23).to(torch.int32).view(torch.float32)


def convolve(x: Tensor, taps: Tensor, axis: int) -> Tensor:
    """y_p = sum_t taps_|t| x_{p + t} along an axis of contiguous float32."""
    y = torch.empty_like(x)
    with on_device(x):
        convolve_kernel[(triton.cdiv(x.numel(), CONVOLVE_BLOCK),)](
            x,
            taps,
            y,
            x.numel(),
            x.shape[axis],
            x.stride(axis),
            len(taps) - 1,
            INDEX=index_type(x),
            BLOCK=CONVOLVE_BLOCK,
        )
    return y
