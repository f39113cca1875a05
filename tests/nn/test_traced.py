"""Modules by torch.jit.trace, where sizes are tensors: for maps of any size, and saved."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, nn

from segfast import ops
from segfast.nn import (
    ChannelAttention2d,
    FixedUnpool2d,
    LinearAttention2d,
    MaxPool2d,
    MaxUnpool2d,
    NonLocal2d,
    PositionAttention2d,
)
from tests.fingerprints import fill

pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


class Unpooled(nn.Module):
    """Up again, to the size before: by packed indices and by PyTorch's."""

    def __init__(self) -> None:
        super().__init__()
        self.pool, self.unpool = MaxPool2d(2, return_indices=True), MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        y, indices = nn.functional.max_pool2d(x, 2, return_indices=True)
        return self.unpool(*self.pool(x), x.shape) - self.unpool(y, indices, x.shape) / 3


MODULES = [
    LinearAttention2d(8),
    LinearAttention2d(8, feature_map="taylor", residual=False),
    PositionAttention2d(8),
    ChannelAttention2d(),
    NonLocal2d(8),
    NonLocal2d(8, mode="dot_product", sub_sample=True),
    MaxPool2d(3, 2, 1),
    FixedUnpool2d(2),
    Unpooled(),
]


@pytest.mark.parametrize("learn", [False, True])
@pytest.mark.parametrize("module", MODULES, ids=lambda m: type(m).__name__)
def test_traced(module: nn.Module, learn: bool) -> None:
    fill(module, {key: key for key in module.state_dict()})
    module.eval().requires_grad_(learn)
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(s, generator=generator) for s in ((2, 8, 7, 9), (3, 8, 12, 5))]
    small, large = (x.requires_grad_(learn) for x in maps)
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(module, small, check_trace=False), file)
    file.seek(0)
    traced = torch.jit.load(file)
    found, expected = traced(large), module(large)
    assert torch.equal(found, expected)
    if learn:
        slope = expected.detach().cos()
        for a, b in zip(
            torch.autograd.grad(found, (large, *traced.parameters()), slope),
            torch.autograd.grad(expected, (large, *module.parameters()), slope),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_what_cannot_be_traced() -> None:
    x = torch.randn(1, 2, 6, 6)
    _, indices = nn.functional.max_pool2d(x, 2, return_indices=True)
    with pytest.raises(NotImplementedError, match=r"^pack_indices cannot be traced by torch.jit"):
        torch.jit.trace(lambda i: ops.pack_indices(i, (6, 6), 2), indices)
    packed = ops.pack_indices(indices, (6, 6), 2)
    with pytest.raises(NotImplementedError, match=r"^unpack_indices cannot be traced by torch.jit"):
        torch.jit.trace(lambda i: ops.unpack_indices(i, (6, 6), 2), packed)
