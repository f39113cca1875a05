"""What every operator refuses alike: tensors that are not laid out by strides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

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
