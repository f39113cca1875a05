"""What only the raw operators of max_unpool show: any bytes are safe, threads change nothing.

Inputs lie between guard values in one block of memory: what is read beside them is NaN, or 255.
"""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import segfast.ops  # noqa: F401  (defines the operators)
from segfast.kernels.max_unpool import reference
from segfast.kernels.max_unpool.reference import Windows
from tests.kernels.pages import guarded

GEOMETRIES = {
    "2x2/2": Windows.of((2, 2), (2, 2), (0, 0), (1, 1)),
    "3x3/2": Windows.of((3, 3), (2, 2), (0, 0), (1, 1)),
    "3x3/2 padded": Windows.of((3, 3), (2, 2), (1, 1), (1, 1)),
    "3x3/3": Windows.of((3, 3), (3, 3), (0, 0), (1, 1)),
    "3x3/1 padded": Windows.of((3, 3), (1, 1), (1, 1), (1, 1)),
    "2x5/3x1": Windows.of((2, 5), (3, 1), (1, 2), (1, 1)),
    "3x2/2 dilated": Windows.of((3, 2), (2, 2), (1, 0), (2, 3)),
    "16x16/7": Windows.of((16, 16), (7, 7), (8, 8), (1, 1)),
}
FORMATS = {"planes": torch.contiguous_format, "channels_last": torch.channels_last}


@pytest.fixture(params=GEOMETRIES)
def windows(request: pytest.FixtureRequest) -> Windows:
    return GEOMETRIES[request.param]


@pytest.fixture(params=FORMATS)
def layout(request: pytest.FixtureRequest) -> torch.memory_format:
    return FORMATS[request.param]


def raw(name: str) -> Any:
    return getattr(torch.ops.segfast, name)


def output_size(size: tuple[int, int], windows: Windows) -> list[int]:
    axes = zip(size, windows.axes, strict=True)
    return [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, (k, s, p, d) in axes]


