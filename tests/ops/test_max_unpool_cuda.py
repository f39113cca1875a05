"""Max-pooling and unpooling on a GPU: the CPU's bits, whatever the layout, stream or size.

The kernels' own tests, which need no GPU: tests/kernels/test_max_unpool_cuda.py.
"""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segfast import _native
from segfast.ops import (
    max_pool2d,
    max_pool2d_packed,
    max_unpool,
    max_unpool2d,
    pack_indices,
    unpack_indices,
)
from segfast.ops._max_unpool_geometry import windows_of
from tests.ops import gpu
from tests.ops.max_unpool_cases import DTYPES, LAYOUTS, Pool, distinct, identical, laid_out, maps

module = _native.native()
built = module is not None and bool(module.build_info()["cuda_architectures"])
pytestmark = gpu.marks(built, "the CUDA kernels were not built")

POOLS = (
    Pool(2),
    Pool(2, ceil_mode=True),
    Pool(3, 2, 1),
    Pool(3, 1, 1),
    Pool((3, 2), (2, 1), 1, (2, 3), True),
    Pool((1, 4), (1, 3)),
    Pool(16, 5, 8),
)
SHAPES = ((2, 16, 24, 64), (1, 3, 33, 47), (2, 8, 17, 30), (1, 1, 40, 90), (0, 4, 32, 32))


def results(x: Tensor, pool: Pool) -> list[Tensor]:
    """All that the public functions and their gradients, of first and second order, give for x."""
    x = x.detach().requires_grad_()
    size = tuple(x.shape)
    y, packed = max_pool2d_packed(x, *pool)
    indices = unpack_indices(packed, size, *pool)
    found = [y, packed, max_pool2d(x.detach(), *pool), indices, pack_indices(indices, size, *pool)]
    weights = maps(tuple(y.shape), 5, x.dtype).to(x.device)
    more = maps(size, 6, x.dtype).to(x.device).requires_grad_()
    (grad,) = torch.autograd.grad(y, x, weights, create_graph=True)
    found.append(grad)
    values = (weights * 1.5 + 0.25).requires_grad_()
    for where in (packed, indices):
        again = max_unpool2d(values, where, **pool.unpooling(), output_size=size)
        (grad,) = torch.autograd.grad(again, values, more, create_graph=True)
        (twice,) = torch.autograd.grad(grad, more, weights)
        found += [again, grad, twice]
    return [t.detach() for t in found]


def check(x: Tensor, pool: Pool) -> None:
    for cuda, cpu in zip(results(x.cuda(), pool), results(x, pool), strict=True):
        assert cuda.is_cuda
        assert identical(cuda.cpu(), cpu)
        assert cuda.stride() == cpu.stride() or x.numel() == 0


