"""The raw Winograd operators: the proven bound of their error, any geometry, what threads change.

With n roundings on the way of every product, |error| <= n u / (1 - n u) E, where E is the algorithm
with the magnitudes of all numbers, of the matrices, too (kernels/dilated_conv/README.md).
"""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import segfast.ops  # noqa: F401  (defines the operators)
from segfast import _native
from segfast.kernels.dilated_conv import reference
from segfast.testing import assert_as_good_as, poison_empty
from tests.kernels.pages import at_the_end, guarded, in_a_process
from tests.kernels.test_dilated_conv_dense import Problem, same_size

TILE, POINTS = 4, 6
A, B = 5 / 8, 3 / 2


def polynomial(roots: Tensor) -> Tensor:
    """Coefficients of the product of all (x - root), the lowest power first."""
    product = torch.ones(1, dtype=torch.float64)
    for root in roots:
        nothing = product.new_zeros(1)
        product = torch.cat([nothing, product]) - root * torch.cat([product, nothing])
    return product


def matrices() -> tuple[Tensor, Tensor, Tensor]:
    """B^T [6, 6], G [6, 3], A^T [4, 6] from the points, infinity the last."""
    points = torch.tensor([0, A, -A, B, -B], dtype=torch.float64)
    source = torch.zeros(POINTS, POINTS, dtype=torch.float64)
    weight = torch.zeros(POINTS, 3, dtype=torch.float64)
    result = torch.zeros(TILE, POINTS, dtype=torch.float64)
    for k, point in enumerate(points):
        others = torch.cat([points[:k], points[k + 1 :]])
        source[k, :-1] = polynomial(others)
        weight[k] = point ** torch.arange(3) / (point - others).prod()
        result[:, k] = point ** torch.arange(TILE)
    source[-1], weight[-1, 2], result[-1, -1] = polynomial(points), 1, 1
    return source, weight, result


def places(results: int, rate: int, padding: int) -> tuple[Tensor, Tensor]:
    """Of every tile along an axis: its results [tiles, 4] and its sources [tiles, 6]."""
    firsts = [at for f in range(min(rate, results)) for at in range(f, results, TILE * rate)]
    first = torch.tensor(firsts)[:, None]
    sources = first - padding + rate * torch.arange(POINTS)
    return first + rate * torch.arange(TILE), sources


def winograd(
    x: Tensor, weight: Tensor, size: tuple[int, int], problem: Problem, magnitudes: bool
) -> Tensor:
    """The algorithm in float64, tile by tile: [N, C, H, W], [O, C, 3, 3] -> [N, O, *size]."""
    source, kernel, result = matrices()
    if magnitudes:
        x, weight = x.abs(), weight.abs()
        source, kernel, result = source.abs(), kernel.abs(), result.abs()
    (rows, above), (columns, left) = (
        places(n, r, p) for n, r, p in zip(size, problem.dilation, problem.padding, strict=True)
    )
    above, left = (
        torch.where((at >= 0) & (at < n), at, n)
        for at, n in zip((above, left), x.shape[2:], strict=True)
    )
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))  # a zero for what lies beyond the map
    tiles = padded[:, :, above[:, None, :, None], left[None, :, None, :]]
    u = torch.einsum("is,ocst,jt->ocij", kernel, weight, kernel)
    v = torch.einsum("ik,ncabkl,jl->ncabij", source, tiles, source)
    y = torch.einsum("ui,ocij,ncabij,vj->noabuv", result, u, v, result)
    out = y.new_zeros(x.shape[0], weight.shape[0], rows.max() + 1, columns.max() + 1)
    out[:, :, rows[:, None, :, None], columns[None, :, None, :]] = y
    return out[:, :, : size[0], : size[1]]


def mirrored(problem: Problem) -> Problem:
    """The convolution of g that the input's gradient is."""
    height, width = (2 * r - p for r, p in zip(problem.dilation, problem.padding, strict=True))
    return replace(problem, padding=(height, width))


