"""The order of pixels and the tiles of the exact dense CRF on a GPU, on any device."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segfast.kernels.dense_crf import triton_configurations as tiles
from segfast.ops._dense_crf_exact_order import centred_parts, in_order, kd_order


@pytest.mark.parametrize("pixels", [1, 63, 64, 128, 129, 1000, 5000])
def test_every_pixel_has_one_slot(pixels: int) -> None:
    features = torch.randn(3, 4, pixels, generator=torch.Generator().manual_seed(0))
    features[1, :, : pixels // 2] = 1.5  # ties
    features[2, 1, 0] = math.nan
    order = kd_order(features)
    assert torch.equal(order.sort(1).values, torch.arange(pixels).expand(3, -1))
    assert torch.equal(kd_order(features[1:2])[0], order[1])


def test_rows_are_compact() -> None:
    """Points of a grid: each row of tiles is a patch, where in raster order it would be a strip."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    features = torch.stack([x, y]).flatten(1)[None]
    _, boxes = in_order(features, kd_order(features))
    extent = boxes[0, 1] - boxes[0, 0]  # [2, tiles]
    assert extent.shape == (2, 64)
    assert torch.equal(extent, torch.full((2, 64), 7.0))


def test_boxes() -> None:
    features = 5 * torch.randn(2, 3, 300, generator=torch.Generator().manual_seed(0))
    features[1, 2, 7] = -math.inf  # sorts to the front: the last pixel would be repeated
    order = kd_order(features)
    tiled, boxes = in_order(features, order)
    assert tiled.shape == (2, 3, 384)
    assert torch.equal(tiled[0, :, 299:], tiled[0, :, 299:300].expand(-1, 85))
    inside = tiled.unflatten(2, (-1, tiles.TILE))
    assert (boxes[:, 0, ..., None] <= inside).all()
    assert (inside <= boxes[:, 1, ..., None]).all()
    unbounded = boxes[1].isinf()
    assert unbounded.all(0).all(0).sum() == 1  # one tile, in every feature
    assert unbounded.sum() == 2 * 3
    assert boxes[0].isfinite().all()


def test_parts_add_up() -> None:
    generator = torch.Generator().manual_seed(0)
    spreads = torch.tensor([0.5, 9.0]).repeat_interleave(tiles.ROW)
    features = 20 + spreads * torch.randn(1, 3, 2 * tiles.ROW, generator=generator)
    centres, centred, left, right = centred_parts(features)
    assert centres[0].isnan().any(0).tolist() == [False, True]
    small = slice(0, tiles.ROW)
    exact = features.double()[0, :, small] * math.sqrt(math.log2(math.e)) - centres[0, :, :1]
    high, low = right[0, small, :3].double().T, right[0, small, 3:6].double().T
    assert ((high + low - exact).abs() <= tiles.PART**2 / 8).all()  # half a step of the low part
    assert torch.equal(centred[0, small, :3].double().T, high + low)
    whole, rest = centred[0, small, 3:5].double().T
    assert torch.equal((whole / tiles.PART).round() * tiles.PART, whole)
    exact_norms = -0.5 * (high + low).square().sum(0)
    assert (rest.abs() <= tiles.PART / 2).all()
    assert ((whole + rest - exact_norms).abs() <= 2.0**-24 * rest.abs()).all()
    parts = [x.T.tolist() for x in (right[0, small, :9], left[0, small, :9])]
    assert parts[0] == [*high.tolist(), *low.tolist(), *low.tolist()]
    assert parts[1] == [*low.tolist(), *high.tolist(), *low.tolist()]


@given(channels=st.integers(1, 1000))
def test_blocks_hold_all_channels(channels: int) -> None:
    chosen = tiles.choose(channels)
    blocks = -(-channels // chosen.block_c)
    assert blocks == -(-channels // tiles.FILTER[-1].block_c)


@pytest.mark.parametrize("dims", range(1, 33))
def test_widths(dims: int) -> None:
    assert tiles.axes(dims) > dims + 1
    assert tiles.moments(dims) > dims
    depth = tiles.depth(dims)
    assert depth >= max(16, 3 * dims) if dims <= tiles.PRODUCT_DIMS else depth == 0
    assert all(width & (width - 1) == 0 for width in (tiles.axes(dims), tiles.moments(dims), depth))


@given(batch=st.integers(1, 64), rows=st.integers(1, 1 << 17))
def test_lists_are_bounded(batch: int, rows: int) -> None:
    launches = tiles.rounds(batch, rows, 2 * rows)
    assert sum(count for _, count in launches) == rows
    assert [first for first, _ in launches] == list(range(0, rows, launches[0][1]))
    most = 4 * batch * launches[0][1] * 2 * rows
    assert most <= tiles.LIST_BYTES or launches[0][1] == 1


def test_small_maps_fill_a_gpu() -> None:
    for side, batch in ((64, 1), (64, 4), (128, 4), (400, 1)):
        rows = batch * -(-side * side // tiles.ROW)
        assert 132 <= rows * tiles.splits(rows, 2 * rows // batch) <= max(rows, tiles.PROGRAMS)
