"""Dilated convolution on a GPU: as good as the rounded oracle, which is computed on the CPU.

The kernels' own tests, which need no GPU: tests/kernels/test_triton.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from segfast.kernels.dilated_conv.triton_configurations import CONTEXT
from segfast.ops import (
    _dilated_conv_fused,
    _dilated_conv_kernels,
    _dilated_conv_plan,
    _dilated_conv_prepared,
    context_module2d,
    dilated_conv2d,
)
from segfast.ops._dilated_conv_cuda import launchers, served_by
from segfast.ops._dilated_conv_kernels import choose, problem
from segfast.ops._dilated_conv_plan import DIRECTIONS, Strides
from segfast.testing import assert_as_good_as, dtypes
from tests.ops import gpu
from tests.ops.dilated_conv_cases import Case, check, random_cases

pytestmark = gpu.TRITON
DEVICE = "cuda"


@pytest.fixture(autouse=True)
def exact_cudnn() -> Iterator[None]:
    """What PyTorch serves is not rounded to tf32, either."""
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


@pytest.fixture(autouse=True)
def every_kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton serves all that it can compute, also where the plan prefers PyTorch."""

    def forget() -> None:
        _dilated_conv_kernels.SERVING.clear()
        _dilated_conv_prepared.CONV.memory.clear()
        _dilated_conv_prepared.TRANSPOSED.memory.clear()
        _dilated_conv_fused.forget()

    with monkeypatch.context() as patch:
        patch.setattr(_dilated_conv_plan, "torch_may_beat_triton", lambda problem: None)
        forget()
        yield
    forget()


HALF = (torch.float16, torch.bfloat16)


def same(
    batch: int, channels: tuple[int, int], size: tuple[int, int], rate: int, groups: int = 1
) -> Case:
    """3x3, as large as its input."""
    pair = (rate, rate)
    return Case(batch, groups, *channels, size, (3, 3), (1, 1), pair, pair)


# Every tile of the table, pieces or none; odd channels; rates beyond the map; strides.
DENSE = (
    same(1, (512, 128), (33, 33), 12),
    same(2, (512, 512), (33, 31), 2),
    same(4, (64, 64), (65, 65), 24),
    same(1, (100, 21), (40, 50), 60),
    same(2, (21, 21), (64, 64), 16),
    same(1, (32, 48), (1, 200), 4),
    Case(2, 1, 40, 70, (31, 33), (3, 2), (2, 1), (5, 9), (3, 7)),
    Case(1, 1, 48, 33, (17, 19), (5, 7), (1, 1), (12, 3), (2, 3)),
)
DEPTHWISE = (
    same(2, (1, 1), (33, 33), 12, groups=512),
    same(1, (1, 1), (65, 63), 36, groups=77),
    Case(2, 64, 1, 1, (31, 30), (5, 5), (2, 3), (4, 6), (2, 3)),
)
IDS = {"ids": str}


def layouts() -> pytest.MarkDecorator:
    return pytest.mark.parametrize("channels_last", [False, True])


