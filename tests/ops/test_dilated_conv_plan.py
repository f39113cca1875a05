"""Which kernel the plan chooses on the CPU, from sizes alone."""

from __future__ import annotations

from typing import Any

import pytest

from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops._dilated_conv_plan import (
    DIRECTIONS,
    Direction,
    Problem,
    plan,
    torch_is_wrong,
    winograd_products,
)  # fmt: skip
from segfast.ops._dilated_conv_rules import AVX2

ALL = frozenset({"torch", "direct", "dense"})
Pair = tuple[int, int]


def problem(
    channels: Pair, rate: int, *, dtype: str = "float32", last: bool = False, stride: int = 1,
    taps: int = 3, groups: int = 1,
) -> Problem:  # fmt: skip
    size, both = (33, 33), (rate, rate)
    outputs = ((33 - 1) // stride + 1,) * 2
    padding = (rate * (taps // 2),) * 2
    geometry = Geometry.of(size, outputs, (taps, taps), (stride, stride), padding, both)
    return Problem("cpu", dtype, last, 1, groups, *channels, geometry)


def bf16_last(groups: int, rate: int, taps: int = 3) -> Problem:
    """Depthwise, channels_last, 33 x 33."""
    return problem((1, 1), rate, groups=groups, last=True, dtype="bfloat16", taps=taps)


def served(given: Problem, available: frozenset[str] = ALL) -> tuple[str, ...]:
    return tuple(plan(direction, given, available).kernel for direction in DIRECTIONS)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (problem((2048, 256), 12), ("dense", "dense", "dense")),
        (problem((512, 512), 2), ("dense", "torch", "dense")),  # 92 % of the products are live
        (problem((512, 512), 4), ("dense", "dense", "dense")),
        (problem((21, 21), 1), ("dense", "dense", "dense")),  # not whole vectors of channels
        (problem((24, 24), 1), ("torch", "torch", "dense")),
        (problem((256, 256), 1, taps=1), ("torch", "torch", "dense")),
        (problem((256, 256), 1, stride=2), ("dense", "dense", "dense")),
        (problem((256, 256), 1), ("torch", "torch", "dense")),
        (problem((256, 256), 1, dtype="bfloat16"), ("dense", "dense", "dense")),
        (problem((3, 64), 1), ("torch", "torch", "torch")),
        (problem((3, 64), 2), ("dense", "torch", "dense")),
        (problem((1, 64), 2), ("torch", "torch", "torch")),
        (problem((8, 64), 6), ("dense", "torch", "dense")),
        (problem((16, 64), 6), ("dense", "dense", "dense")),
        (problem((64, 64), 1, taps=7), ("torch", "torch", "dense")),  # 90 % are live
        (problem((64, 64), 2, taps=5), ("dense", "dense", "dense")),  # 86 %
        (problem((2, 2), 6), ("dense", "dense", "dense")),
        (problem((2048, 256), 12, last=True), ("torch", "torch", "torch")),
    ],
    ids=str,
)
def test_dense(given: Problem, expected: tuple[str, ...]) -> None:
    assert served(given) == expected
    assert served(given, frozenset({"torch"})) == ("torch", "torch", "torch")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (problem((512, 512), 2), ("winograd", "winograd", "dense")),
        (problem((512, 512), 4), ("winograd", "winograd", "dense")),
        (problem((256, 256), 1), ("winograd", "winograd", "dense")),
        (problem((512, 512), 12), ("dense", "dense", "dense")),  # tiles of 3x3 results at most
        (problem((512, 512), 40), ("dense", "dense", "dense")),
        (problem((2048, 256), 6), ("dense", "dense", "dense")),
        (problem((16, 16), 2), ("dense", "torch", "dense")),  # transforming takes too much
        (problem((512, 512), 2, dtype="float64"), ("dense", "dense", "dense")),
        (problem((512, 512), 2, dtype="bfloat16"), ("dense", "dense", "dense")),
        (problem((512, 512), 2, last=True), ("torch", "torch", "torch")),
        (problem((512, 512), 2, stride=2), ("dense", "dense", "dense")),
        (problem((512, 512), 2, taps=5), ("dense", "dense", "dense")),
        (problem((512, 512), 2, groups=2), ("torch", "torch", "torch")),
    ],
    ids=str,
)
def test_winograd_where_it_is_allowed(given: Problem, expected: tuple[str, ...]) -> None:
    assert served(given, ALL | {"winograd"}) == expected
    assert "winograd" not in served(given)


