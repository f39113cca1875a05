"""Live taps, rectangles and the plan of dilated convolutions, against looking at every pair."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segfast.kernels.dilated_conv import reference
from segfast.kernels.dilated_conv.geometry import Axis, Geometry
from segfast.ops._dilated_conv_plan import DIRECTIONS, Plan, Problem, plan


def axes(most: Axis) -> st.SearchStrategy[Axis]:
    least = Axis(input=0, output=0, taps=1, stride=1, padding=0, dilation=1)
    return st.builds(Axis, *map(st.integers, least, most))


AXES = axes(Axis(input=23, output=25, taps=6, stride=4, padding=14, dilation=27))
SMALL_AXES = axes(Axis(input=7, output=8, taps=4, stride=3, padding=5, dilation=9))
PROBLEMS = st.builds(
    Problem,
    device=st.sampled_from(["cpu", "cuda", "mps"]),
    dtype=st.sampled_from(["float32", "float64", "float16", "bfloat16"]),
    channels_last=st.booleans(),
    batch=st.integers(0, 9),
    groups=st.sampled_from([1, 2, 32, 2048]),
    in_channels=st.sampled_from([1, 3, 8, 64, 2048]),
    out_channels=st.sampled_from([1, 2, 21, 256]),
    geometry=st.builds(Geometry, AXES, AXES),
)
KERNELS = ["torch", "direct", "dense", "triton"]


def live_pairs(axis: Axis) -> set[tuple[int, int]]:
    """(output, tap) of an axis that read a position of the input: by looking."""
    return {
        (o, t)
        for o, t in itertools.product(range(axis.output), range(axis.taps))
        if 0 <= o * axis.stride - axis.padding + t * axis.dilation < axis.input
    }


def same_padded(input: int, taps: int, dilation: int) -> Axis:
    return Axis(input, input, taps, 1, taps // 2 * dilation, dilation)


# ------------------------------------------------------------------------------ an axis


@settings(max_examples=500)
@given(AXES)
def test_live_outputs_of_every_tap(axis: Axis) -> None:
    found = {(o, t) for t in range(axis.taps) for o in axis.live(t)}
    assert found == live_pairs(axis)
    assert axis.live_pairs() == len(found)
    for o, t in found:
        assert axis.first_input(t, o) in range(axis.input)


@settings(max_examples=500)
@given(AXES)
def test_spans_cover_every_live_pair_once(axis: Axis) -> None:
    spans = axis.spans()
    found = Counter(pair for s in spans for pair in itertools.product(s.outputs, s.taps))
    assert set(found) == live_pairs(axis)
    assert set(found.values()) <= {1}
    assert all(s.outputs and s.taps for s in spans)
    for before, behind in itertools.pairwise(spans):
        assert before.outputs.stop <= behind.outputs.start
        touch = before.outputs.stop == behind.outputs.start
        assert not (touch and before.taps == behind.taps)  # they would be one
    assert len(spans) <= 2 * axis.taps + 1


@pytest.mark.parametrize(
    ("axis", "spans"),
    [
        (same_padded(33, 3, 12), [((0, 12), (1, 3)), ((12, 21), (0, 3)), ((21, 33), (0, 2))]),
        (same_padded(33, 3, 18), [((0, 15), (1, 3)), ((15, 18), (1, 2)), ((18, 33), (0, 2))]),
        (same_padded(33, 3, 36), [((0, 33), (1, 2))]),
        (same_padded(1, 3, 1), [((0, 1), (1, 2))]),
        (Axis(4, 9, 1, 1, 2, 1), [((2, 6), (0, 1))]),  # zeros around and behind
        (Axis(0, 3, 3, 1, 1, 1), []),
    ],
)
def test_spans_by_hand(axis: Axis, spans: list[tuple[tuple[int, int], tuple[int, int]]]) -> None:
    assert [
        ((s.outputs.start, s.outputs.stop), (s.taps.start, s.taps.stop)) for s in axis.spans()
    ] == spans


# ------------------------------------------------------------------------------ a map


@settings(max_examples=300)
@given(SMALL_AXES, SMALL_AXES)
def test_rectangles_cover_every_live_pair_once(rows: Axis, columns: Axis) -> None:
    geometry = Geometry(rows, columns)
    expected = set(itertools.product(live_pairs(rows), live_pairs(columns)))
    found = Counter(
        ((y, i), (x, j))
        for r, c in geometry.rectangles()
        for y, i, x, j in itertools.product(r.outputs, r.taps, c.outputs, c.taps)
    )
    assert set(found) == expected
    assert set(found.values()) <= {1}
    assert geometry.live_pairs() == len(expected)
    assert geometry.pairs() == rows.output * rows.taps * columns.output * columns.taps


@given(st.integers(1, 80), st.integers(1, 80), st.integers(1, 40), st.integers(1, 40))
def test_nine_rectangles_suffice(height: int, width: int, vertical: int, horizontal: int) -> None:
    """3 x 3, same padding: three spans an axis, whatever rate and size."""
    geometry = Geometry(same_padded(height, 3, vertical), same_padded(width, 3, horizontal))
    assert 1 <= len(geometry.rectangles()) <= 9
    if vertical >= height and horizontal >= width:
        assert geometry.live_pairs() == height * width  # a 1 x 1 convolution
        assert len(geometry.rectangles()) == 1


@pytest.mark.parametrize(
    ("size", "rate", "percent"),
    [(33, 6, 22.8), (33, 12, 42.6), (33, 18, 59.5), (33, 36, 88.9), (65, 12, 23.1), (65, 24, 43.2)],
)
def test_share_of_padding(size: int, rate: int, percent: float) -> None:
    """Per axis 2 min(r, n) of 3 n taps are padding: 1 - (1 - 2 min(r, n) / 3 n)^2 of a map's."""
    geometry = Geometry(same_padded(size, 3, rate), same_padded(size, 3, rate))
    expected = 1 - (1 - 2 * min(rate, size) / (3 * size)) ** 2
    assert 1 - geometry.live_pairs() / geometry.pairs() == pytest.approx(expected, rel=1e-12)
    assert round(100 * expected, 1) == percent


