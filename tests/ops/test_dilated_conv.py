"""Dilated convolution and its relatives: values, gradients, layouts, refusals."""

from __future__ import annotations

import collections
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segfast._native import native
from segfast.kernels.dilated_conv import reference
from segfast.ops import (
    atrous_pyramid2d,
    context_module2d,
    dilated_conv1d,
    dilated_conv2d,
    dilated_conv_transpose2d,
)
from segfast.ops._dilated_conv_kernels import choose
from segfast.ops._dilated_conv_kernels import problem as problem_of
from segfast.ops._dilated_conv_plan import DIRECTIONS
from segfast.testing import assert_as_good_as, dtypes
from tests.ops.dilated_conv_cases import Case, check, random_cases

LAYOUTS = pytest.mark.parametrize(
    "layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The same numbers for a test alone and after others."""
    torch.manual_seed(0)


def conv(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return dilated_conv2d(x, weight, bias, case.stride, case.padding, case.dilation, case.groups)


def torch_conv(case: Case, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x, weight, bias, case.stride, case.padding, case.dilation, case.groups)


def results(
    case: Case, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """y and the gradients of x and the weight."""
    leaves = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = conv(case, *leaves, bias)
    grad_x, grad_weight = torch.autograd.grad(y, leaves, grad)
    return y.detach(), grad_x, grad_weight


def check_served(
    case: Case, dtype: torch.dtype, inputs: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    """The public function against the oracle; PyTorch's own errors count where it serves.

    Those of contiguous maps: of channels_last ones its bfloat16 gradients may be garbage.
    """
    x, weight, bias, grad = inputs
    actual = results(case, *inputs)
    leaves = x.detach().contiguous().requires_grad_(), weight.detach().requires_grad_()
    y = torch_conv(case, *leaves, bias)
    theirs = y.detach(), *torch.autograd.grad(y, leaves, grad.contiguous())
    problem = problem_of(x, weight.shape, case.geometry, case.groups)
    served = [choose(direction, problem).kernel for direction in DIRECTIONS]
    baselines = [t if kernel == "torch" else None for t, kernel in zip(theirs, served, strict=True)]
    check(case, dtype, actual, inputs, tuple(baselines))


# ------------------------------------------------------------------------------ values


@pytest.mark.parametrize("case", random_cases(60, seed=1), ids=str)
def test_reference_is_the_convolution(case: Case) -> None:
    x, weight, bias, grad = case.tensors()
    leaves = x.requires_grad_(), weight.requires_grad_()
    y = torch_conv(case, *leaves, bias)
    torch.testing.assert_close(reference.conv(x, weight, bias, case.geometry, case.groups), y)
    if y.numel():
        grad_x, grad_weight = torch.autograd.grad(y, leaves, grad)
        torch.testing.assert_close(
            reference.grad_input(grad, weight, case.geometry, case.groups), grad_x
        )
        torch.testing.assert_close(
            reference.grad_weight(grad, x, case.geometry, case.groups), grad_weight
        )


@LAYOUTS
@dtypes()
def test_random_geometries(dtype: torch.dtype, layout: torch.memory_format) -> None:
    for case in random_cases(60, seed=2):
        x, weight, bias, grad = (t.to(dtype) for t in case.tensors())
        x = x.contiguous(memory_format=layout)
        grad = grad.contiguous(memory_format=layout)
        check_served(case, dtype, (x, weight, bias, grad))


# What the networks use, a few channels only: rates of ASPP, also beyond the map.
NAMED = {
    "aspp": Case(1, 1, 40, 24, (33, 33), (3, 3), (1, 1), (12, 12), (12, 12)),
    "beyond the map": Case(2, 1, 16, 9, (17, 33), (3, 3), (1, 1), (36, 36), (36, 36)),
    "depthwise": Case(1, 50, 1, 1, (33, 41), (3, 3), (1, 1), (18, 18), (18, 18)),
    "multiplier": Case(2, 6, 1, 3, (20, 19), (5, 3), (1, 1), (8, 4), (4, 4)),
    "depthwise, stride": Case(1, 33, 1, 1, (30, 31), (3, 3), (2, 2), (2, 2), (2, 2)),
    "large kernel": Case(1, 3, 2, 2, (40, 23), (7, 7), (1, 1), (12, 12), (4, 4)),
    "a row": Case(1, 1, 17, 5, (1, 200), (1, 3), (1, 1), (0, 16), (1, 16)),
    "one channel": Case(3, 1, 1, 1, (9, 70), (3, 3), (1, 1), (2, 2), (2, 2)),
    "1x1": Case(2, 1, 30, 20, (15, 15), (1, 1), (1, 1), (0, 0), (1, 1)),
    "stride of a patch": Case(1, 1, 3, 40, (64, 48), (4, 4), (4, 4), (0, 0), (1, 1)),
}


@LAYOUTS
@dtypes()
@pytest.mark.parametrize("name", NAMED)
def test_named_geometries(name: str, dtype: torch.dtype, layout: torch.memory_format) -> None:
    case = NAMED[name]
    x, weight, bias, grad = (t.to(dtype) for t in case.tensors())
    x = x.contiguous(memory_format=layout)
    check_served(case, dtype, (x, weight, bias, grad))


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("kernel", [(3, 3), (2, 4), (1, 5)])
def test_named_padding(kernel: tuple[int, int], padding: str) -> None:
    x, weight = torch.randn(2, 4, 9, 17).double(), torch.randn(6, 2, *kernel).double()
    expected = F.conv2d(x, weight, None, 1, padding, (2, 3), 2)
    torch.testing.assert_close(dilated_conv2d(x, weight, None, 1, padding, (2, 3), 2), expected)


def test_conv1d() -> None:
    x, weight, bias = torch.randn(2, 4, 50), torch.randn(6, 2, 3), torch.randn(6)
    doubles = x.double(), weight.double(), bias.double()
    options: Any
    for options in ((2, 5, 3, 2), ((1,), "same", (7,), 2), (1, "valid", 20, 2)):
        oracle, baseline = F.conv1d(*doubles, *options), F.conv1d(x, weight, bias, *options)
        assert_as_good_as(dilated_conv1d(x, weight, bias, *options), oracle, baseline, terms=7)


@pytest.mark.parametrize("case", random_cases(40, seed=3), ids=str)
def test_transposed(case: Case) -> None:
    _, weight, _, x = case.tensors()
    bias = torch.randn(case.groups * case.in_channels).double()
    for extra in {(0, 0), (max(case.stride[0], case.dilation[0]) - 1, 0)}:
        options = (case.stride, case.padding, extra, case.groups, case.dilation)
        sizes = [
            (n - 1) * s - 2 * p + d * (k - 1) + e + 1
            for n, s, p, d, k, e in zip(
                x.shape[-2:], case.stride, case.padding, case.dilation, case.kernel, extra,
                strict=True,
            )
        ]  # fmt: skip
        if min(sizes) < 1:
            with pytest.raises(ValueError, match="leave no output"):
                dilated_conv_transpose2d(x, weight, bias, *options)
        else:
            expected = F.conv_transpose2d(x, weight, bias, *options)
            torch.testing.assert_close(
                dilated_conv_transpose2d(x, weight, bias, *options), expected
            )


@LAYOUTS
def test_pyramid(layout: torch.memory_format) -> None:
    x = torch.randn(2, 20, 17, 33).contiguous(memory_format=layout)
    rates, kernels, channels = (1, 6, 12, 40), (1, 3, 3, 3), (7, 12, 16, 5)
    weights = [torch.randn(o, 20, k, k) / 10 for o, k in zip(channels, kernels, strict=True)]
    biases = [torch.randn(7), None, torch.randn(16), torch.randn(5)]
    scale, shift = torch.randn(40), torch.randn(40)

    def by_torch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        branches = [
            F.conv2d(x.to(dtype), w.to(dtype), None if b is None else b.to(dtype), 1, "same", r)
            for w, b, r in zip(weights, biases, rates, strict=True)
        ]
        plain = torch.cat(branches, 1)
        factors, summands = (v.to(dtype)[:, None, None] for v in (scale, shift))
        return plain, (plain * factors + summands).relu()

    y = atrous_pyramid2d(x, weights, biases, rates)
    z = atrous_pyramid2d(x, weights, biases, rates, scale, shift, "relu")
    oracles, baselines = by_torch(torch.float64), by_torch(torch.float32)
    for actual, oracle, baseline in zip((y, z), oracles, baselines, strict=True):
        assert actual.is_contiguous(memory_format=layout)
        assert_as_good_as(actual, oracle, baseline, terms=9 * 20 + 2)


def test_context_module() -> None:
    x = torch.rand(1, 5, 24, 20).double()
    widths, dilations = (5, 10, 8, 5), (1, 2, 16, 1)
    weights, biases, expected = [], [], x
    for i, (c, r) in enumerate(zip(widths, dilations, strict=True)):
        kernel = 1 if i == 3 else 3
        weights.append(torch.randn(c, expected.shape[1], kernel, kernel).double())
        biases.append(torch.randn(c).double())
        expected = F.conv2d(expected, weights[i], biases[i], 1, "same", r)
        expected = expected if i == 3 else expected.relu()
    torch.testing.assert_close(context_module2d(x, weights, biases, dilations), expected)


# ------------------------------------------------------------------------------ layouts, dtypes


@pytest.mark.parametrize("groups", [1, 4])
def test_the_memory_format_is_kept(groups: int) -> None:
    x = torch.randn(2, 4, 9, 8)
    weight = torch.randn(8, 4 // groups, 3, 3, requires_grad=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        given = x.detach().contiguous(memory_format=layout).requires_grad_()
        y = dilated_conv2d(given, weight, padding=2, dilation=2, groups=groups)
        assert y.is_contiguous(memory_format=layout)
        y.sum().backward()
        assert given.grad is not None
        assert given.grad.is_contiguous(memory_format=layout)


def test_any_strides() -> None:
    case = Case(2, 3, 1, 2, (9, 11), (3, 3), (1, 1), (4, 4), (4, 4))
    x, weight, bias, grad = (t.float() for t in case.tensors())
    expected = results(case, x, weight, bias, grad)
    strided = x.transpose(2, 3).contiguous().transpose(2, 3)
    expanded = weight[:, :, :1, :1].expand(-1, -1, 3, 3)
    apart = torch.stack([bias, bias + 1], 1)[:, 0]
    for actual, other in zip(results(case, strided, weight, apart, grad), expected, strict=True):
        assert torch.equal(actual, other)
    same = results(case, x, expanded.contiguous(), bias, grad)
    for actual, other in zip(results(case, x, expanded, bias, grad), same, strict=True):
        assert torch.equal(actual, other)


@pytest.mark.parametrize("groups", [1, 4, 16])
def test_a_map_of_one_image_in_hwc(groups: int) -> None:
    """Its batch has a stride that neither memory format has."""
    x, weight = torch.randn(17, 19, 16).permute(2, 0, 1)[None], torch.randn(16, 16 // groups, 3, 3)
    leaves = x.requires_grad_(), weight.requires_grad_()
    y = dilated_conv2d(*leaves, None, 1, 12, 12, groups)
    grad = torch.randn(17, 19, 16).permute(2, 0, 1)[None]
    actual = y, *torch.autograd.grad(y, leaves, grad)

    def by_torch(dtype: torch.dtype) -> tuple[Tensor, ...]:
        own = [t.detach().to(dtype).requires_grad_() for t in leaves]
        z = F.conv2d(*own, None, 1, 12, 12, groups)
        return z, *torch.autograd.grad(z, own, grad.to(dtype))

    exact, single = by_torch(torch.float64), by_torch(torch.float32)
    for a, oracle, baseline in zip(actual, exact, single, strict=True):
        assert_as_good_as(a, oracle, baseline, terms=17 * 19)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # of those that are dropped
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_traces_keep_no_sizes(layout: torch.memory_format) -> None:
    weight, other = torch.randn(8, 8, 3, 3), torch.randn(1, 8, 14, 11)

    def fn(x: Tensor) -> Tensor:
        return dilated_conv2d(x, weight, None, 1, 6, 6)

    traced = torch.jit.trace(fn, torch.randn(2, 8, 9, 9).contiguous(memory_format=layout))
    baseline = F.conv2d(other, weight, None, 1, 6, 6)
    oracle = F.conv2d(other.double(), weight.double(), None, 1, 6, 6)
    for y in (traced(other), fn(other)):
        assert_as_good_as(y, oracle, baseline, terms=72)


def test_unbatched() -> None:
    x, weight, bias = torch.randn(4, 9, 8), torch.randn(6, 4, 3, 3), torch.randn(6)
    y = dilated_conv2d(x, weight, bias, padding=2, dilation=2)
    assert torch.equal(y, dilated_conv2d(x[None], weight, bias, padding=2, dilation=2)[0])
    y = dilated_conv_transpose2d(x, weight.transpose(0, 1), bias)
    assert y.shape == (6, 11, 10)


@pytest.mark.skipif(native() is None, reason="PyTorch's own sums differ with the threads")
@pytest.mark.parametrize("groups", [1, 6])
def test_the_same_bits_for_any_number_of_threads(groups: int) -> None:
    case = Case(2, groups, 12 // groups, 6 // groups, (33, 31), (3, 3), (1, 1), (9, 9), (9, 9))
    inputs = tuple(t.float() for t in case.tensors())
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            found.append(results(case, *inputs))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_an_empty_batch_has_gradients() -> None:
    weight = torch.randn(6, 4, 3, 3, requires_grad=True)
    y = dilated_conv2d(torch.randn(0, 4, 9, 8), weight, padding=1)
    assert y.shape == (0, 6, 9, 8)
    y.sum().backward()
    assert torch.equal(weight.grad, torch.zeros_like(weight))  # type: ignore[arg-type]


@pytest.mark.parametrize("special", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("groups", [1, 8])
def test_nan_and_infinity_stay_where_they_reach(special: float, groups: int) -> None:
    x, weight = torch.rand(1, 8, 20, 20), torch.rand(8, 8 // groups, 3, 3) + 1
    x[0, 3, 10, 5] = special
    y = dilated_conv2d(x, weight, padding=7, dilation=7, groups=groups)
    expected = F.conv2d(x, weight, None, 1, 7, 7, groups)
    assert torch.equal(y.isfinite(), expected.isfinite())
    assert (~y.isfinite()).any()
    assert torch.equal(y.isnan(), expected.isnan())


# ------------------------------------------------------------------------------ refusals

X, W = torch.zeros(1, 4, 8, 8), torch.zeros(6, 2, 3, 3)
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: dilated_conv2d([1], W), TypeError, "x must be a tensor"),
    (lambda: dilated_conv2d(X.long(), W), TypeError, "x must be a floating-point tensor"),
    (lambda: dilated_conv2d(X, W.double(), groups=2), TypeError, "weight must have the dtype of x"),
    (lambda: dilated_conv2d(X, W), ValueError, "x must have 2 channels"),
    (lambda: dilated_conv2d(X, W, groups=4), ValueError, "groups must divide the 6 rows"),
    (lambda: dilated_conv2d(X, W, groups=0), ValueError, "groups must be at least 1"),
    (lambda: dilated_conv2d(X, W[0], groups=2), ValueError, "weight must be [O, C / groups, kh"),
    (lambda: dilated_conv2d(X, W[:0], groups=2), ValueError, "nothing 0"),
    (lambda: dilated_conv2d(X[0, 0], W, groups=2), ValueError, "x must be [N, C, H, W] or"),
    (lambda: dilated_conv2d(X, W, W[:2, 0, 0, 0], groups=2), ValueError, "bias must be [6]"),
    (lambda: dilated_conv2d(X, W, dilation=4, groups=2), ValueError, "smaller than the kernel"),
    (lambda: dilated_conv2d(X, W, dilation=0, groups=2), ValueError, "dilation must be at least 1"),
    (lambda: dilated_conv2d(X, W, stride=(1, 2, 3), groups=2), TypeError, "stride must be an int"),
    (lambda: dilated_conv2d(X, W, padding=-1, groups=2), ValueError, "padding must be at least 0"),
    (
        lambda: dilated_conv2d(X, torch.zeros(6, 2, 5, 5), None, 1, "same", 2**30, 2),
        ValueError,
        "padding must be below 2^31",
    ),
    (lambda: dilated_conv2d(X, W, padding="full", groups=2), ValueError, "one of same, valid"),
    (
        lambda: dilated_conv2d(X, W, stride=2, padding="same", groups=2),
        ValueError,
        "needs stride",
    ),
    (lambda: dilated_conv2d(X[..., :0], W, padding=4, groups=2), ValueError, "smaller than the k"),
    (lambda: dilated_conv2d(X.to("meta"), W, groups=2), ValueError, "expected meta, where x is"),
    (lambda: dilated_conv1d(X[0], W[..., 0]), ValueError, "x must have 2 channels"),
    (
        lambda: dilated_conv1d(X[0], W[:4, ..., 0], None, (1, 1), groups=4),
        TypeError,
        "stride must be an integer or",
    ),
    (
        lambda: dilated_conv_transpose2d(X, W[:4], output_padding=1),
        ValueError,
        "output_padding must be smaller",
    ),
    (lambda: dilated_conv_transpose2d(X, W), ValueError, "x must have 6 channels"),
    (lambda: dilated_conv_transpose2d(X, W[:4], padding=9), ValueError, "leave no output"),
    (lambda: atrous_pyramid2d(X, W, None, (1,)), TypeError, "weights must be a list"),
    (lambda: atrous_pyramid2d(X, [W], None, (1,)), ValueError, "x must have 2 channels"),
    (lambda: atrous_pyramid2d(X[:, :2], [W], None, (1, 2)), ValueError, "rates must be 1"),
    (lambda: atrous_pyramid2d(X[:, :2], [W], [], (1,)), ValueError, "biases must be 1"),
    (lambda: atrous_pyramid2d(X[:, :2], [W], None, 6), TypeError, "rates must be a list"),
    (lambda: atrous_pyramid2d(X[:, :2], [W], None, (0,)), ValueError, "rates must be at least 1"),
    (
        lambda: atrous_pyramid2d(X[:, :2], [W[..., :2]], None, (1,)),
        ValueError,
        "weights[0] must have an odd kernel",
    ),
    (lambda: atrous_pyramid2d(X[0, :2], [W], None, (1,)), ValueError, "x must be [N, C, H, W]"),
    (
        lambda: atrous_pyramid2d(X[:, :2], [W], None, (1,), scale=torch.ones(5)),
        ValueError,
        "scale must be [6]",
    ),
    (
        lambda: atrous_pyramid2d(X[:, :2], [W], None, (1,), activation="gelu"),
        ValueError,
        "activation must be one of relu",
    ),
    (
        lambda: context_module2d(X[:, :2], [W, W], None, (1, 2)),
        ValueError,
        "the map after layer 0 must have 2 channels for weights[1]",
    ),
    (lambda: context_module2d(X[:, :2], [W], None, (1, 2)), ValueError, "dilations must be 1"),
]


@pytest.mark.parametrize(("run", "error", "message"), REFUSED, ids=[r[2] for r in REFUSED])
def test_refusals(run: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        run()


def test_the_look_up_tells_arguments_apart() -> None:
    """What would be refused is refused after a like call that was not."""
    x, w = torch.randn(1, 4, 9, 9), torch.randn(4, 4, 3, 3)
    pair = collections.namedtuple("pair", "h w")
    dilated_conv2d(x, w, padding=pair(2, 2))
    with pytest.raises(TypeError, match="padding must be an integer"):
        dilated_conv2d(x, w, padding=pair(2.0, 2.0))
    atrous_pyramid2d(x, [w, w], None, (2, 3))
    with pytest.raises(ValueError, match="biases must be 2"):
        atrous_pyramid2d(x, [w, w], [], (2, 3))
    assert torch.equal(dilated_conv2d(x, w, padding=(2,)), dilated_conv2d(x, w, padding=2))
