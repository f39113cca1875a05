"""The launchers of dilated convolution by Triton's interpreter, with the tiles of the table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from segfast.kernels.dilated_conv import reference, triton_configurations, triton_work
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops import _dilated_conv_triton as launchers
from segfast.ops._dilated_conv_plan import DIRECTIONS, Problem, Strides, serves_triton
from segfast.testing import assert_as_good_as, dtypes
from tests.ops.dilated_conv_cases import Case, check, random_cases


def run(case: Case, dtype: torch.dtype = torch.float32, channels_last: bool = False) -> None:
    """Every direction that is served, against the oracle."""
    given = [t.to(dtype) for t in case.tensors()]
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = (t.contiguous(memory_format=layout) for t in (given[0], given[3]))
    weight, bias = given[1:3]
    geometry, strides = case.geometry, Strides(*case.strides)
    name = str(dtype).removeprefix("torch.")
    sizes = (case.batch, case.groups, case.in_channels, case.out_channels)
    problem = Problem("cuda", name, channels_last, *sizes, geometry)
    served = [serves_triton(problem, direction) for direction in DIRECTIONS]
    assert served[0]
    y = launchers.conv(x, weight, bias, geometry, strides)
    if served[1]:
        grad_x = launchers.grad_input(grad, weight, geometry, strides)
    else:
        exact = reference.grad_input(grad.double(), weight.double(), geometry, case.groups)
        grad_x = exact.to(dtype)
    grad_weight = launchers.grad_weight(grad, x, geometry, strides)
    check(case, dtype, (y, grad_x, grad_weight), (x, weight, bias, grad))


# batch, groups, C, O of a group, size, kernel, stride, padding, dilation
NINE = Case(2, 1, 5, 7, (5, 6), (3, 3), (1, 1), (2, 2), (2, 2))  # rectangles
DENSE = {
    "rate beyond the map": Case(1, 1, 20, 3, (5, 6), (3, 3), (1, 1), (9, 9), (9, 9)),
    "one row": Case(2, 1, 3, 4, (1, 13), (1, 3), (1, 1), (0, 4), (1, 4)),
    "stride, even kernel": Case(1, 1, 17, 18, (8, 9), (2, 4), (2, 1), (1, 5), (1, 3)),
    "outputs without taps": Case(1, 1, 2, 3, (3, 4), (2, 2), (1, 1), (5, 4), (1, 2)),
    "blocks of channels": Case(1, 1, 70, 66, (3, 5), (3, 1), (1, 1), (2, 0), (2, 1)),
    "whole blocks": Case(1, 1, 32, 16, (3, 3), (2, 1), (1, 1), (0, 0), (1, 1)),
    "two tiles of positions": Case(1, 1, 3, 2, (9, 31), (1, 1), (1, 1), (0, 0), (1, 1)),
    "nothing": Case(0, 1, 3, 2, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
}


@dtypes(torch.float32, torch.float16, torch.bfloat16)
def test_rectangles(dtype: torch.dtype) -> None:
    run(NINE, dtype, channels_last=dtype != torch.float32)


@pytest.mark.parametrize("name", DENSE)
def test_dense(name: str) -> None:
    run(DENSE[name])


@pytest.mark.parametrize("case", random_cases(12, seed=5, largest=7), ids=str)
def test_random(case: Case) -> None:
    if case.groups > 1 and (case.in_channels, case.out_channels) != (1, 1):
        case = Case(**vars(case) | {"groups": 1})
    run(case, channels_last=case.seed % 2 == 0)


@pytest.mark.parametrize(
    "case",
    [NINE, Case(1, 4, 1, 1, (5, 5), (3, 3), (1, 1), (1, 1), (1, 1))],
    ids=["dense", "depthwise"],
)
def test_strided_bias(case: Case) -> None:
    x, weight, bias, _ = (t.float() for t in case.tensors())
    apart = torch.stack([bias, bias + 1], 1)[:, 0]
    y, expected = (
        launchers.conv(x, weight, b, case.geometry, Strides(*case.strides)) for b in (apart, bias)
    )
    assert torch.equal(y, expected)


def test_zeros_behind() -> None:
    """padding="same" of an even kernel: more zeros behind than before."""
    geometry = Geometry.of((5, 6), (5, 6), (2, 4), (1, 1), (0, 1), (1, 1))
    strides = Strides(1, 1, 0, 1, 1, 1, 1)
    torch.manual_seed(0)
    x, weight, grad = torch.randn(1, 3, 5, 6), torch.randn(2, 3, 2, 4), torch.randn(1, 2, 5, 6)
    results = {
        "conv": (launchers.conv(x, weight, None, geometry, strides), x, weight, None),
        "grad_input": (launchers.grad_input(grad, weight, geometry, strides), grad, weight),
        "grad_weight": (launchers.grad_weight(grad, x, geometry, strides), grad, x),
    }
    for name, (actual, *inputs) in results.items():
        formula = getattr(reference, name)
        truth = formula(*(t if t is None else t.double() for t in inputs), geometry, 1)
        assert_as_good_as(actual, truth, formula(*inputs, geometry, 1), terms=40, label=name)


PIECES = Case(1, 1, 48, 20, (2, 150), (1, 6), (1, 1), (0, 3), (1, 1))


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sums are cut into as many pieces as they may be."""
    for cost in ("_PROGRAM", "_PARTIAL", "LAUNCH"):
        monkeypatch.setattr(triton_configurations, cost, 0.0)
    launchers._launch.cache_clear()
    yield
    launchers._launch.cache_clear()


