"""The pooling modules: torch.nn's signatures, the operators' results, a SegNet that trains."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from segfast.nn import FixedUnpool2d, MaxPool2d, MaxUnpool2d
from segfast.ops import max_pool2d_packed, max_unpool2d, unpack_indices

OPTIONS: list[dict[str, Any]] = [
    {"kernel_size": 2},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": (1, 0)},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "stride": 1, "dilation": (2, 3)},
]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 13, 11, generator=torch.Generator().manual_seed(0))


def parameters(cls: type) -> dict[str, Any]:
    return {name: (p.default, p.kind) for name, p in inspect.signature(cls).parameters.items()}


def test_signatures_are_torch_s() -> None:
    assert parameters(MaxPool2d) == parameters(nn.MaxPool2d)
    ours = parameters(MaxUnpool2d)
    assert ours.pop("dilation") == (1, inspect.Parameter.KEYWORD_ONLY)
    assert ours == parameters(nn.MaxUnpool2d)
    calls = [list(inspect.signature(c.forward).parameters) for c in (MaxUnpool2d, nn.MaxUnpool2d)]
    assert calls[0][2:] == calls[1][2:] == ["indices", "output_size"]
    assert issubclass(MaxPool2d, nn.MaxPool2d)  # whoever looks for poolings finds it
    assert issubclass(MaxUnpool2d, nn.MaxUnpool2d)


@pytest.mark.parametrize("options", OPTIONS)
def test_pool_equals_torch_s(x: Tensor, options: dict[str, Any]) -> None:
    expected, indices = nn.MaxPool2d(**options, return_indices=True)(x)
    assert torch.equal(MaxPool2d(**options)(x), expected)
    y, packed = MaxPool2d(**options, return_indices=True)(x)
    assert torch.equal(y, expected)
    assert torch.equal(unpack_indices(packed, x.shape, **options), indices)


@pytest.mark.parametrize("options", OPTIONS)
def test_unpool_equals_torch_s(x: Tensor, options: dict[str, Any]) -> None:
    y, packed = MaxPool2d(**options, return_indices=True)(x)
    indices = unpack_indices(packed, x.shape, **options)
    expected = torch.ops.aten.max_unpool2d(y, indices, list(x.shape[2:]))
    geometry = {name: value for name, value in options.items() if name != "ceil_mode"}
    unpool = MaxUnpool2d(**geometry)
    for where in (packed, indices):
        assert torch.equal(unpool(y, where, output_size=x.shape), expected)
        assert torch.equal(unpool(y, where, x.shape[2:]), expected)
    assert torch.equal(unpool(y[0], packed[0], x.shape[2:]), expected[0])


def test_default_output_size(x: Tensor) -> None:
    x = x[..., :12, :10]
    y, packed = MaxPool2d(2, return_indices=True)(x)
    indices = unpack_indices(packed, x.shape, 2)
    assert MaxUnpool2d(2)(y, packed).shape == nn.MaxUnpool2d(2)(y, indices).shape


def test_modules_say_what_they_are() -> None:
    assert "kernel_size=2, stride=2, padding=0, dilation=1" in repr(MaxPool2d(2))
    assert "kernel_size=(3, 3)" in repr(MaxUnpool2d(3, 2, 1))
    assert "dilation=2" in repr(MaxUnpool2d(3, 2, 1, dilation=2))
    assert repr(FixedUnpool2d(2)) == "FixedUnpool2d(kernel_size=(2, 2), stride=(2, 2))"
    for module in (MaxPool2d(2), MaxUnpool2d(2), FixedUnpool2d(2)):
        assert not module.state_dict()
        assert repr(copy.deepcopy(module)) == repr(module)


def test_what_no_input_makes_valid_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel_size must be at least 1"):
        MaxUnpool2d(0)
    with pytest.raises(TypeError, match="stride must be an integer"):
        FixedUnpool2d(2, "2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="padding must be at most half"):
        MaxPool2d(2, padding=2)(torch.zeros(1, 1, 4, 4))


# ------------------------------------------------------------------------------- FixedUnpool2d


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("kernel", "stride", "size"),
    [(2, None, None), (2, None, (7, 9)), ((2, 3), None, None), (3, 2, None),
     (1, 2, None), (5, None, (17, 24)), (4, 3, (11, 18))],
)  # fmt: skip
def test_fixed_unpool(kernel: Any, stride: Any, size: Any, layout: torch.memory_format) -> None:
    y = torch.randn(2, 3, 4, 5).contiguous(memory_format=layout).requires_grad_()
    unpool = FixedUnpool2d(kernel, stride)
    x = unpool(y, size)
    (kh, kw), (sh, sw) = unpool.kernel_size, unpool.stride
    expected = torch.zeros(2, 3, *(size or (3 * sh + kh, 4 * sw + kw)))
    expected[:, :, ::sh, ::sw][:, :, :4, :5] = y.detach()
    assert torch.equal(x, expected)
    assert x.is_contiguous(memory_format=layout)
    weight = torch.randn(x.shape)
    (found,) = torch.autograd.grad(x, y, weight)
    assert torch.equal(found, weight[:, :, ::sh, ::sw][:, :, :4, :5])


def test_fixed_unpool_unbatched_and_whole_shapes() -> None:
    y = torch.randn(3, 4, 5)
    assert torch.equal(FixedUnpool2d(2)(y), FixedUnpool2d(2)(y[None])[0])
    assert FixedUnpool2d(2)(y, torch.Size([3, 9, 9])).shape == (3, 9, 9)


# -------------------------------------------------------------------------------------- SegNet


class Block(nn.Module):
    """Two levels of SegNet: convolution, batch norm, pool; unpool, convolution, batch norm."""

    def __init__(self, pool: type, unpool: type) -> None:
        super().__init__()
        self.pool, self.unpool = pool(2, return_indices=True), unpool(2)

        def layer(channels: int, out: int) -> nn.Module:
            return nn.Sequential(
                nn.Conv2d(channels, out, 3, padding=1), nn.BatchNorm2d(out), nn.ReLU()
            )

        self.encoder = nn.ModuleList([layer(3, 8), layer(8, 12)])
        self.decoder = nn.ModuleList([layer(12, 8), layer(8, 8)])
        self.classify = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        undo = []
        for encode in self.encoder:
            x = encode(x)
            size = x.shape
            x, indices = self.pool(x)
            undo.append((indices, size))
        for decode in self.decoder:
            indices, size = undo.pop()
            x = decode(self.unpool(x, indices, output_size=size))
        return self.classify(x)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_segnet_block_trains_as_with_pytorch(layout: torch.memory_format) -> None:
    """The same gradients, step after step, odd sizes on the way (23 -> 11 -> 5)."""
    torch.manual_seed(0)
    ours: Any = Block(MaxPool2d, MaxUnpool2d).to(memory_format=layout)
    theirs: Any = Block(nn.MaxPool2d, nn.MaxUnpool2d).to(memory_format=layout)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, 3, 23, 31).contiguous(memory_format=layout)
    labels = (images[:, 0] > 0).long() + 2 * (images[:, 1] > 0).long()
    losses = []
    optimizers = [torch.optim.Adam(net.parameters(), 0.02) for net in (ours, theirs)]
    for step in range(20):
        each = []
        for net, optimizer in zip((ours, theirs), optimizers, strict=True):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(images), labels)
            loss.backward()
            each.append(loss.item())
        if step == 0:  # the same convolutions on the same bits: nothing to tolerate
            assert each[0] == each[1]
            for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
                assert torch.equal(p.grad, q.grad), name
        for optimizer in optimizers:
            optimizer.step()
        losses.append(each[0])
    assert losses[-1] < 0.7 * losses[0]


def test_indices_of_torch_s_pool_are_taken(x: Tensor) -> None:
    """Half of a model changed: torch.nn's pool, our unpooling, and the other way round."""
    y, indices = nn.MaxPool2d(2, return_indices=True)(x)
    expected = nn.MaxUnpool2d(2)(y, indices, output_size=x.shape)
    assert torch.equal(MaxUnpool2d(2)(y, indices, output_size=x.shape), expected)
    packed = max_pool2d_packed(x, 2)[1]
    back = unpack_indices(packed, x.shape, 2)
    assert torch.equal(nn.MaxUnpool2d(2)(y, back, output_size=x.shape), expected)
    assert torch.equal(max_unpool2d(y, packed, 2, output_size=x.shape), expected)
