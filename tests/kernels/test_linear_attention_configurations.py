"""Tiles and splits of linear attention's Triton kernels: pure functions of shapes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segfast.kernels.linear_attention.triton_configurations import (
    DOT,
    KERNELS,
    PROGRAMS,
    ROWS,
    TABLE,
    choose,
    most_rows,
    splits,
)

H100 = (9, 0)


def test_every_kernel_has_tiles_for_everything_served() -> None:
    assert set(TABLE) == {(kernel, dtype) for kernel in KERNELS for dtype in DOT}
    for kernel, dtype in TABLE:
        assert ROWS[len(TABLE[kernel, dtype]) - 1] == most_rows(dtype)
        for rows in range(1, most_rows(dtype) + 1):
            chosen = choose(kernel, dtype, rows, H100)
            assert chosen is not None
            assert rows <= chosen.block_r < 2 * max(rows, ROWS[0])
            sizes = (chosen.block_r, chosen.block_e, chosen.block_n, chosen.num_warps)
            assert all(size & (size - 1) == 0 for size in sizes)
            assert min(sizes[:3]) >= 16  # what tl.dot multiplies


@pytest.mark.parametrize(
    ("dtype", "rows", "capability"),
    [
        ("float64", 8, H100),
        ("float32", 129, H100),
        ("float16", 257, H100),
        ("bfloat16", 8, (7, 5)),
    ],
)
def test_not_served(dtype: str, rows: int, capability: tuple[int, int]) -> None:
    assert choose("state", dtype, rows, capability) is None


@given(
    positions=st.integers(1, 1 << 24),
    programs=st.integers(1, 1 << 20),
    least=st.integers(0, 2000),
    kernel=st.sampled_from(KERNELS),
    rows=st.sampled_from(ROWS),
)
def test_splits_cover_all_positions_once(
    positions: int, programs: int, least: int, kernel: str, rows: int
) -> None:
    chosen = choose(kernel, "bfloat16", rows, H100)
    assert chosen is not None
    span, number = splits(chosen, positions, programs, least)
    assert (number - 1) * span < positions <= number * span
    assert span % chosen.block_n == 0
    assert span >= least
    assert number <= max(1, PROGRAMS // programs)


def test_one_image_fills_a_gpu() -> None:
    """MANet's and MAResU-Net's largest maps: B, R, E, N."""
    for batch, rows, values, side in ((1, 32, 256, 256), (4, 64, 512, 128), (1, 9, 64, 256)):
        chosen = choose("state", "bfloat16", rows, H100)
        assert chosen is not None
        programs = batch * -(-values // chosen.block_e)
        assert 132 <= programs * splits(chosen, side * side, programs, 4 * rows)[1] <= PROGRAMS