def test_what_winograd_saves() -> None:
    given = problem((10**9, 10**9), 4)  # transforming maps costs nothing, weights 11 tiles
    # Phases of 9, 8, 8, 8: 3 + 2 + 2 + 2 tiles. Live: the outer taps for 29 of 33, twice.
    share = 36 * (9**2 + 11) / (33 + 29 + 29) ** 2
    assert winograd_products("forward", given, AVX2) == pytest.approx(share)
    assert winograd_products("grad_input", given, AVX2) == pytest.approx(share)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (problem((2048, 256), 12), ("dense", "torch", "dense")),
        (problem((512, 512), 2), ("torch", "torch", "dense")),
        (problem((21, 21), 1), ("dense", "dense", "dense")),  # not whole vectors of channels
        (problem((256, 256), 1, stride=2), ("dense", "dense", "dense")),
        (problem((64, 64), 4, taps=5), ("torch", "torch", "dense")),  # 73 % are live
        (problem((1, 1), 2, groups=960), ("direct", "direct", "direct")),
        (problem((1, 1), 1, groups=960, taps=7), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=960, last=True), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=960, last=True, taps=7), ("direct", "direct", "direct")),
        (problem((8, 8), 12, groups=32), ("torch", "torch", "direct")),
        (problem((8, 8), 18, groups=32), ("direct", "direct", "direct")),  # 40 % are live
        (problem((1, 1), 2, groups=64, last=True, dtype="bfloat16"), ("direct",) * 3),
        (bf16_last(2048, 2), ("torch", "direct", "direct")),
        (bf16_last(1024, 2), ("direct", "direct", "direct")),  # small enough
        (bf16_last(2048, 7), ("direct", "direct", "direct")),
        (bf16_last(728, 2, taps=5), ("torch", "direct", "direct")),
        (bf16_last(728, 2, taps=9), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=64, dtype="bfloat16"), ("direct", "direct", "direct")),
        (problem((8, 8), 2, groups=32, dtype="bfloat16"), ("torch", "torch", "direct")),
    ],
    ids=str,
)
def test_avx512(given: Problem, expected: tuple[str, ...]) -> None:
    assert served(given, ALL | {"avx512", "fast bfloat16"}) == expected


@pytest.mark.parametrize(
    ("expected", "given"),
    [
        ("torch", problem((64, 64), 1)._replace(batch=2)),
        ("dense", problem((64, 64), 1)),  # a small map
        ("torch", problem((64, 64), 12)._replace(batch=2)),
        ("dense", problem((64, 64), 24)._replace(batch=2)),  # 27 % are live
        ("torch", problem((32, 32), 1)._replace(batch=2)),
        ("dense", problem((16, 32), 1)._replace(batch=2)),
        ("torch", problem((256, 64), 1)._replace(batch=2)),
        ("dense", problem((256, 80), 1)._replace(batch=2)),
        ("dense", problem((64, 72), 1)._replace(batch=2)),
        ("dense", problem((72, 64), 1)._replace(batch=2)),
        ("dense", problem((64, 64), 1, stride=2)._replace(batch=8)),
        ("dense", problem((64, 64), 1, taps=5)._replace(batch=2)),
        ("dense", problem((64, 64), 1, dtype="float64")._replace(batch=2)),
    ],
)
def test_weights_gradients_of_sixteens(expected: str, given: Problem) -> None:
    assert plan("grad_weight", given, ALL | {"avx512"}).kernel == expected
    assert plan("grad_weight", given, ALL).kernel == "dense"


def test_hardware_that_multiplies_bfloat16_serves_it() -> None:
    available = ALL | {"fast bfloat16"}
    assert served(problem((64, 64), 6, dtype="bfloat16"), available) == ("torch",) * 3
    assert served(problem((64, 64), 6, dtype="float16"), available) == ("dense",) * 3
    assert "bfloat16" in plan("forward", problem((64, 64), 6, dtype="bfloat16"), available).why


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (problem((1, 1), 12, groups=512), ("direct", "direct", "direct")),
        (problem((1, 1), 12, groups=512, last=True), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=512, last=True), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=960, last=True), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=960, last=True, stride=2), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=960, last=True, taps=5), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=64, stride=2, taps=5), ("direct", "direct", "direct")),
        (problem((1, 1), 1, groups=64, stride=2, dtype="float16"), ("direct",) * 3),
        (problem((1, 1), 1, groups=64, stride=2), ("direct", "direct", "direct")),
        (problem((1, 1), 1, groups=64), ("direct", "direct", "direct")),
        (problem((1, 1), 1, groups=64, taps=7), ("direct", "direct", "direct")),
        (problem((8, 4), 1, groups=32), ("direct", "direct", "direct")),
        (problem((8, 8), 1, groups=32), ("torch", "torch", "torch")),
        (problem((8, 8), 1, groups=32, stride=2), ("torch", "direct", "torch")),
        (problem((8, 16), 2, groups=32), ("torch", "torch", "direct")),
        (problem((8, 16), 6, groups=32), ("direct", "direct", "direct")),  # 77 % are live
        (problem((8, 64), 12, groups=32), ("torch", "torch", "torch")),
        (problem((1, 1), 2, groups=960, last=True, dtype="float16"), ("direct",) * 3),
        (problem((1, 4), 6, groups=16), ("direct", "direct", "direct")),
        (problem((1, 4), 6, groups=16, last=True), ("torch", "torch", "torch")),
        (problem((64, 64), 6, groups=4), ("torch", "torch", "torch")),
    ],
    ids=str,
)
def test_direct(given: Problem, expected: tuple[str, ...]) -> None:
    assert served(given) == expected


# ------------------------------------------------------------------- what PyTorch gets wrong


