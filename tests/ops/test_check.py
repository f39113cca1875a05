"""What every operator refuses alike: tensors that are not laid out by strides."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import segfast
from segfast import ops

X = torch.ones(1, 2, 3, 3)
W = torch.ones(2, 2, 1, 1)
ONE = torch.ones(1)
CALLS: dict[str, Callable[[Any], Any]] = {
    "dilated_conv2d x": lambda bad: ops.dilated_conv2d(bad, W),
    "dilated_conv2d weight": lambda bad: ops.dilated_conv2d(X, bad),
    "dilated_conv_transpose2d x": lambda bad: ops.dilated_conv_transpose2d(bad, W),
    "atrous_pyramid2d x": lambda bad: ops.atrous_pyramid2d(bad, [W], None, [1]),
    "context_module2d weights[0]": lambda bad: ops.context_module2d(X, [bad], None, [1]),
    "max_pool2d x": lambda bad: ops.max_pool2d(bad, 2),
    "max_pool2d_packed x": lambda bad: ops.max_pool2d_packed(bad, 2),
    "linear_attention q": lambda bad: ops.linear_attention(bad, X, X),
    "linear_attention2d x": lambda bad: ops.linear_attention2d(
        bad, ONE, None, ONE, None, ONE, None, ONE
    ),
    "gaussian_filter values": lambda bad: ops.gaussian_filter(bad, X[0]),
    "mean_field logits": lambda bad: ops.mean_field(bad, X),
}
KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "sparse_coo": Tensor.to_sparse,
    "_mkldnn": Tensor.to_mkldnn,
    "nested": lambda x: torch.nested.nested_tensor(list(x)),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_other_layouts_are_refused(call: str, kind: str) -> None:
    CALLS[call](W if "weight" in call else X) if "conv" in call else None  # what is remembered
    name = call.split()[1].replace("[", r"\[")
    with pytest.raises(TypeError, match=rf"{name}.* must be an ordinary .*got {kind} "):
        CALLS[call](KINDS[kind](torch.ones(2, 2, 1, 1) if "weight" in call else X))


def test_what_is_remembered_covers_no_other_call() -> None:
    """Equal numbers of other types, and autocast, are other calls."""
    x, weight, pair = torch.ones(1, 2, 4, 4), torch.ones(2, 2, 1, 1), (1, 1)
    expected = ops.dilated_conv2d(x, weight, None, 1, 0, pair)
    for rate in (True, 1.0, (1, True), (1.0, 1)):
        with pytest.raises(TypeError, match=r"^dilation must be an integer"):
            ops.dilated_conv2d(x, weight, None, 1, 0, rate)
    with torch.autocast("cpu", torch.bfloat16):
        assert ops.dilated_conv2d(x, weight, None, 1, 0, pair).dtype == torch.bfloat16
    assert torch.equal(ops.dilated_conv2d(x, weight, None, 1, 0, pair), expected)
    assert torch.equal(ops.dilated_conv2d(x[..., ::2], weight), expected[..., ::2])


PLANES = torch.randn(1, 4, 9, 9, generator=torch.Generator().manual_seed(0))
LAST = PLANES.to(memory_format=torch.channels_last)
K = torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(1))
INTEGERS: dict[str, Callable[[Any, Any], Any]] = {  # two numbers, by turns alone and in sequences
    "dilated_conv2d": lambda a, b: ops.dilated_conv2d(PLANES, K, None, a, b, (b, a), a),
    "by PyTorch": lambda a, b: ops.dilated_conv2d(LAST, K, None, [a, b], b, (b,), a),
    "dilated_conv1d": lambda a, b: ops.dilated_conv1d(
        PLANES[0, :, 0], K[:, :, 0], None, a, [b], (b,)
    ),
    "dilated_conv_transpose2d": lambda a, b: ops.dilated_conv_transpose2d(
        PLANES, K, None, b, a, (a, a), a, a
    ),
    "atrous_pyramid2d": lambda a, b: ops.atrous_pyramid2d(PLANES, [K, K], None, (a, b)),
    "context_module2d": lambda a, b: ops.context_module2d(PLANES, [K, K], None, [a, b]),
    "max_pool2d": lambda a, b: ops.max_pool2d(PLANES, b, (b, a), a, a),
    "max_unpool2d": lambda a, b: ops.max_unpool2d(
        *ops.max_pool2d_packed(PLANES, b), b, output_size=(b * 4 + a, b * 4 + a)
    ),
    "mean_field": lambda a, b: ops.mean_field(
        PLANES, PLANES[:, :3], iterations=b, spatial_sigma=(a, b), color_sigma=b
    ),
}


@pytest.mark.parametrize("kind", [np.int64, np.uint8, np.array])
@pytest.mark.parametrize("call", INTEGERS)
def test_integers_of_numpy(call: str, kind: Callable[[int], Any]) -> None:
    expected = INTEGERS[call](1, 2)
    for _ in range(2):  # what is remembered, too
        assert torch.equal(INTEGERS[call](kind(1), kind(2)), expected)


def test_compiled_after_integers_of_numpy() -> None:
    """torch.compile looks at what is remembered, and takes a number of NumPy for an array."""
    call = INTEGERS["dilated_conv2d"]
    expected = call(np.int64(1), np.int64(3))
    torch._dynamo.reset()
    found = torch.compile(lambda: call(1, 3), backend="eager", fullgraph=True)()
    torch.testing.assert_close(found, expected)


MAP, POINTS = PLANES[:, :3], PLANES.flatten(2)
NUMBERS: dict[str, Callable[[Any], Any]] = {
    "linear_attention": lambda a: ops.linear_attention(POINTS, POINTS, POINTS, eps=a),
    "LinearAttention2d": lambda a: segfast.nn.LinearAttention2d(4, eps=a).eps,
    "gaussian_filter": lambda a: ops.gaussian_filter(POINTS, POINTS[:, :2], tolerance=a),
    "mean_field": lambda a: ops.mean_field(
        PLANES, MAP, spatial_weight=a, bilateral_weight=a, spatial_sigma=(a, 1), bilateral_sigma=a,
        color_sigma=a, tolerance=a, iterations=2,
    ),
    "DenseCRF": lambda a: repr(segfast.nn.DenseCRF(a, (a, a), a, a, a, tolerance=a)),
    "CRFRNN": lambda a: repr(
        segfast.nn.CRFRNN(
            torch.nn.Identity(), 4, spatial_weight=a, bilateral_weight=a, spatial_sigma=a,
            bilateral_sigma=(a, a), color_sigma=a, tolerance=a,
        )
    ),
    "dense_crf_loss": lambda a: segfast.losses.dense_crf_loss(
        PLANES.softmax(1), MAP, bilateral_sigma=(a, a), color_sigma=a, scale_factor=a, tolerance=a
    ),
    "DenseCRFLoss": lambda a: vars(segfast.losses.DenseCRFLoss(a, a, (a,), a, tolerance=a)),
}  # fmt: skip


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.array, Fraction])
@pytest.mark.parametrize("call", NUMBERS)
def test_numbers_of_numpy(call: str, kind: Callable[[float], Any]) -> None:
    expected, found = NUMBERS[call](0.5), NUMBERS[call](kind(0.5))
    assert (
        torch.equal(found, expected) if isinstance(found, Tensor) else str(found) == str(expected)
    )


@pytest.mark.parametrize("bad", [True, np.True_, "1", 1j, Decimal(1), np.ones(1)], ids=repr)
@pytest.mark.parametrize("call", NUMBERS)
def test_what_is_no_number(call: str, bad: Any) -> None:
    with pytest.raises(TypeError, match=r"must be a number.*, got "):
        NUMBERS[call](bad)


@pytest.mark.parametrize("bad", [True, np.True_, 1.0, np.float64(1), "1", torch.tensor(1)], ids=str)
def test_what_is_no_integer(bad: Any) -> None:
    """A tensor is none: its number may change, and may lie on a GPU."""
    for call in (
        lambda: ops.dilated_conv2d(PLANES, K, None, 1, 0, bad),
        lambda: ops.atrous_pyramid2d(PLANES, [K], None, [bad]),
        lambda: ops.max_pool2d(PLANES, 2, bad),
    ):
        with pytest.raises(TypeError, match=r"^(dilation|rates|stride) must be an integer.*, got "):
            call()


def test_lists_of_rates() -> None:
    pyramid = ops.atrous_pyramid2d
    assert torch.equal(
        pyramid(PLANES, [K] * 3, None, range(1, 6, 2)), pyramid(PLANES, [K] * 3, None, (1, 3, 5))
    )
    with pytest.raises(ValueError, match=r"^rates must hold at least one integer, got list \[\]"):
        pyramid(PLANES, [K], None, [])
    with pytest.raises(ValueError, match=r"^weights must hold at least one tensor, got list \[\]"):
        pyramid(PLANES, [], None, [])
    with pytest.raises(TypeError, match=r"^dilations must be a list of integers, got int 2"):
        ops.context_module2d(PLANES, [K], None, 2)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^biases must be a list of tensors, got int 2"):
        pyramid(PLANES, [K], 2, [1])  # type: ignore[arg-type]