@pytest.mark.usefixtures("pieces")
def test_pieces_are_summed() -> None:
    """Those with all taps are, those with fewer are stored at once."""
    branches = (triton_work.Branch(PIECES.geometry, 20, False),)
    work = triton_work.dense(branches, 1, 48, "float32", 132)
    assert 0 < len(work.sums) < len(work.table)
    assert triton_work.grad_weight(PIECES.geometry, 1, (32, 48), "float32", 132).slots
    run(PIECES)


def test_pieces_change_nothing_but_rounding(request: pytest.FixtureRequest) -> None:
    case = PIECES
    x, weight, bias, _ = (t.float() for t in case.tensors())
    arguments = (x, weight, bias, case.geometry, Strides(*case.strides))
    whole = launchers.conv(*arguments)
    request.getfixturevalue("pieces")
    pieces = launchers.conv(*arguments)
    assert pieces.equal(launchers.conv(*arguments))
    truth = reference.conv(x.double(), weight.double(), bias.double(), case.geometry, 1)
    assert_as_good_as(pieces, truth, whole, terms=48 * 6 + 1)


DEPTHWISE = {
    "rate": Case(2, 2, 1, 1, (6, 9), (3, 3), (1, 1), (4, 4), (4, 4)),
    "rate beyond the map": Case(1, 3, 1, 1, (3, 4), (3, 3), (1, 1), (20, 20), (20, 20)),
    "stride, 20 taps": Case(2, 2, 1, 1, (7, 6), (5, 4), (2, 1), (4, 3), (1, 2)),
    "stride beyond the rate": Case(1, 2, 1, 1, (9, 4), (2, 3), (3, 2), (2, 3), (2, 1)),
    "one channel": Case(2, 1, 1, 1, (1, 20), (1, 3), (1, 1), (0, 2), (1, 2)),
    "nothing": Case(0, 4, 1, 1, (4, 4), (3, 3), (1, 1), (1, 1), (1, 1)),
}


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("name", DEPTHWISE)
def test_depthwise(name: str, channels_last: bool) -> None:
    run(DEPTHWISE[name], channels_last=channels_last)


def test_depthwise_blocks_of_channels() -> None:
    run(Case(1, 70, 1, 1, (3, 4), (3, 3), (1, 1), (2, 2), (2, 2)), channels_last=True)


@dtypes(torch.float16, torch.bfloat16)
@pytest.mark.parametrize("channels_last", [False, True])
def test_depthwise_in_half_precision(channels_last: bool, dtype: torch.dtype) -> None:
    run(DEPTHWISE["rate"], dtype, channels_last)


