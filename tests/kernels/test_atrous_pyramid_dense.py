"""The pyramid's raw operator, and when atrous_pyramid2d calls it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from segfast import _native
from segfast.kernels.dilated_conv import reference
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops import _dilated_conv_fused, atrous_pyramid2d
from segfast.testing import assert_as_good_as, dtypes, poison_empty
from tests.kernels.pages import guarded

KERNELS, RATES, WIDTHS = ((1, 1), (3, 3), (3, 5), (3, 3)), (1, 2, 6, 40), (5, 8, 17, 3)


def pyramid_problem(channels: int, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """x [2, C, 14, 19], bias, scale and shift [33] and the weights."""
    generator = torch.Generator().manual_seed(1)
    shapes = ((2, channels, 14, 19), (33,), (33,), (33,))
    kernels = [(o, channels, *kernel) for o, kernel in zip(WIDTHS, KERNELS, strict=True)]
    return tuple(torch.randn(s, generator=generator).to(dtype) for s in (*shapes, *kernels))


def pyramid_reference(
    x: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, *weights: Tensor
) -> Tensor:
    size = (x.shape[2], x.shape[3])
    maps = []
    for weight, (kh, kw), rate in zip(weights, KERNELS, RATES, strict=True):
        geometry = Geometry.same(size, (kh, kw), rate)
        maps.append(reference.conv(x, weight, None, geometry, 1))
    y = torch.cat(maps, 1) + bias[:, None, None]
    return (y * scale[:, None, None] + shift[:, None, None]).relu()


@dtypes()
@pytest.mark.parametrize("channels", [5, 131])
@pytest.mark.parametrize("isa", _native.instruction_sets() or ["none compiled"])
def test_pyramid(isa: str, channels: int, dtype: torch.dtype, compiled_kernels: None) -> None:
    inputs = pyramid_problem(channels, dtype)
    x, bias, scale, shift, *weights = (guarded(t) for t in inputs)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    factors = scale.to(sums), shift.to(sums)
    with poison_empty(), _native.use_instruction_set(isa):
        y = torch.ops.segfast._atrous_pyramid_dense(x, weights, bias, RATES, *factors, True)
    truth = pyramid_reference(*(t.double() for t in inputs))
    size = pyramid_reference(*(t.double().abs() for t in inputs))
    baseline = pyramid_reference(*(t if t.itemsize > 2 else t.float() for t in inputs))
    assert_as_good_as(y, truth, baseline.to(dtype), terms=15 * channels, magnitude=size)


def test_pyramid_without_anything(compiled_kernels: None) -> None:
    x, _, _, _, *weights = pyramid_problem(7, torch.float64)
    y = torch.ops.segfast._atrous_pyramid_dense(x, weights, None, RATES, None, None, False)
    one, zero = torch.ones(33, dtype=torch.float64), torch.zeros(33, dtype=torch.float64)
    both = pyramid_reference(x, zero, one, zero, *weights)
    torch.testing.assert_close(y.relu(), both)
    assert (y < 0).any()


@pytest.mark.usefixtures("restored_threads")
def test_threads_change_no_bit_of_a_pyramid(compiled_kernels: None) -> None:
    x, bias, scale, shift, *weights = pyramid_problem(140, torch.float32)
    results = []
    for threads in (1, 2, 3, 4):
        torch.set_num_threads(threads)
        arguments = (x, weights, bias, RATES, scale, shift, True)
        results.append(torch.ops.segfast._atrous_pyramid_dense(*arguments))
    assert all(torch.equal(results[0], result) for result in results[1:])


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize(
    ("shape", "outputs", "kernel"),
    [((1, 300, 300, 24), 512, 1), ((2, 100, 60, 400), 4, 3)],
    ids=["steps, strips of one band", "bands"],
)
def test_a_branch_has_the_same_bits_by_itself(
    shape: tuple[int, ...], outputs: int, kernel: int, compiled_kernels: None
) -> None:
    x, size = torch.randn(shape, generator=torch.Generator().manual_seed(2)), shape[2:]
    weights = [torch.randn(outputs, shape[1], kernel, kernel) for _ in range(2)]
    torch.set_num_threads(3)
    y = torch.ops.segfast._atrous_pyramid_dense(x, weights, None, (1, 5), None, None, False)
    torch.set_num_threads(2)
    for weight, rate, branch in zip(weights, (1, 5), y.chunk(2, 1), strict=True):
        padding = rate * (kernel // 2)
        geometry = (1, 1, padding, padding, rate, rate, 1)
        alone = torch.ops.segfast._dilated_conv_dense(x, weight, None, *size, *geometry)
        assert torch.equal(branch, alone)


def test_pyramid_keeps_nan(compiled_kernels: None) -> None:
    x, bias, scale, shift, *weights = pyramid_problem(4, torch.float32)
    x[0, 1, 3, 3] = torch.nan
    y = torch.ops.segfast._atrous_pyramid_dense(x, weights, bias, RATES, scale, shift, True)
    expected = pyramid_reference(*(t.double() for t in (x, bias, scale, shift, *weights)))
    assert torch.equal(y.isnan(), expected.isnan())
    assert y.isnan().any()


def test_pyramid_refusals(compiled_kernels: None) -> None:
    x, bias, scale, shift, *weights = pyramid_problem(4, torch.float32)
    pyramid = torch.ops.segfast._atrous_pyramid_dense
    with pytest.raises(RuntimeError, match="every branch must have a rate"):
        pyramid(x, weights, bias, RATES[:3], scale, shift, True)
    with pytest.raises(RuntimeError, match="odd kernels"):
        pyramid(x, [torch.randn(3, 4, 2, 2)], None, [1], None, None, True)
    with pytest.raises(RuntimeError, match="scale must be Float, got Double"):
        pyramid(x, weights, bias, RATES, scale.double(), shift, True)
    with pytest.raises(RuntimeError, match="bias must have 33 elements, got 32"):
        pyramid(x, weights, bias[:32].clone(), RATES, scale, shift, True)


# ------------------------------------------------------------------------------ the public function


@pytest.fixture
def calls(
    any_processor: None, compiled_kernels: None, monkeypatch: pytest.MonkeyPatch
) -> list[bool]:
    """Of every pyramid, whether the operator computed it."""
    seen: list[bool] = []
    original = _dilated_conv_fused.pyramid

    def spy(*arguments: object) -> Tensor | None:
        y = original(*arguments)  # type: ignore[arg-type]
        seen.append(y is not None)
        return y

    monkeypatch.setattr(_dilated_conv_fused, "pyramid", spy)
    return seen


def pyramid(x: Tensor, bias: Tensor, scale: Tensor, shift: Tensor, *weights: Tensor) -> Tensor:
    biases = [*bias.split(WIDTHS)[:-1], None]
    return atrous_pyramid2d(x, weights, biases, RATES, scale, shift, "relu")


@dtypes()
def test_fused_or_composed_the_values_are_the_same(calls: list[bool], dtype: torch.dtype) -> None:
    inputs = pyramid_problem(140, dtype)
    y = pyramid(*inputs)
    composed = pyramid(inputs[0].requires_grad_(), *inputs[1:])
    assert calls == [True, False]
    without_last = torch.cat([inputs[1][:30], inputs[1].new_zeros(3)])
    exact = [t.detach().double() for t in (inputs[0], without_last, *inputs[2:])]
    sizes = pyramid_reference(*(t.abs() for t in exact))
    truth = pyramid_reference(*exact)
    assert_as_good_as(y, truth, composed.detach(), terms=15 * 140, magnitude=sizes)
    assert y.is_contiguous()
    assert y.dtype == composed.dtype


def test_it_composes_where_it_must(calls: list[bool]) -> None:
    x, bias, scale, shift, *weights = pyramid_problem(6, torch.float32)
    pyramid(x, bias, scale.requires_grad_(), shift, *weights)
    pyramid(x.to(memory_format=torch.channels_last), bias, scale.detach(), shift, *weights)
    pyramid(x[:0], bias, scale.detach(), shift, *weights)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        pyramid(*(mode.from_tensor(t.detach()) for t in (x, bias, scale, shift, *weights)))
    few, *others = pyramid_problem(1, torch.float32)  # PyTorch is faster
    pyramid(few, *others)
    assert calls == [False] * 5


def test_autocast(calls: list[bool]) -> None:
    inputs = pyramid_problem(6, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = pyramid(*inputs)
    assert calls == [True]
    x, bias, scale, shift, *weights = inputs
    weights = [weight.bfloat16() for weight in weights]
    assert torch.equal(y, pyramid(x.bfloat16(), bias.bfloat16(), scale, shift, *weights))


@dtypes(torch.float32, torch.bfloat16)
def test_factors_of_another_dtype(calls: list[bool], dtype: torch.dtype) -> None:
    x, bias, scale, shift, *weights = pyramid_problem(140, dtype)
    factors = scale.double(), shift.float()
    y = pyramid(x, bias, *factors, *weights)
    composed = pyramid(x.requires_grad_(), bias, *factors, *weights)
    assert calls == [True, False]
    assert y.dtype == composed.dtype == dtype
    without_last = torch.cat([bias[:30], bias.new_zeros(3)])
    exact = [t.detach().double() for t in (x, without_last, *factors, *weights)]
    sizes = pyramid_reference(*(t.abs() for t in exact))
    truth = pyramid_reference(*exact)
    assert_as_good_as(y, truth, composed.detach(), terms=15 * 140, magnitude=sizes)


def test_compile_and_vmap(calls: list[bool]) -> None:
    inputs = pyramid_problem(6, torch.float32)
    y = pyramid(*inputs)
    compiled = torch.compile(pyramid, backend="aot_eager", fullgraph=True)(*inputs)
    torch.testing.assert_close(compiled, y)
    x, *rest = inputs
    mapped = torch.func.vmap(lambda image: pyramid(image[None], *rest)[0])(x)
    torch.testing.assert_close(mapped, y)