def row(width: int, taps: int, stride: int = 1, padding: int = 0, dilation: int = 1) -> Geometry:
    """Columns as said, rows of 3 taps at rate 1."""
    outputs = (width + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
    sizes = (9, width), (9, outputs), (3, taps)
    return Geometry.of(*sizes, (1, stride), (1, padding), (1, dilation))


def wrong(direction: Direction, geometry: Geometry, channels: int = 16, **more: Any) -> bool:
    facts = problem((channels, 24), 1)._replace(geometry=geometry, **more)
    return torch_is_wrong(direction, facts)


def one_tap(rows: int, columns: int, taps: Pair = (1, 1)) -> Geometry:
    """With these strides."""
    return Geometry.of((8, 8), (2, 2), taps, (rows, columns), (0, 0), (1, 1))


@pytest.mark.parametrize(
    ("expected", "channels", "rate"),
    [(True, 40, 2), (True, 8, 2), (True, 17, 2), (False, 48, 2), (False, 16, 2), (False, 40, 1)],
)
def test_bfloat16_gradients_at_rates(expected: bool, channels: int, rate: int) -> None:
    for geometry in (row(33, 3, dilation=rate), problem((1, 1), rate).geometry):
        assert wrong("grad_weight", geometry, channels, dtype="bfloat16") is expected
        assert not wrong("grad_weight", geometry, channels)
        assert not wrong("grad_weight", geometry, channels, dtype="bfloat16", device="cuda")
        assert not wrong("grad_input", geometry, channels, dtype="bfloat16")


@pytest.mark.parametrize(
    ("expected", "channels", "geometry"),
    [
        (True, 8, one_tap(2, 2)),
        (True, 1, one_tap(2, 1)),
        (True, 15, one_tap(1, 2)),
        (False, 16, one_tap(2, 2)),
        (False, 8, one_tap(1, 1)),
        (False, 8, one_tap(2, 2, (1, 3))),
        (False, 8, one_tap(2, 2, (3, 1))),
    ],
)
def test_gradients_of_one_tap(expected: bool, channels: int, geometry: Geometry) -> None:
    for dtype in ("float32", "bfloat16"):
        assert wrong("grad_weight", geometry, channels, dtype=dtype) is expected
    assert not wrong("forward", geometry, channels)


@pytest.mark.parametrize(("expected", "width"), [(True, 2), (False, 3)])
def test_gradients_of_maps_narrower_than_the_stride(expected: bool, width: int) -> None:
    geometry = row(width, 3, stride=3, padding=1)
    assert wrong("grad_weight", geometry, dtype="bfloat16") is expected
    assert not wrong("grad_weight", geometry)


def test_results_of_columns_that_read_nothing() -> None:
    columns = row(2, 1, stride=3, padding=4)
    assert columns.columns.live_pairs() == 0
    rows = Geometry(columns.columns, row(9, 3, padding=1).columns)
    for dtype in ("float32", "bfloat16"):
        assert wrong("forward", columns, dtype=dtype)
        assert not wrong("forward", rows, dtype=dtype)
    assert not wrong("grad_input", columns)


@pytest.mark.parametrize(
    ("expected", "channels", "geometry"),
    [
        (True, 1, row(3, 3, stride=2)),
        (False, 2, row(3, 3, stride=2)),
        (False, 1, row(3, 3)),
        (False, 1, row(5, 3, stride=2)),
    ],
)
def test_results_of_one_column(expected: bool, channels: int, geometry: Geometry) -> None:
    for dtype in ("float32", "bfloat16"):
        for groups in (1, 2):
            assert wrong("forward", geometry, channels, dtype=dtype, groups=groups) is expected


@pytest.mark.parametrize(
    ("expected", "geometry"),
    [
        (True, row(15, 7, stride=8, padding=3)),  # reads 15 columns: none of the padding behind
        (False, row(15, 7, stride=8)),  # nor is there any before
        (False, row(16, 7, stride=8, padding=3)),
        (False, row(33, 3, padding=36, dilation=36)),
        (False, row(33, 3, padding=1)),
        (False, row(33, 3, stride=2, padding=1)),
        (False, row(224, 7, stride=2, padding=3)),
        (False, row(224, 16, stride=16)),
    ],
)
def test_bfloat16_results_with_padding(expected: bool, geometry: Geometry) -> None:
    assert wrong("forward", geometry, dtype="bfloat16") is expected
    assert not wrong("forward", geometry)
    assert not wrong("grad_input", geometry, dtype="bfloat16")


@pytest.mark.parametrize(
    ("expected", "geometry"),
    [
        (True, row(1, 3, stride=2, padding=9, dilation=3)),  # of ten columns few read the map
        (True, row(4, 1, padding=31)),
        (True, row(33, 3, padding=3)),  # the first and the last
        (False, row(33, 3, padding=2)),
        (False, row(33, 3, padding=36, dilation=36)),
        (False, row(33, 3, padding=1)),
    ],
)
def test_results_of_padding_alone(expected: bool, geometry: Geometry) -> None:
    for dtype in ("float32", "bfloat16"):
        assert wrong("forward", geometry, dtype=dtype) is expected
        assert not wrong("grad_input", geometry, dtype=dtype)