def test_the_compiled_kernels_serve() -> None:
    assert "max_unpool.cu" in max_unpool.served_by()["cuda"]
    for name in ("_max_pool2d", "_max_pool2d_backward", "_max_gather2d", "_max_unpack"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"segfast::{name}", "CUDA")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("pool", POOLS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_to_the_cpu(dtype: torch.dtype, pool: Pool, layout: str) -> None:
    for shape in SHAPES:
        if pool.holds_something(shape[2:]):
            check(laid_out(maps(shape, 1, dtype, special=True), layout), pool)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_sanitize_small_maps(layout: str) -> None:
    """What compute-sanitizer watches: every kernel once."""
    for pool, dtype in itertools.product(POOLS[:5], DTYPES):
        check(laid_out(maps((1, 8, 9, 21), 2, dtype), layout), pool)
        check(laid_out(maps((1, 3, 9, 16), 2, dtype), layout), pool)


@pytest.mark.parametrize("layout", LAYOUTS[:2])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_equal_to_pytorch(dtype: torch.dtype, layout: str) -> None:
    for pool, shape in itertools.product((Pool(2), Pool(3, 2, 1)), SHAPES[:4]):
        x = laid_out(maps(shape, 3, dtype), layout).cuda()
        expected, indices = pool.pytorch(x)
        y, packed = max_pool2d_packed(x, *pool)
        assert identical(y, expected)
        assert torch.equal(unpack_indices(packed, shape, *pool), indices)
        if pool.disjoint():
            again = max_unpool2d(y, packed, 2, output_size=shape)
            assert identical(again, F.max_unpool2d(expected, indices, 2, output_size=shape))


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_gradcheck(layout: str) -> None:
    for pool in (Pool(2), Pool(3, 2, 1), Pool(2, 1)):
        x = laid_out(distinct((1, 2, 6, 7)), layout).cuda().requires_grad_()
        _, packed = max_pool2d_packed(x.detach(), *pool)
        y = max_pool2d(x.detach(), *pool).requires_grad_()

        def pooled(x: Tensor, pool: Pool = pool) -> Tensor:
            return max_pool2d(x, *pool)

        def unpooled(y: Tensor, pool: Pool = pool, packed: Tensor = packed) -> Tensor:
            return max_unpool2d(y, packed, **pool.unpooling(), output_size=(6, 7))

        assert torch.autograd.gradcheck(pooled, x, nondet_tol=0.0)
        assert torch.autograd.gradgradcheck(pooled, x, nondet_tol=0.0)
        assert torch.autograd.gradcheck(unpooled, y, nondet_tol=0.0)
        assert torch.autograd.gradgradcheck(unpooled, y, nondet_tol=0.0)


def test_indices_out_of_range_are_ignored() -> None:
    y = torch.ones(1, 2, 2, 2, device="cuda")
    indices = torch.tensor([-1, 16, 2**40, 3], device="cuda").view(1, 1, 2, 2).expand(1, 2, 2, 2)
    x = max_unpool2d(y, indices, 2)
    assert x.flatten(2).sum(2).tolist() == [[1.0, 1.0]]
    assert x[0, :, 0, 3].tolist() == [1.0, 1.0]


def test_the_last_of_many_writers_wins_each_time() -> None:
    y = torch.randn(2, 5, 200, 200, device="cuda")
    indices = torch.randint(0, 40, y.shape, device="cuda")
    expected = max_unpool2d(y.cpu(), indices.cpu(), 2)
    for _ in range(5):
        assert torch.equal(max_unpool2d(y, indices, 2).cpu(), expected)


def test_indices_outside_of_their_window_raise() -> None:
    indices = torch.zeros(1, 1, 2, 2, dtype=torch.int64, device="cuda")
    with pytest.raises(RuntimeError, match=r"window.*3 "):
        pack_indices(indices, (4, 4), 2)


def test_the_current_stream_is_used() -> None:
    x = maps((4, 16, 128, 128)).cuda()
    expected = max_pool2d(x, 2)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late = torch.zeros_like(x).copy_(x)  # after the sleep: any other stream reads zeros
        y = max_pool2d(late, 2)
    stream.synchronize()
    assert torch.equal(y, expected)


def test_graphs_are_recorded() -> None:
    x = maps((2, 8, 32, 48), 7).cuda()
    x.requires_grad_()

    def step() -> tuple[Tensor, ...]:
        y, packed = max_pool2d_packed(x, 3, 2, 1)
        indices = unpack_indices(packed, x.shape, 3, 2, 1)
        again = max_unpool2d(y, indices, 3, 2, 1, output_size=x.shape)
        other = max_unpool2d(y, packed, 3, 2, 1, output_size=x.shape)
        same = pack_indices(indices, x.shape, 3, 2, 1)
        (grad,) = torch.autograd.grad((again * other).sum(), x)
        return y, packed, again, other, same, grad

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        recorded = step()
    for seed in (8, 9):
        with torch.no_grad():
            x.copy_(maps(tuple(x.shape), seed))
        graph.replay()
        for found, expected in zip(recorded, step(), strict=True):
            assert torch.equal(found, expected)


def test_compiled_by_inductor() -> None:
    def step(x: Tensor) -> Tensor:
        y, packed = max_pool2d_packed(x.sin(), 2)
        return max_unpool2d(y.exp(), packed, 2, output_size=x.shape)

    x = torch.randn(2, 4, 16, 18, device="cuda")
    torch.testing.assert_close(torch.compile(step, fullgraph=True)(x), step(x))


@gpu.TWO
def test_another_device_than_the_current_one() -> None:
    x = maps((2, 3, 16, 18)).to("cuda:1")
    y, packed = max_pool2d_packed(x, 2)
    assert y.device == packed.device == x.device
    assert torch.equal(y.cpu(), max_pool2d(x.cpu(), 2))
    assert torch.cuda.current_device() == 0


def test_tensors_on_two_devices_are_refused() -> None:
    y, packed = max_pool2d_packed(maps((1, 2, 4, 4)).cuda(), 2)
    for a, b in ((y.cpu(), packed), (y, packed.cpu())):
        with pytest.raises((ValueError, RuntimeError), match="device"):
            max_unpool2d(a, b, 2)
        with pytest.raises(RuntimeError, match="device"):
            torch.ops.segfast._max_unpool2d(a, b, 2, 2, 2, 2, 0, 0, 1, 1, 4, 4)


@pytest.mark.large
@pytest.mark.parametrize("pool", [Pool(2), Pool(3, 2, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_more_than_2_to_the_31_elements(layout: str, pool: Pool) -> None:
    """The ends of large maps are what the same maps' last rows alone give."""
    if torch.cuda.mem_get_info()[0] < 48e9:
        pytest.skip("48 GB of free GPU memory are needed")
    shape = (1, 8, 16400, 16400)  # 2.15e9, a little above 2^31
    form = torch.channels_last if layout == "channels_last" else torch.contiguous_format
    x = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=form)
    for channel in range(shape[1]):
        x[:, channel] = torch.randint(-9, 9, shape[2:], device="cuda", dtype=torch.int8)
    y, packed = max_pool2d_packed(x, *pool)
    rows = 40
    assert torch.equal(y[:, :, :8], F.max_pool2d(x[:, :, :rows], *pool)[:, :, :8])
    x = x[:, :, -rows:].clone(memory_format=form)
    indices = unpack_indices(packed, shape, *pool)
    end_y, end_packed = max_pool2d_packed(x, *pool)
    count = end_y.shape[2] - 1  # the first window sees the padding
    assert torch.equal(end_y, F.max_pool2d(x, *pool))
    assert torch.equal(y[:, :, -count:], end_y[:, :, -count:])
    assert torch.equal(packed[:, :, -count:], end_packed[:, :, -count:])
    expected = max_unpool2d(end_y, end_packed, **pool.unpooling(), output_size=x.shape)
    for where in (packed, indices):
        again = max_unpool2d(y, where, **pool.unpooling(), output_size=shape)
        assert torch.equal(again[:, :, 4 - rows :], expected[:, :, 4:])
        del again
    assert torch.equal(pack_indices(indices, shape, *pool), packed)
    del indices
    backward = torch.ops.segfast._max_pool2d_backward
    windows = windows_of(pool.kernel_size, pool.stride, pool.padding, pool.dilation)
    grad = backward(y, packed, *windows, *shape[2:])
    end = backward(end_y, end_packed, *windows, *x.shape[2:])
    assert torch.equal(grad[:, :, 4 - rows :], end[:, :, 4:])
    gathered = torch.ops.segfast._max_gather2d(grad, packed, *windows, y.shape[3], True)
    end = torch.ops.segfast._max_gather2d(end, end_packed, *windows, y.shape[3], True)
    assert torch.equal(gathered[:, :, -count + 2 :], end[:, :, -count + 2 :])