def test_geometry_of_pairs() -> None:
    geometry = Geometry.of((33, 65), (17, 64), (3, 5), (2, 1), (4, 6), (4, 3))
    assert geometry.rows == Axis(33, 17, 3, 2, 4, 4)
    assert geometry.columns == Axis(65, 64, 5, 1, 6, 3)


@pytest.mark.parametrize("kernel", [(3, 5), (2, 1), (4, 4)])
def test_same(kernel: tuple[int, int]) -> None:
    """As PyTorch pads: the odd zero of an even kernel behind."""
    x, weight = torch.randn(1, 1, 6, 7).double(), torch.randn(1, 1, *kernel).double()
    expected = torch.nn.functional.conv2d(x, weight, padding="same", dilation=3)
    y = reference.conv(x, weight, None, Geometry.same((6, 7), kernel, 3), 1)
    torch.testing.assert_close(y, expected)


# ------------------------------------------------------------------------------ the plan


@given(PROBLEMS, st.sets(st.sampled_from(KERNELS[1:])))
def test_plan_is_pure_and_total(problem: Problem, more: set[str]) -> None:
    """An answer to everything, always the same, and a kernel that is there."""
    available = frozenset({"torch", *more})
    for direction in DIRECTIONS:
        found = plan(direction, problem, available)
        assert found == plan(direction, Problem(*problem), frozenset(sorted(available)))
        assert isinstance(found, Plan)
        assert found.kernel in available
        assert found.why
        assert plan(direction, problem, frozenset({"torch"})).kernel == "torch"


@given(PROBLEMS)
def test_multiplications(problem: Problem) -> None:
    rows, columns = problem.geometry
    live = len(live_pairs(rows)) * len(live_pairs(columns))
    channels = problem.groups * problem.in_channels * problem.out_channels
    assert problem.live_multiplications() == problem.batch * channels * live
    assert problem.multiplications() == problem.batch * channels * problem.geometry.pairs()