@pytest.mark.parametrize("groups", [1, 4])
def test_special_numbers_reach_what_they_are_live_for(groups: int) -> None:
    case = Case(1, groups, 4 // groups, 4 // groups, (6, 7), (3, 3), (1, 1), (2, 3), (2, 3))
    x, weight, _, grad = (t.float() for t in case.tensors())
    x[0, 1, 2, 3], x[0, 2, 5, 0] = float("nan"), float("inf")
    weight[3, 0, 0, 0], grad[0, 0, 4, 5] = float("inf"), float("-inf")
    geometry, strides = case.geometry, Strides(*case.strides)
    pairs = (
        (
            launchers.conv(x, weight, None, geometry, strides),
            reference.conv(x, weight, None, geometry, groups),
        ),
        (
            launchers.grad_input(grad, weight, geometry, strides),
            reference.grad_input(grad, weight, geometry, groups),
        ),
        (
            launchers.grad_weight(grad, x, geometry, strides),
            reference.grad_weight(grad, x, geometry, groups),
        ),
    )
    for actual, expected in pairs:
        torch.testing.assert_close(actual, expected, equal_nan=True)
        assert not expected.isfinite().all()


def same(x: Tensor, weight: Tensor, bias: Tensor | None, rate: int) -> Tensor:
    """The oracle of a convolution that keeps the size of x."""
    size, (kh, kw) = x.shape[2:], weight.shape[2:]
    geometry = Geometry.same(size, (kh, kw), rate)
    return reference.conv(x, weight, bias, geometry, 1)


def pyramid(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor, rates: Sequence[int], scale: Tensor,
    shift: Tensor,
) -> Tensor:  # fmt: skip
    y = torch.cat([same(x, w, None, r) for w, r in zip(weights, rates, strict=True)], 1)
    return ((y + bias[:, None, None]) * scale[:, None, None] + shift[:, None, None]).relu()


@pytest.mark.parametrize("channels", [(16, 16, 32), (3, 5, 2)], ids=str)
@dtypes(torch.float32, torch.bfloat16)
def test_pyramid(dtype: torch.dtype, channels: tuple[int, ...]) -> None:
    torch.manual_seed(sum(channels))
    kernels = ((1, 1), (3, 3), (3, 5))
    x = torch.randn(2, 9, 5, 7).to(dtype)
    weights = [torch.randn(o, 9, *k).to(dtype) for o, k in zip(channels, kernels, strict=True)]
    bias, scale, shift = torch.randn(3, sum(channels)).unbind()
    rates, bias = (1, 3, 6), bias.to(dtype)
    actual = launchers.pyramid(x, weights, bias, rates, scale, shift, True)
    inputs = (bias, rates, scale, shift)
    single = pyramid(x.float(), [w.float() for w in weights], bias.float(), *inputs[1:])
    truth = pyramid(
        x.double(), [w.double() for w in weights], bias.double(), rates, scale.double(),
        shift.double(),
    )  # fmt: skip
    assert_as_good_as(actual, truth, single.to(dtype), terms=9 * 15)


def test_pyramid_without_epilogue() -> None:
    torch.manual_seed(0)
    x, weights = torch.randn(1, 2, 4, 5), [torch.randn(2, 2, 3, 3), torch.randn(1, 2, 3, 3)]
    actual = launchers.pyramid(x, weights, None, (1, 7), None, None, False)
    truth = torch.cat(
        [same(x.double(), w.double(), None, r) for w, r in zip(weights, (1, 7), strict=True)], 1
    )
    assert_as_good_as(actual, truth, truth.float(), terms=18)


def test_context_module() -> None:
    torch.manual_seed(0)
    channels, rates, kernels = (5, 7, 16, 3), (1, 2, 1), (3, 3, 1)
    x = torch.randn(2, 5, 6, 5)
    weights = [
        torch.randn(o, c, k, k) for c, o, k in zip(channels, channels[1:], kernels, strict=False)
    ]
    biases = [torch.randn(7), None, torch.randn(3)]
    actual = launchers.context_module(x, weights, biases, rates)

    def formula(dtype: torch.dtype) -> Tensor:
        y = x.to(dtype)
        for i, (w, b, r) in enumerate(zip(weights, biases, rates, strict=True)):
            y = same(y if i == 0 else y.relu(), w.to(dtype), b if b is None else b.to(dtype), r)
        return y

    assert actual.shape == (2, 3, 6, 5)
    assert_as_good_as(actual, formula(torch.float64), formula(torch.float32), terms=16 + 63 + 45)