def both(problem: Problem, x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    """y and grad_x by the kernels."""
    strides = (*problem.stride, *problem.padding, *problem.dilation, 1)
    ops = torch.ops.segfast
    return [
        ops._dilated_conv_winograd(x, weight, bias, *problem.outputs, *strides),
        ops._dilated_conv_winograd_grad_input(grad, weight, *problem.size, *strides),
    ]


def check(problem: Problem) -> None:
    x, weight, bias, grad = problem.tensors(torch.float32)
    with poison_empty():
        actual = both(problem, *(guarded(t) for t in (x, weight, bias, grad)))
    truths = problem.expected(*(t.double() for t in (x, weight, bias, grad)))
    rounded = problem.expected(x, weight, bias, grad)
    turned = weight.double().transpose(0, 1).flip(2, 3)
    sizes = (
        winograd(x.double(), weight.double(), problem.outputs, problem, True)
        + bias.double().abs()[:, None, None],
        winograd(grad.double(), turned, problem.size, mirrored(problem), True),
    )
    for name, got, truth, size, once, channels in zip(
        ("y", "grad_x"), actual, truths, sizes, rounded, (x.shape[1], grad.shape[1]), strict=False
    ):
        label = f"{name} of {problem}"
        # Roundings: a product with three sums of four, twice, for B; a number, a product and two
        # sums, twice, for G; C products and sums; a product and four sums, twice, for A; the bias.
        n = 8 + 8 + channels + 10 + 1
        unit = torch.finfo(torch.float32).eps / 2
        allowed = n * unit / (1 - n * unit) * size
        error = (got.double() - truth).abs()
        assert bool((error <= allowed).all()), f"{label}: {(error / allowed).max():.3g}"
        assert_as_good_as(got, truth, once, terms=n, magnitude=size, label=label)


def random_problems(count: int, seed: int) -> list[Problem]:
    draw = random.Random(seed)

    def pair(least: int, most: int) -> tuple[int, int]:
        return draw.randint(least, most), draw.randint(least, most)

    return [
        Problem(
            batch=draw.choice((1, 1, 2, 3)),
            in_channels=draw.choice((1, 2, 7, 13, 33)),
            out_channels=draw.choice((1, 3, 8, 9, 17, 40)),
            size=pair(1, 26),
            outputs=pair(1, 26),
            padding=pair(0, draw.choice((2, 9))),
            dilation=pair(1, draw.choice((2, 5, 40))),
        )
        for _ in range(count)
    ]


SOME = (
    same_size((70, 40), (33, 33), 2),
    same_size((530, 35), (9, 14), 4),  # several sums over channels
    same_size((600, 2), (33, 31), 2, batch=5),  # several slabs
    same_size((5, 3), (90, 92), 1),  # several parts
    same_size((4, 3), (5, 3), 9),  # maps smaller than the rate
)


def test_the_algorithm_is_a_convolution() -> None:
    for problem in (*random_problems(8, seed=5), same_size((3, 2), (17, 9), 4)):
        x, weight, *_ = (t.double() for t in problem.tensors(torch.float32))
        y = winograd(x, weight, problem.outputs, problem, False)
        expected = reference.conv(x, weight, None, problem.geometry, 1)
        torch.testing.assert_close(y, expected, rtol=0, atol=1e-11)  # 200 terms of 1e-16, times 175


@pytest.mark.parametrize("seed", range(2))
def test_any_geometry(instruction_set: str, seed: int) -> None:
    for problem in random_problems(20, seed):
        check(problem)


@pytest.mark.parametrize("problem", SOME, ids=str)
def test_any_size(instruction_set: str, problem: Problem) -> None:
    check(problem)


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("problem", SOME[1:4], ids=str)
def test_threads_change_no_bit(instruction_set: str, problem: Problem) -> None:
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(both(problem, *problem.tensors(torch.float32)))
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


def test_what_is_not_finite_spoils_its_tiles_only(instruction_set: str) -> None:
    problem = same_size((6, 17), (19, 23), 2)
    x, weight, bias, grad = problem.tensors(torch.float32)
    clean = both(problem, x, weight, bias, grad)[0]
    x[0, 1, 9, 4], x[0, 2, 9, 4] = torch.nan, torch.inf
    spoilt = both(problem, x, weight, bias, grad)[0]
    exact = reference.conv(x, weight, bias, problem.geometry, 1)
    tiles = winograd(x.isnan().double(), torch.ones_like(weight).double(), (19, 23), problem, True)
    assert not spoilt[~exact.isfinite()].isfinite().any()
    assert torch.equal(spoilt[tiles == 0], clean[tiles == 0])
    assert 0 < int((tiles > 0).sum()) <= 17 * 2 * 2 * TILE**2


def test_no_bias_and_no_image(compiled_kernels: None) -> None:
    problem = same_size((3, 4), (5, 6), 2)
    x, weight, _, _ = problem.tensors(torch.float32)
    arguments = (5, 6, 1, 1, 2, 2, 2, 2, 1)
    without = torch.ops.segfast._dilated_conv_winograd(x, weight, None, *arguments)
    zero = torch.ops.segfast._dilated_conv_winograd(x, weight, torch.zeros(4), *arguments)
    assert torch.equal(without, zero)
    empty = replace(problem, batch=0)
    y, grad_x = both(empty, *empty.tensors(torch.float32))
    assert y.shape == (0, 4, 5, 6)
    assert grad_x.shape == (0, 3, 5, 6)


def read_to_the_end() -> None:
    for isa in _native.instruction_sets():
        with _native.use_instruction_set(isa):
            for problem in (*random_problems(15, seed=9), same_size((130, 20), (9, 33), 2)):
                both(problem, *(at_the_end(t) for t in problem.tensors(torch.float32)))


def test_nothing_is_read_behind_the_tensors(compiled_kernels: None) -> None:
    in_a_process(__name__, "read_to_the_end()")


def test_refusals(compiled_kernels: None) -> None:
    problem = same_size((4, 6), (5, 5), 1)
    x, weight, bias, grad = problem.tensors(torch.float32)

    def refuses(message: str, name: str, *arguments: Any) -> None:
        with pytest.raises(RuntimeError, match=message):
            getattr(torch.ops.segfast, f"_dilated_conv_winograd{name}")(*arguments)

    rest = (5, 5, 1, 1, 1, 1, 1, 1)
    refuses("no groups, got 2", "", x, weight, bias, *rest, 2)
    refuses("float32", "", x.double(), weight.double(), bias.double(), *rest, 1)
    refuses("3x3 convolutions of stride 1, got 3 taps, stride 2", "", x, weight, bias,
            5, 5, 2, 1, 1, 1, 1, 1, 1)  # fmt: skip
    refuses("got 2 taps", "", x, weight[..., :2].clone(), bias, *rest, 1)
    refuses("bias must have 6 elements, got 5", "", x, weight, bias[:5].clone(), *rest, 1)
    refuses("channels of grad", "_grad_input", grad[:, :3].clone(), weight, *rest, 1)
