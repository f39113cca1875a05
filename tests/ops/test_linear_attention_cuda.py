"""Linear attention on a GPU: as good as PyTorch against the float64 oracle on the CPU.

The kernels' own tests, which need no GPU: tests/kernels/test_triton.py.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from segfast.kernels.linear_attention import reference
from segfast.kernels.linear_attention.reference import FEATURE_MAPS
from segfast.ops import linear_attention, linear_attention2d
from segfast.ops._linear_attention_cuda import served_by
from segfast.testing import assert_as_good_as, dtypes
from tests.ops import gpu
from tests.ops.linear_attention_problems import OPERATORS, Problem, by_reference, check, make

pytestmark = gpu.TRITON

# B, D, E, N: every tile of the table; aligned and odd; one of everything; blocks and splits.
SHAPES = (
    (1, 1, 1, 1),
    (4, 8, 64, 64 * 64),
    (2, 32, 256, 128 * 128),
    (1, 50, 512, 65 * 65),
    (2, 100, 300, 777),
    (1, 128, 1024, 1024),
    (1, 255, 700, 1001),
    (1, 256, 2048, 1024),
)
CASES = [(shape, torch.bfloat16) for shape in SHAPES]
CASES += [(shape, torch.float16) for shape in SHAPES[1:4]]
CASES += [(shape, torch.float32) for shape in SHAPES[1:6]]


def run(operator: str, problem: Problem) -> tuple[Tensor, ...]:
    raw = getattr(torch.ops.segfast, f"_linear_attention_{operator}")
    results = raw(*problem.to("cuda").arguments(operator))
    return results if isinstance(results, tuple) else (results,)


def test_the_kernels_serve() -> None:
    assert "triton_state.py" in served_by()


@pytest.mark.parametrize(("shape", "dtype"), CASES, ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_raw_operators(operator: str, shape: tuple[int, int, int, int], dtype: torch.dtype) -> None:
    problem = make(shape, "softplus", dtype)
    check(operator, run(operator, problem), problem)


@dtypes(torch.float32, torch.float16, torch.bfloat16)
@pytest.mark.parametrize("feature_map", FEATURE_MAPS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_feature_maps(operator: str, feature_map: str, dtype: torch.dtype) -> None:
    problem = make((2, 5, 70, 150), feature_map, dtype)
    check(operator, run(operator, problem), problem)


@dtypes(torch.float32, torch.bfloat16)
@pytest.mark.parametrize("operator", OPERATORS)
def test_sanitize_odd_strided_maps(operator: str, dtype: torch.dtype) -> None:
    """What compute-sanitizer watches: every kernel."""
    problem = make((2, 5, 70, 151), "taylor", dtype, fused=False, strided=True)
    check(operator, run(operator, problem), problem)


@pytest.mark.parametrize("operator", OPERATORS)
def test_float64_and_many_features_take_the_reference(operator: str) -> None:
    many, double = (
        make((1, 300, 8, 20), "softplus"),
        make((1, 4, 8, 20), "softplus").to(torch.float64),
    )
    for problem in (many, double):
        for a, b in zip(run(operator, problem), by_reference(operator, problem), strict=True):
            torch.testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize("shape", [(0, 4, 5, 6), (2, 4, 5, 0)], ids=str)
@pytest.mark.parametrize("operator", OPERATORS)
def test_nothing_to_compute(operator: str, shape: tuple[int, int, int, int]) -> None:
    problem = make(shape, "softplus")
    for a, b in zip(run(operator, problem), by_reference(operator, problem), strict=True):
        assert torch.equal(a.cpu(), b)


@dtypes(torch.float32, torch.float16, torch.bfloat16)
@pytest.mark.parametrize("operator", OPERATORS)
def test_twice_the_same_bits(operator: str, dtype: torch.dtype) -> None:
    problem = make((2, 32, 256, 128 * 128), "taylor", dtype)
    for a, b in zip(run(operator, problem), run(operator, problem), strict=True):
        assert torch.equal(a, b)


def tokens(shape: tuple[int, int, int, int], dtype: torch.dtype) -> list[Tensor]:
    """q, k [B, N, D] and v [B, N, E], positions next to each other in memory, and grad o."""
    problem = make(shape, "softplus", dtype)
    return [x.mT for x in (problem.q, problem.k, problem.v, problem.grad)]


def with_gradients(given: list[Tensor], feature_map: str) -> list[Tensor]:
    *inputs, grad = given
    inputs = [x.detach().requires_grad_() for x in inputs]
    o = linear_attention(*inputs, feature_map)
    return [o, *torch.autograd.grad(o, inputs, grad)]


def formula_with_gradients(given: list[Tensor], feature_map: str) -> list[Tensor]:
    """The reference's formulas on [B, channels, N] and autograd, in the dtype of the inputs."""
    *inputs, grad = given
    inputs = [x.detach().requires_grad_() for x in inputs]
    o = reference.quadratic(*[x.mT for x in inputs], feature_map, 1e-6).mT
    return [o, *torch.autograd.grad(o, inputs, grad)]


