"""Which kernel the plan chooses on the CPU, from sizes alone."""

from __future__ import annotations

import pytest

from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops._dilated_conv_plan import (
    DIRECTIONS,
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
        (problem((1, 1), 2, groups=960), ("torch", "direct", "direct")),
        (problem((1, 1), 4, groups=960), ("direct", "direct", "direct")),
        (problem((1, 1), 1, groups=960, taps=7), ("torch", "torch", "direct")),
        (problem((1, 1), 2, groups=960, last=True), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=960, last=True, taps=7), ("torch", "direct", "direct")),
        (problem((8, 8), 12, groups=32), ("torch", "torch", "direct")),
        (problem((8, 8), 18, groups=32), ("direct", "direct", "direct")),  # 40 % are live
        (problem((1, 1), 2, groups=64, last=True, dtype="bfloat16"), ("torch", "direct", "direct")),
        (problem((1, 1), 2, groups=64, dtype="bfloat16"), ("direct", "direct", "direct")),
        (problem((8, 8), 2, groups=32, dtype="bfloat16"), ("torch", "torch", "direct")),
    ],
    ids=str,
)
def test_avx512(given: Problem, expected: tuple[str, ...]) -> None:
    assert served(given, ALL | {"avx512", "fast bfloat16"}) == expected


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
        (problem((1, 1), 2, groups=960, last=True), ("torch", "direct", "direct")),
        (problem((1, 1), 5, groups=960, last=True), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=960, last=True, stride=2), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=960, last=True, taps=5), ("direct", "direct", "direct")),
        (problem((1, 1), 4, groups=64, stride=2), ("torch", "direct", "direct")),
        (problem((1, 1), 5, groups=64, stride=2), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=64, stride=2, taps=5), ("torch", "direct", "direct")),
        (problem((1, 1), 1, groups=64, stride=2, dtype="float16"), ("direct",) * 3),
        (problem((1, 1), 1, groups=64, stride=2), ("torch", "direct", "torch")),
        (problem((1, 1), 1, groups=64), ("direct", "direct", "direct")),
        (problem((1, 1), 2, groups=64, taps=5), ("torch", "direct", "direct")),
        (problem((1, 1), 1, groups=64, taps=7), ("torch", "torch", "direct")),
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


def test_gradients_of_the_weight_that_pytorch_gets_wrong() -> None:
    def wrong(given: Problem) -> bool:
        return torch_is_wrong("grad_weight", given)

    assert wrong(problem((40, 24), 2, dtype="bfloat16"))
    assert not wrong(problem((48, 24), 2, dtype="bfloat16"))  # whole vectors of channels
    assert not wrong(problem((40, 24), 1, dtype="bfloat16"))
    assert not wrong(problem((40, 24), 2))
    assert not wrong(problem((40, 24), 2, dtype="bfloat16")._replace(device="cuda"))
    assert wrong(problem((8, 24), 1, taps=1, stride=2))
    assert not wrong(problem((16, 24), 1, taps=1, stride=2))
    assert not wrong(problem((8, 24), 1, taps=1))
    few = Geometry.of((9, 2), (3, 1), (3, 3), (3, 3), (1, 1), (1, 1))  # a step of three columns
    assert wrong(problem((48, 24), 1, dtype="bfloat16")._replace(geometry=few))
    assert not wrong(problem((48, 24), 1)._replace(geometry=few))


def test_results_that_pytorch_gets_wrong() -> None:
    empty = Geometry.of((9, 2), (3, 4), (2, 3), (3, 3), (4, 7), (8, 3))  # no column is read
    given = problem((8, 19), 2)
    assert torch_is_wrong("forward", given._replace(geometry=empty))
    assert not torch_is_wrong("grad_input", given._replace(geometry=empty))
    assert not torch_is_wrong("forward", given)
    column = Geometry.of((9, 3), (7, 1), (3, 3), (1, 2), (0, 0), (1, 1))
    grouped = problem((1, 8), 1, groups=2, dtype="bfloat16")._replace(geometry=column)
    assert torch_is_wrong("forward", grouped)
    assert not torch_is_wrong("forward", grouped._replace(dtype="float32"))
    assert not torch_is_wrong("forward", grouped._replace(in_channels=2))