def packed_bits(windows: Windows) -> int:
    positions = windows.kernel_h * windows.kernel_w
    return 2 if positions <= 4 else 4 if positions <= 16 else 8


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_any_packed_bytes_are_safe(
    instruction_set: str, windows: Windows, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    """Random bytes, and sizes of x that do not belong to them, give what the reference gives."""
    generator = torch.Generator().manual_seed(0)
    for size, channels in itertools.product([(23, 37), (16, 70)], [1, 5, 40]):
        ho, wo = output_size(size, windows)
        bytes_ = (wo * packed_bits(windows) + 7) // 8
        y = torch.randint(1, 100, (2, channels, ho, wo), generator=generator).to(dtype)
        packed = torch.randint(0, 256, (2, channels, ho, bytes_), generator=generator)
        y = guarded(y.contiguous(memory_format=layout))
        packed = guarded(packed.to(torch.uint8).contiguous(memory_format=layout))
        for change in (-3, 0, 5):
            target = [n + change for n in size]
            for name in ("max_unpool2d", "max_pool2d_backward"):
                x = raw(f"_{name}")(y, packed, *windows, *target)
                assert torch.equal(x, getattr(reference, name)(y, packed, windows, target))
            x = torch.randint(1, 100, (2, channels, *target), generator=generator).to(dtype)
            x = guarded(x.contiguous(memory_format=layout))
            for winners in (False, True):
                back = raw("_max_gather2d")(x, packed, *windows, wo, winners)
                expected = reference.max_gather2d(x, packed, windows, wo, winners)
                assert torch.equal(back, expected)
        indices = raw("_max_unpack")(packed, *windows, *size, wo)
        assert torch.equal(indices, reference.max_unpack(packed, windows, size, wo))


@pytest.mark.usefixtures("restored_threads")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_same_bits_for_any_number_of_threads(
    instruction_set: str, windows: Windows, layout: torch.memory_format, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(1)
    size = (64, 96)
    x = torch.randn(2, 24, *size, generator=generator).to(dtype).contiguous(memory_format=layout)
    ho, wo = output_size(size, windows)
    results: list[list[Tensor]] = []
    for threads in (1, 2, 3, 5):
        torch.set_num_threads(threads)
        y, packed = raw("_max_pool2d")(x, *windows, ho, wo)
        indices = raw("_max_unpack")(packed, *windows, *size, wo)
        results.append(
            [
                y,
                packed,
                indices,
                raw("_max_pool2d_backward")(y, packed, *windows, *size),
                raw("_max_unpool2d")(y, packed, *windows, *size),
                raw("_max_gather2d")(x, packed, *windows, wo, True),
                raw("_max_unpool2d_indices")(y, indices, *size),
                raw("_max_gather2d_indices")(x, indices, True),
                raw("_max_pack")(indices, *windows, *size),
            ]
        )
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


# Beyond 32 MB maps are written past the caches, by streaming stores where rows (or pixels) are
# whole cache lines, as in the first shape, and by others where they are not.
@pytest.mark.parametrize(
    ("shape", "pool"),
    [
        pytest.param(shape, pool, marks=pytest.mark.thorough if i and (i + j) % 2 == 0 else ())
        for i, shape in enumerate([(48, 420, 480), (3, 2401, 1207), (40, 480, 450)])
        for j, pool in enumerate([(2, 2, 0), (3, 2, 1), (3, 1, 1)])
    ],
    ids=str,
)
def test_large_outputs(
    instruction_set: str,
    layout: torch.memory_format,
    shape: tuple[int, int, int],
    pool: tuple[int, int, int],
) -> None:
    x = torch.randn(1, *shape, generator=torch.Generator().manual_seed(2))
    x = x.contiguous(memory_format=layout)
    kernel, stride, padding = pool
    windows = Windows.of((kernel,) * 2, (stride,) * 2, (padding,) * 2, (1, 1))
    expected, indices = F.max_pool2d(x, kernel, stride, padding, return_indices=True)
    y, packed = raw("_max_pool2d")(x, *windows, *expected.shape[2:])
    assert torch.equal(y, expected)
    assert torch.equal(raw("_max_unpack")(packed, *windows, *shape[1:], y.shape[3]), indices)
    assert torch.equal(raw("_max_gather2d")(x, packed, *windows, y.shape[3], False), y)
    grad = torch.randint(-9, 9, y.shape, generator=torch.Generator().manual_seed(3)).float()
    grad = grad.contiguous(memory_format=layout)
    found = raw("_max_pool2d_backward")(grad, packed, *windows, *shape[1:])
    expected = torch.ops.aten.max_pool2d_with_indices_backward(
        grad, x, windows.kernel, windows.stride, windows.padding, windows.dilation, False, indices
    )
    assert torch.equal(found, expected)
    if kernel == stride:
        unpooled = raw("_max_unpool2d")(y, packed, *windows, *shape[1:])
        assert torch.equal(unpooled, F.max_unpool2d(y, indices, 2, output_size=shape[1:]))


def test_the_gradient_of_disjoint_windows_has_no_negative_zero(
    instruction_set: str, layout: torch.memory_format
) -> None:
    """A sum begun at 0, as PyTorch's: 0 + -0 = 0. Unpooling moves what it gets."""
    for dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16):
        for windows in (GEOMETRIES["2x2/2"], GEOMETRIES["3x3/3"]):
            y = torch.full((1, 20, 9, 18), -0.0, dtype=dtype).contiguous(memory_format=layout)
            y[0, 3] = -2
            packed = torch.zeros(
                1, 20, 9, (18 * packed_bits(windows) + 7) // 8, dtype=torch.uint8
            ).contiguous(memory_format=layout)
            size = [n * windows.stride_h for n in (9, 18)]
            x = raw("_max_pool2d_backward")(y, packed, *windows, *size)
            assert int(x.signbit().sum()) == 9 * 18
            assert (
                int(raw("_max_unpool2d")(y, packed, *windows, *size).signbit().sum()) == y.numel()
            )


def test_refusals(compiled_kernels: None) -> None:
    """What Python checks before is refused here, too: nothing out of bounds, whatever comes."""
    x = torch.randn(1, 2, 8, 8)
    windows = GEOMETRIES["2x2/2"]
    y, packed = raw("_max_pool2d")(x, *windows, 4, 4)
    refusals = {
        "every window must begin inside x .*6 windows, stride 2, padding 0 over 8": (
            "_max_pool2d", x, *windows, 6, 4),
        "every window must begin inside x .*1 windows, stride 2, padding 0 over 0": (
            "_max_pool2d", x[..., :0], *windows, 4, 1),
        "packed must have size 1 in dimension 3, got 2": (
            "_max_unpool2d", y, packed.repeat(1, 1, 1, 2), *windows, 8, 8),
        r"packed must be \[N, C, H, W\], got 3 dimensions": (
            "_max_unpool2d", y, packed[0], *windows, 8, 8),
        "packed must be Byte, got Float": ("_max_unpool2d", y, packed.float(), *windows, 8, 8),
        "indices must be Long, got Int": ("_max_unpool2d_indices", y, y.int(), 8, 8),
        "sizes of maps must be at least 0 .*got -1": ("_max_unpool2d", y, packed, *windows, -1, 8),
        "256 positions, got 272": ("_max_pool2d", x, 17, 16, *windows[2:], 1, 1),
        "half of the window, 2, got 2": ("_max_pool2d", x, 2, 2, 2, 2, 2, 2, 1, 1, 4, 4),
        "half of the window, 2, got 4611686018427387904": (
            "_max_pool2d", x, 2, 2, 2, 2, 2**62, 0, 1, 1, 4, 4),
        r"kernel \(at most 256\), stride .*got 2, 0, 1, 0": (
            "_max_pool2d", x, 2, 2, 0, 2, 0, 0, 1, 1, 4, 4),
        "x must be float32, float64, float16 or bfloat16, got Long": (
            "_max_pool2d", x.long(), *windows, 4, 4),
        r"indices must lie in \[0, 64\)": (
            "_max_unpool2d_indices", y, torch.full(y.shape, 64), 8, 8),
        r"indices must lie in their window": (
            "_max_pack", torch.zeros(1, 2, 4, 4, dtype=torch.long), *windows, 8, 8),
        "input_size must be at least 1x1 .*got 0x8": (
            "_max_pack", torch.zeros(1, 2, 4, 4, dtype=torch.long), *windows, 0, 8),
    }  # fmt: skip
    for message, (name, *arguments) in refusals.items():
        with pytest.raises(RuntimeError, match=message):
            raw(name)(*arguments)