@dtypes(torch.float32, torch.float16, torch.bfloat16)
@pytest.mark.parametrize("feature_map", ["softplus", "taylor"])
def test_public_function(feature_map: str, dtype: torch.dtype) -> None:
    given = tokens((2, 12, 70, 500), dtype)
    actual = with_gradients([x.cuda() for x in given], feature_map)
    oracle = formula_with_gradients([x.double() for x in given], feature_map)
    baseline = formula_with_gradients(given, feature_map)
    names = ("o", "grad q", "grad k", "grad v")
    for name, a, b, c in zip(names, actual, oracle, baseline, strict=True):
        assert_as_good_as(a, b, c, terms=500, label=name)


@dtypes(torch.float32, torch.bfloat16)
def test_block(dtype: torch.dtype) -> None:
    def block(where: str, dtype: torch.dtype) -> list[Tensor]:
        torch.manual_seed(0)
        shapes = ((2, 64, 31, 33), (8, 64), (8,), (8, 64), (8,), (64, 64), (64,), (1,))
        scales = (1.0, 0.1, 1.0, 0.1, 1.0, 0.1, 1.0, 1.0)
        given = [s * torch.randn(x) for x, s in zip(shapes, scales, strict=True)]
        given = [x.to(low).to(where, dtype).requires_grad_() for x in given]
        y = linear_attention2d(*given)
        return [y, *torch.autograd.grad(y.square().sum(), given)]

    low = dtype
    oracle, baseline = block("cpu", torch.float64), block("cpu", dtype)
    for i, (a, b, c) in enumerate(zip(block("cuda", dtype), oracle, baseline, strict=True)):
        assert_as_good_as(a, b, c, terms=2 * 31 * 33, label=f"result {i}")


def test_gradcheck_in_float64() -> None:
    given = [x.double().cuda().requires_grad_() for x in tokens((1, 3, 4, 6), torch.float32)[:3]]
    assert torch.autograd.gradcheck(linear_attention, given)


def test_the_current_stream_is_used() -> None:
    problem = make((4, 16, 128, 64 * 64), "softplus").to("cuda")
    expected = torch.ops.segfast._linear_attention_state(problem.k, problem.v, 0)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = torch.zeros_like(problem.v).copy_(problem.v)  # after the sleep
        state = torch.ops.segfast._linear_attention_state(problem.k, late, 0)
    stream.synchronize()
    assert torch.equal(state, expected)


def test_graphs_are_recorded() -> None:
    given = [x.cuda() for x in tokens((2, 8, 64, 33 * 47), torch.bfloat16)]
    with_gradients(given, "softplus")  # compiles
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        with_gradients(given, "softplus")
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = with_gradients(given, "softplus")
    for _ in range(2):
        with torch.no_grad():
            for x in given:
                x.copy_(torch.randn_like(x))
        graph.replay()
        for found, expected in zip(recorded, with_gradients(given, "softplus"), strict=True):
            assert torch.equal(found, expected)


def test_compiled_by_inductor() -> None:
    def step(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return linear_attention(q.sin(), k.exp(), v, "taylor").cos()

    given = [x.cuda() for x in tokens((2, 8, 64, 300), torch.float32)[:3]]
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(*given), step(*given))


@gpu.TWO
def test_another_device_than_the_current_one() -> None:
    problem = make((2, 8, 64, 300), "softplus")
    (state,) = run("state", problem)
    elsewhere = problem.to("cuda:1")
    again = torch.ops.segfast._linear_attention_state(elsewhere.k, elsewhere.v, 0)
    assert again.device == torch.device("cuda:1")
    assert torch.equal(again.cpu(), state.cpu())
    assert torch.cuda.current_device() == 0


@pytest.mark.large
def test_an_image_of_more_than_2_to_the_31_elements() -> None:
    """The sum over a map of 2^31 elements of v, and the read of its end."""
    if torch.cuda.mem_get_info()[0] < 40e9:
        pytest.skip("40 GB of free GPU memory are needed")
    positions = (1 << 25) + 48
    k = torch.rand(1, 8, positions, dtype=torch.bfloat16, device="cuda")
    v = torch.empty(1, 64, positions, dtype=torch.bfloat16, device="cuda")  # 2.1e9
    for channel in range(64):
        v[:, channel] = channel
    state = torch.ops.segfast._linear_attention_state(k, v, 2)
    o = torch.ops.segfast._linear_attention_read(k, state, None, None, 2, 0.0)
    expected = torch.arange(64.0, device="cuda")[:, None].bfloat16().expand(64, 1000)
    torch.testing.assert_close(o[0, :, -1000:], expected)
    torch.testing.assert_close(o[0, :, :1000], expected)
