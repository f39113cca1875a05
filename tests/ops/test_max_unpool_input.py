"""What max-pooling and unpooling refuse, and how they say it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from segfast.ops import (
    max_pool2d,
    max_pool2d_packed,
    max_unpool2d,
    pack_indices,
    unpack_indices,
)

X = torch.zeros(2, 3, 8, 6)
Y = torch.zeros(2, 3, 4, 3)
PACKED = torch.zeros(2, 3, 4, 1, dtype=torch.uint8)
INDICES = F.max_pool2d(X, 2, return_indices=True)[1]

# x, other arguments, the error, what the message must say: which argument, the contract, what came
POOLS: list[tuple[Any, dict[str, Any], type[Exception], str]] = [
    ([1.0], {}, TypeError, r"^x must be a tensor \[N, C, H, W\] or \[C, H, W\], got list"),
    (X.long(), {}, TypeError, r"^x must be a floating-point tensor .*torch.int64 .*\(2, 3, 8, 6\)"),
    (X.to(torch.complex64), {}, TypeError, r"^x must be a floating-point .*complex64"),
    (X.to(torch.float8_e5m2), {}, TypeError, r"^x must be float32, float64, .*float8_e5m2"),
    (X[0, 0], {}, ValueError, r"^x must have shape \[N, C, H, W\] or .*\(8, 6\)"),
    (X[None], {}, ValueError, r"^x must have shape .*\(1, 2, 3, 8, 6\)"),
    (X[:, :0], {}, ValueError, r"^x must have shape .*at least 1; .*\(2, 0, 8, 6\)"),
    (X[:, :, :0], {}, ValueError, r"^x must have shape .*\(2, 3, 0, 6\)"),
    (X[0, :, :, :0], {}, ValueError, r"^x must have shape .*\(3, 8, 0\)"),
    (X, {"kernel_size": 0}, ValueError, "^kernel_size must be at least 1, got 0"),
    (X, {"kernel_size": (2, -1)}, ValueError, "^kernel_size must be at least 1, got -1"),
    (X, {"kernel_size": 2.0}, TypeError, "^kernel_size must be an integer or two .*float 2.0"),
    (X, {"kernel_size": True}, TypeError, "^kernel_size must be an integer or two .*bool True"),
    (X, {"kernel_size": (2, 2, 2)}, TypeError, r"^kernel_size must be .*tuple \(2, 2, 2\)"),
    (X, {"kernel_size": (2, None)}, TypeError, "^kernel_size must be an integer, got NoneType"),
    (X, {"kernel_size": (17, 16)}, ValueError, "^kernel_size must have at most 256 .*17x16; .*max"),
    (X, {"kernel_size": 2**40}, ValueError, r"^kernel_size must be below 2\^31"),
    (X, {"stride": 0}, ValueError, "^stride must be at least 1, got 0"),
    (X, {"stride": "2"}, TypeError, "^stride must be an integer or two of them, got str '2'"),
    (X, {"padding": -1}, ValueError, "^padding must be at least 0, got -1"),
    (X, {"padding": 2}, ValueError, r"^padding must be at most half of .*\(2, 2\), got 2"),
    (X, {"dilation": 0}, ValueError, "^dilation must be at least 1, got 0"),
    (X, {"kernel_size": 9}, ValueError, r"^x must hold a window .*9, 9.*got \(8, 6\)"),
    (X, {"dilation": 6}, ValueError, r"^x must hold a window .*dilation \(6, 6\)"),
    (X, {"padding": 1, "dilation": 7}, ValueError, r"^dilation must be smaller: .*but padding"),
    (X, {"ceil_mode": "False"}, TypeError, "^ceil_mode must be True or False, got str 'False'"),
    (X, {"ceil_mode": torch.tensor(1)}, TypeError, "^ceil_mode must be True or False, got .*int64"),
    (X.to_sparse(), {}, TypeError, r"^x must be an ordinary \(strided\) tensor, got sparse_coo"),
    (X.to_mkldnn(), {}, TypeError, r"^x must be an ordinary \(strided\) tensor, got _mkldnn"),
]  # fmt: skip


@pytest.mark.parametrize("function", [max_pool2d, max_pool2d_packed])
@pytest.mark.parametrize(("x", "arguments", "error", "message"), POOLS)
def test_pools_refuse(
    function: Any, x: Any, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(x, **{"kernel_size": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"y": 3}, TypeError, r"^y must be a tensor \[N, C, H, W\]"),
        ({"y": Y.int()}, TypeError, "^y must be a floating-point tensor"),
        ({"y": Y[0, 0]}, ValueError, r"^y must have shape .*\(4, 3\)"),
        ({"y": Y[:, :0], "indices": PACKED[:, :0]}, ValueError, r"^y must have .*\(2, 0, 4, 3\)"),
        ({"indices": None}, TypeError, r"^indices must be a tensor uint8 \(packed\) or int64"),
        ({"indices": INDICES.int()}, TypeError, r"^indices must be uint8 .*or int64.*torch.int32"),
        ({"indices": Y}, TypeError, "^indices must be uint8 .*float32"),
        ({"indices": INDICES[:, :2]}, ValueError, r"^indices must have shape \(2, 3, 4, 3\), got"),
        ({"indices": INDICES[0]}, ValueError, r"^indices must have shape \(2, 3, 4, 3\), got"),
        ({"indices": PACKED.repeat(1, 1, 1, 2)}, ValueError,
         r"^indices \(packed\) must have shape \(2, 3, 4, 1\), got .*\(2, 3, 4, 2\)"),
        ({"kernel_size": 3}, ValueError, r"^indices \(packed\) must have shape \(2, 3, 4, 2\)"),
        ({"indices": INDICES.to("meta")}, ValueError, "^indices must be on the device of y, cpu"),
        ({"output_size": (10, 6)}, ValueError,
         r"^output_size must be between \(7, 5\) and \(9, 7\) for y .*\(2, 3, 4, 3\).*10, 6"),
        ({"output_size": (8, 4)}, ValueError, r"^output_size must be between .*got \(8, 4\)"),
        ({"output_size": (8,)}, ValueError, r"^output_size must be \(H, W\) or a whole shape"),
        ({"output_size": 8}, ValueError, r"^output_size must be \(H, W\) or .* shape, got int"),
        ({"output_size": (8.0, 6)}, TypeError, "^output_size must be an integer, got float"),
        ({"stride": 0}, ValueError, "^stride must be at least 1"),
        ({"padding": 2}, ValueError, "^padding must be at most half"),
        ({"dilation": (1, 0)}, ValueError, "^dilation must be at least 1, got 0"),
    ],
)  # fmt: skip
def test_unpool_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"y": Y, "indices": PACKED, "kernel_size": 2, **arguments}
    with pytest.raises(error, match=message):
        max_unpool2d(**given)


@pytest.mark.parametrize("size", [(6, 6), (8, 8), (10, 6), (8, 4)])
@pytest.mark.parametrize("function", [F.max_unpool2d, max_unpool2d])
def test_pytorch_refuses_the_same_output_sizes(function: Any, size: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="output_size"):
        function(Y, INDICES, 2, output_size=size)


@pytest.mark.parametrize(
    "arguments", [{"output_size": (8.0, 6)}, {"kernel_size": (2, True)}, {"kernel_size": 2.0}]
)
def test_what_was_right_does_not_make_its_equal_right(arguments: dict[str, Any]) -> None:
    """Checks are remembered; 2 == 2.0 == True must not be."""
    right = {"y": Y, "indices": PACKED, "kernel_size": 2, "output_size": (8, 6)}
    max_unpool2d(**right)
    max_unpool2d(**{**right, "kernel_size": (2, 2)})
    with pytest.raises(TypeError):
        max_unpool2d(**{**right, **arguments})


def test_a_small_map_may_have_no_size_below() -> None:
    y, packed = Y[..., :1, :1], PACKED[..., :1, :1]
    with pytest.raises(ValueError, match=r"between \(1, 1\) and \(3, 3\).*got \(0, 1\)"):
        max_unpool2d(y, packed, 2, output_size=(0, 1))
    with pytest.raises(ValueError, match="output_size"):
        max_unpool2d(y, packed, 2, 1, 1)  # (1 - 1) - 2 + 2 = 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"packed": INDICES}, TypeError, "^packed must be torch.uint8, got torch.int64"),
        ({"packed": 1}, TypeError, "^packed must be a tensor"),
        ({"packed": PACKED[0, 0]}, ValueError, r"^packed must have shape .*\(4, 1\)"),
        ({"packed": PACKED[:, :, 1:]}, ValueError, r"^packed must have shape \(2, 3, 4, 1\), got"),
        ({"input_size": (8, 12)}, ValueError, r"^packed must have shape \(2, 3, 4, 2\), got"),
        ({"input_size": (1, 6)}, ValueError, "^input_size must hold a window"),
        ({"input_size": 8}, ValueError, r"^input_size must be \(H, W\) or a whole shape"),
    ],
)
def test_unpack_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        unpack_indices(**{"packed": PACKED, "input_size": (8, 6), "kernel_size": 2, **arguments})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"indices": PACKED}, TypeError, "^indices must be torch.int64, got torch.uint8"),
        ({"indices": INDICES[:, :, :, 1:]}, ValueError, r"^indices must have .*2, 3, 4, 3\), got"),
        ({"input_size": (9, 8)}, ValueError, r"^indices must have shape \(2, 3, 4, 4\), got"),
        ({"kernel_size": 17, "stride": 2}, ValueError, "^kernel_size must have at most 256"),
    ],
)  # fmt: skip
def test_pack_refuses(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pack_indices(**{"indices": INDICES, "input_size": (8, 6), "kernel_size": 2, **arguments})


@pytest.mark.parametrize("wrong", [-1, 2, 12, 47, 48, 2**40])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_pack_refuses_an_index_outside_its_window(
    wrong: int, memory_format: torch.memory_format
) -> None:
    """Window (0, 0) of a 2x2 pool over 8x6 has the indices 0, 1, 6, 7."""
    for right in (0, 1, 6, 7):
        fine = INDICES.clone()
        fine[1, 2, 0, 0] = right
        pack_indices(fine.contiguous(memory_format=memory_format), (8, 6), 2)
    damaged = INDICES.clone()
    damaged[1, 2, 0, 0] = wrong
    with pytest.raises(RuntimeError, match="indices"):
        pack_indices(damaged.contiguous(memory_format=memory_format), (8, 6), 2)


def test_pack_refuses_the_position_in_a_gap() -> None:
    """Dilation leaves gaps in a window."""
    x = torch.zeros(1, 1, 5, 5)
    indices = F.max_pool2d(x, 3, 1, 0, 2, return_indices=True)[1]
    assert indices.item() == 0
    assert pack_indices(indices + 2, (5, 5), 3, 1, 0, 2).item() == 1
    with pytest.raises(RuntimeError, match="indices"):
        pack_indices(indices + 1, (5, 5), 3, 1, 0, 2)


OURS_ALONE = ({"kernel_size": (17, 16)}, {"padding": 1, "dilation": 7})  # documented
SHARED = [
    row[:2]
    for row in POOLS
    if torch.is_tensor(row[0]) and row[0].dtype == torch.float32 and row[1] not in OURS_ALONE
]


@pytest.mark.parametrize(("x", "arguments"), SHARED)
def test_pytorch_refuses_the_same(x: Any, arguments: dict[str, Any]) -> None:
    """No row of the table is a whim of ours."""
    with pytest.raises((RuntimeError, TypeError, ValueError)):
        F.max_pool2d(x, **{"kernel_size": 2, **arguments}, return_indices=True)