def inputs(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, weight, bias, grad on the CPU."""
    x, weight, bias, grad = (t.to(dtype) for t in case.tensors())
    return x, weight, bias, grad


def laid_out(x: Tensor, channels_last: bool) -> Tensor:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return x.to(DEVICE).contiguous(memory_format=layout)


def run(
    case: Case, given: tuple[Tensor, Tensor, Tensor, Tensor], channels_last: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """The three raw operators."""
    x, grad = laid_out(given[0], channels_last), laid_out(given[3], channels_last)
    weight, bias = given[1].to(DEVICE), given[2].to(DEVICE)
    ops = torch.ops.segfast
    return (
        ops._dilated_conv(x, weight, bias, *case.outputs, *case.strides),
        ops._dilated_conv_grad_input(grad, weight, *case.size, *case.strides),
        ops._dilated_conv_grad_weight(grad, x, *case.kernel, *case.strides),
    )


def serving(case: Case, dtype: torch.dtype) -> list[str]:
    x = torch.empty((case.batch, 1, 1, 1), dtype=dtype, device=DEVICE)
    shape = (case.groups * case.out_channels, case.in_channels)
    asked = problem(x, shape, case.geometry, case.groups)
    return [choose(direction, asked).kernel for direction in DIRECTIONS]


def test_the_kernels_serve() -> None:
    assert "triton_dense.py" in served_by()
    assert serving(DENSE[0], torch.bfloat16) == ["triton"] * 3
    assert serving(DEPTHWISE[2], torch.float16) == ["triton"] * 3
    assert serving(DENSE[6], torch.float32) == ["triton", "torch", "triton"]  # a stride
    assert serving(DENSE[0], torch.float64) == ["torch"] * 3


@layouts()
@dtypes(torch.float32, *HALF)
@pytest.mark.parametrize("case", DENSE + DEPTHWISE, **IDS)
def test_raw_operators(case: Case, dtype: torch.dtype, channels_last: bool) -> None:
    given = inputs(case, dtype)
    check(case, dtype, run(case, given, channels_last), given)


@layouts()
@pytest.mark.parametrize("case", random_cases(60, seed=11), **IDS)
def test_random(case: Case, channels_last: bool) -> None:
    given = inputs(case, torch.float32)
    check(case, torch.float32, run(case, given, channels_last), given)


@dtypes(torch.float32, torch.bfloat16)
@pytest.mark.parametrize("groups", [1, 19])
def test_sanitize_odd_maps(groups: int, dtype: torch.dtype) -> None:
    """What compute-sanitizer watches: every kernel of a single convolution."""
    channels = (19, 21) if groups == 1 else (1, 1)
    case = Case(2, groups, *channels, (13, 17), (3, 3), (1, 1), (4, 5), (4, 5))
    given = inputs(case, dtype)
    check(case, dtype, run(case, given, channels_last=groups == 19), given)


@dtypes(torch.float32, *HALF)
@pytest.mark.parametrize("case", [DENSE[0], DENSE[1], DEPTHWISE[0]], **IDS)
def test_twenty_times_the_same_bits(case: Case, dtype: torch.dtype) -> None:
    given = inputs(case, dtype)
    first = run(case, given, True)
    for _ in range(19):
        for a, b in zip(first, run(case, given, True), strict=True):
            assert torch.equal(a, b)


def with_gradients(x: Tensor, weight: Tensor, bias: Tensor, grad: Tensor) -> list[Tensor]:
    given = [t.detach().requires_grad_() for t in (x, weight, bias)]
    y = dilated_conv2d(*given, padding=6, dilation=6)
    return [y, *torch.autograd.grad(y, given, grad)]


@layouts()
@dtypes(torch.float32, torch.bfloat16)
def test_public_function(dtype: torch.dtype, channels_last: bool) -> None:
    case = same(2, (24, 40), (20, 25), 6)
    x, weight, bias, grad = inputs(case, dtype)
    maps = laid_out(x, channels_last), laid_out(grad, channels_last)
    actual = with_gradients(maps[0], weight.to(DEVICE), bias.to(DEVICE), maps[1])
    assert actual[0].is_contiguous(
        memory_format=torch.channels_last if channels_last else torch.contiguous_format
    )
    check(case, dtype, (actual[0], actual[1], actual[2]), (x, weight, bias, grad))
    total = grad.double().sum((0, 2, 3))
    assert_as_good_as(actual[3], total, total.to(dtype), terms=1000, magnitude=1000)


def same_sized(x: Tensor, weight: Tensor, bias: Tensor | None, rate: int) -> Tensor:
    return torch.nn.functional.conv2d(x, weight, bias, padding="same", dilation=rate)


@dtypes(torch.float32, *HALF)
@pytest.mark.parametrize("channels", [(256, 256, 256), (21, 21, 5)], ids=str)
def test_pyramid(channels: tuple[int, ...], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    rates, kernels = (1, 6, 40), (1, 3, 3)
    x = torch.randn(2, 128, 33, 35, generator=generator).to(dtype)
    weights = [
        torch.randn(o, 128, k, k, generator=generator).to(dtype)
        for o, k in zip(channels, kernels, strict=True)
    ]
    bias, scale, shift = torch.randn(3, sum(channels), generator=generator).to(dtype).unbind()

    def formula(wide: torch.dtype) -> Tensor:
        branches = [
            same_sized(x.to(wide), w.to(wide), None, r) for w, r in zip(weights, rates, strict=True)
        ]
        b, a, s = (t.to(wide)[:, None, None] for t in (bias, scale, shift))
        return ((torch.cat(branches, 1) + b) * a + s).relu()

    found = launchers().pyramid(
        x.to(DEVICE),
        [w.to(DEVICE) for w in weights],
        bias.to(DEVICE),
        rates,
        scale.to(DEVICE),
        shift.to(DEVICE),
        True,
    )
    single = formula(torch.float32).to(dtype)
    assert_as_good_as(found, formula(torch.float64), single, terms=9 * 128)


def chain(classes: int, dtype: torch.dtype, batch: int = 2) -> tuple[Any, ...]:
    """x, weights, biases and rates of a context module, on the CPU."""
    torch.manual_seed(0)
    rates, kernels = (1, 1, 2, 4, 8, 16, 1, 1), (3,) * 7 + (1,)
    x = torch.rand(batch, classes, 64, 64).to(dtype)
    weights = [torch.randn(classes, classes, k, k).div(10).to(dtype) for k in kernels]
    return x, weights, [torch.randn(classes).to(dtype) for _ in kernels], rates


def on_gpu(x: Tensor, weights: list[Tensor], biases: list[Tensor], rates: Any) -> tuple[Any, ...]:
    return x.to(DEVICE), [w.to(DEVICE) for w in weights], [b.to(DEVICE) for b in biases], rates


def context_formula(
    dtype: torch.dtype, rounded: torch.dtype, x: Tensor, weights: Any, biases: Any, rates: Any
) -> Tensor:
    """In `dtype`, maps between layers and at the end in `rounded`."""
    y = x.to(dtype)
    for i, (w, b, r) in enumerate(zip(weights, biases, rates, strict=True)):
        y = same_sized(y.relu() if i else y, w.to(dtype), b.to(dtype), r).to(rounded).to(dtype)
    return y.to(rounded)


LAUNCHES = ("one_launch", "layer_by_layer")


@dtypes(torch.float32, *HALF)
@pytest.mark.parametrize("how", LAUNCHES)
@pytest.mark.parametrize("classes", [21, 64])
def test_context_module(classes: int, how: str, dtype: torch.dtype) -> None:
    given = chain(classes, dtype)
    found = getattr(launchers(), how)(*on_gpu(*given))
    assert found is not None
    truth = context_formula(torch.float64, torch.float64, *given)
    single = context_formula(torch.float32, dtype, *given)
    assert_as_good_as(found, truth, single, terms=8 * 9 * classes)


@pytest.mark.parametrize("how", LAUNCHES)
def test_sanitize_layers(how: str) -> None:
    """The barrier between layers, epilogues."""
    given = chain(5, torch.bfloat16, batch=1)
    found = getattr(launchers(), how)(*on_gpu(*given))
    truth = context_formula(torch.float64, torch.float64, *given)
    single = context_formula(torch.float32, torch.bfloat16, *given)
    assert_as_good_as(found, truth, single, terms=8 * 9 * 5)


@dtypes(torch.float32, *HALF)
def test_every_configuration_of_one_launch(dtype: torch.dtype) -> None:
    """All programs resident, whatever their tiles: a launch of too many is refused by CUDA."""
    given = chain(40, dtype, batch=16)
    device, expected = on_gpu(*given), context_formula(torch.float32, dtype, *given)
    truth = context_formula(torch.float64, torch.float64, *given)
    for tiles in CONTEXT[str(dtype).removeprefix("torch.")]:
        found = launchers().one_launch(*device, tiles)
        assert_as_good_as(found, truth, expected, terms=8 * 360, label=str(tiles))


def test_one_launch_twenty_times() -> None:
    """Each program waits for all others before every layer: else a map is read too early."""
    device = on_gpu(*chain(21, torch.bfloat16, batch=8))
    first = launchers().one_launch(*device)
    for _ in range(19):
        assert torch.equal(first, launchers().one_launch(*device))
    streams = [torch.cuda.Stream() for _ in range(2)]  # each launch has a counter of its own
    torch.cuda.synchronize()
    results = []
    for i in range(20):
        with torch.cuda.stream(streams[i % 2]):
            results.append(launchers().one_launch(*device))
    torch.cuda.synchronize()
    assert all(torch.equal(first, result) for result in results)


def test_one_launch_in_a_graph() -> None:
    x, *rest = on_gpu(*chain(21, torch.bfloat16))
    context_module2d(x, *rest)  # compiles, and copies tables to the device
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        recorded = context_module2d(x, *rest)
    for _ in range(3):  # the counter starts at 0 each time
        x.copy_(torch.rand_like(x))
        graph.replay()
        assert torch.equal(recorded, context_module2d(x, *rest))


def test_the_current_stream_is_used() -> None:
    case = same(2, (64, 64), (33, 33), 6)
    x, weight, bias, _ = (t.to(DEVICE) for t in inputs(case, torch.bfloat16))
    raw = torch.ops.segfast._dilated_conv
    expected = raw(x, weight, bias, *case.outputs, *case.strides)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = torch.zeros_like(x).copy_(x)  # after the sleep
        y = raw(late, weight, bias, *case.outputs, *case.strides)
    stream.synchronize()
    assert torch.equal(y, expected)


@pytest.mark.parametrize("channels", [(256, 64), (24, 40)], ids=str)
def test_graphs_are_recorded(channels: tuple[int, int]) -> None:
    case = same(1, channels, (33, 29), 6)
    x, weight, bias, grad = (t.to(DEVICE) for t in inputs(case, torch.bfloat16))
    with_gradients(x, weight, bias, grad)  # compiles, and copies tables to the device
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        with_gradients(x, weight, bias, grad)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = with_gradients(x, weight, bias, grad)
    for _ in range(2):
        with torch.no_grad():
            x.copy_(torch.randn_like(x))
            weight.copy_(torch.randn_like(weight))
        graph.replay()
        expected = with_gradients(x, weight, bias, grad)
        for found, wanted in zip(recorded, expected, strict=True):
            assert torch.equal(found, wanted)


def test_new_sizes_are_refused_in_a_graph() -> None:
    case = same(1, (16, 16), (11, 23), 5)  # nowhere else in this file
    x, weight, bias, _ = (t.to(DEVICE) for t in inputs(case, torch.float32))
    graph = torch.cuda.CUDAGraph()
    with pytest.raises(RuntimeError, match="call it once before"), torch.cuda.graph(graph):
        launchers().conv(x, weight, bias, case.geometry, Strides(*case.strides))


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_by_inductor(mode: str) -> None:
    case = same(2, (16, 32), (27, 26), 6)  # nowhere else: its table is made while warming up
    x, weight, bias, _ = (t.to(DEVICE) for t in inputs(case, torch.float32))

    def step(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return dilated_conv2d(x.sin(), weight, bias, padding=6, dilation=6).cos()

    compiled = torch.compile(step, fullgraph=True, mode=mode)
    for _ in range(3):
        found = compiled(x, weight, bias).clone()
    torch.testing.assert_close(found, step(x, weight, bias))


@gpu.TWO
def test_another_device_than_the_current_one() -> None:
    case = same(1, (24, 24), (20, 20), 6)
    x, weight, bias, _ = inputs(case, torch.bfloat16)
    results = []
    for device in ("cuda:0", "cuda:1"):
        given = (t.to(device) for t in (x, weight, bias))
        y = torch.ops.segfast._dilated_conv(*given, *case.outputs, *case.strides)
        assert y.device == torch.device(device)
        results.append(y.cpu())
    assert torch.equal(*results)
    assert torch.cuda.current_device() == 0


@pytest.mark.large
def test_maps_of_more_than_2_to_the_31_elements() -> None:
    if torch.cuda.mem_get_info()[0] < 30e9:
        pytest.skip("30 GB of free GPU memory are needed")
    height, width = 1 << 13, (1 << 11) + 3
    x = torch.zeros((1, 128, height, width), dtype=torch.bfloat16, device=DEVICE)  # 2.15e9
    x = x.contiguous(memory_format=torch.channels_last)
    x[0, 100, -1, -1] = 3.0
    weight = torch.zeros((16, 128, 3, 3), dtype=torch.bfloat16, device=DEVICE)
    weight[5, 100, 0, 0] = 2.0
    y = torch.ops.segfast._dilated_conv(x, weight, None, height, width, 1, 1, -2, -2, 2, 2, 1)
    assert y[0, 5, -3, -3] == 6
    assert y.count_nonzero() == 1
