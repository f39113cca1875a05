"""segfast.swap of pools that return indices: packed only where both ends are seen."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import segfast
from segfast.nn import MaxPool2d, MaxUnpool2d
from tests.swap_networks import SegNet, results, same

IMAGE = torch.randn(2, 3, 13, 11, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
EXAMPLE = torch.empty(1, 3, 10, 10, dtype=torch.float64)


class Trained(SegNet):
    """Asks for values of the image: nothing without numbers follows it."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x + 1 if x.sum() > 0 else x)


class ByBatch(SegNet):
    """Asks for sizes: torch.fx cannot follow it, an example can."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x[:, :3] if x.shape[1] > 3 else x)


class Listed(SegNet):
    """Keeps indices in a list on their way; has an option."""

    def forward(self, x: Tensor, double: bool = False) -> Any:
        stack, sizes = [], []
        for conv, pool in ((self.conv1, self.pool1), (self.conv2, self.pool2)):
            sizes.append(x.shape)
            x, indices = pool(conv(x))
            stack.append(indices)
        for unpool in (self.unpool2, self.unpool1):
            x = unpool(x, indices=stack.pop(), output_size=sizes.pop())
        return x * 2 if double else x


class Returned(SegNet):
    def forward(self, x: Tensor) -> Any:
        a, first = self.pool1(self.conv1(x))
        b, second = self.pool2(self.conv2(a))
        return self.unpool1(self.up(b, second, a), first, output_size=x.shape), [{"where": second}]


class Kept(SegNet):
    def up(self, b: Tensor, second: Tensor, a: Tensor) -> Tensor:
        self.last = second
        return super().up(b, second, a)


class Read(SegNet):
    def up(self, b: Tensor, second: Tensor, a: Tensor) -> Tensor:
        return super().up(b, second, a) + second.size(1)


class Summed(SegNet):
    def up(self, b: Tensor, second: Tensor, a: Tensor) -> Tensor:
        return super().up(b, second, a) + torch.flatten(second, 1).double().mean()


class Sliced(SegNet):
    def up(self, b: Tensor, second: Tensor, a: Tensor) -> Tensor:
        return super().up(b, second[:], a)


class Functional(SegNet):
    def up(self, b: Tensor, second: Tensor, a: Tensor) -> Tensor:
        return F.max_unpool2d(b, second, 2, output_size=a.shape[-2:])


class Dropped(SegNet):
    def up(self, b: Tensor, second: Tensor, a: Tensor) -> Tensor:
        return F.interpolate(b, a.shape[-2:])


class Foreign(SegNet):
    """An own module takes them."""

    class Up(nn.Module):
        def forward(self, b: Tensor, second: Tensor, size: Any) -> Tensor:
            return F.max_unpool2d(b, second, 2, output_size=size)

    def __init__(self) -> None:
        super().__init__()
        self.foreign = self.Up()

    def up(self, b: Tensor, second: Tensor, a: Tensor) -> Tensor:
        return self.foreign(b, second, a.shape[-2:])


def whys(report: Any) -> dict[str, str]:
    return {row.name: row.why for row in report.left if "ool2d" in row.kind}


def packed(model: Any) -> list[str]:
    return [name for name in ("pool1", "pool2") if type(getattr(model, name)) is MaxPool2d]


def check(model: nn.Module, example: Any = None) -> Any:
    """Swaps; results are the same, and unpoolings are ours."""
    model.double()
    before = results(model, IMAGE)
    report = segfast.swap(model, example=example)
    assert type(model.unpool1) is type(model.unpool2) is MaxUnpool2d
    assert all(map(same, results(model, IMAGE), before))
    return report


@pytest.mark.parametrize("frozen", [False, True])
def test_what_is_frozen_stays_so(frozen: bool) -> None:
    """Garbage is looked for among young objects alone, and others' freezing is left as it is."""
    gc.unfreeze()
    if frozen:
        gc.freeze()
    before = gc.get_freeze_count()
    model = SegNet()
    check(model)
    assert packed(model) == ["pool1", "pool2"]
    assert (gc.get_freeze_count() > 0) == (before > 0) == frozen
    gc.freeze()  # as conftest.py left it


@pytest.mark.parametrize("example", [None, EXAMPLE, (EXAMPLE,), {"x": EXAMPLE}])
@pytest.mark.parametrize("cls", [SegNet, Listed])
def test_both_ends_are_found(cls: type[SegNet], example: Any) -> None:
    model = cls()
    report = check(model, example)
    assert packed(model) == ["pool1", "pool2"]
    notes = {row.name: row.note for row in report.changed}
    assert notes["pool1"] == "packed indices, to unpool1"
    assert notes["pool2"] == "packed indices, to unpool2"
    assert model.pool1(torch.zeros(1, 3, 4, 4))[1].dtype == torch.uint8
    report.undo()
    assert type(model.pool1) is nn.MaxPool2d


def test_nothing_runs_and_nothing_changes() -> None:
    model = Kept()
    model.conv1.register_forward_hook(lambda *_: calls.append(1))
    calls: list[int] = []
    segfast.swap(model)
    assert not calls  # convolutions are not looked into
    assert not hasattr(model, "last")
    assert model.training


@pytest.mark.parametrize(
    ("cls", "traced", "run"),
    [
        (ByBatch, "torch.fx does not trace the model, give example= (TraceError", None),
        (Returned, "returns them, or gives them to something else", "returns or keeps them"),
        (Kept, "returns or keeps them", "returns or keeps them"),
        (Read, "the model asks for their size", "the model asks for their size"),
        (Summed, "torch's flatten takes them", "torch's flatten takes them"),
        (Sliced, "the model reckons with them", "the model reckons with them"),
        (Functional, "gives them to something else", "torch's max_unpool2d takes them"),
        (Foreign, "gives them to something else", "torch's max_unpool2d takes them"),
        (Dropped, "no MaxUnpool2d is seen to take them", "no MaxUnpool2d is seen to take them"),
    ],
)
def test_indices_that_go_elsewhere_stay(
    cls: type[SegNet], traced: str | None, run: str | None
) -> None:
    for example, why in ((None, traced), (EXAMPLE, run)):
        report = check(model := cls(), example)
        if why is None:
            assert packed(model) == ["pool1", "pool2"]
        else:
            assert why in whys(report)["pool2"]
            assert whys(report)["pool2"].startswith("its indices stay int64: ")
            both = "does not trace" in why
            assert packed(model) == ([] if both else ["pool1"])


def test_values_of_the_image_are_not_known() -> None:
    report = check(model := Trained(), EXAMPLE)
    assert packed(model) == []
    assert "the model does not run on fake tensors (DataDependent" in whys(report)["pool1"]


def test_a_second_swap_with_an_example_finds_more() -> None:
    check(model := ByBatch())
    assert packed(model) == []
    report = check(model, EXAMPLE)
    assert packed(model) == ["pool1", "pool2"]
    assert len(report.changed) == 2  # the unpoolings were ours already


class PoolAndUnpool(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2, return_indices=True, **options)
        self.unpool = nn.MaxUnpool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        return self.unpool(*self.pool(x))


def test_odd_widths_without_output_size() -> None:
    """PyTorch's indices count in rows of the pool's input, and do not fit into narrower ones."""
    model, even = PoolAndUnpool(), IMAGE[..., :12, :10]
    expected = model(even)
    with pytest.raises(RuntimeError, match="invalid max index"):
        model(IMAGE)
    segfast.swap(model)
    assert type(model.pool) is MaxPool2d
    assert torch.equal(model(even), expected)
    y, indices = nn.MaxPool2d(2, return_indices=True)(IMAGE)
    whole = nn.MaxUnpool2d(2)(y, indices, output_size=IMAGE.shape)
    assert torch.equal(model(IMAGE), whole[..., :12, :10])


@pytest.mark.parametrize(
    "options", [{"stride": 1}, {"padding": 1}, {"dilation": 2}, {"stride": (2, 1)}], ids=str
)
def test_ends_of_other_windows_stay(options: dict[str, Any]) -> None:
    model = PoolAndUnpool(**options)
    report = segfast.swap(model)
    assert "unpool has another kernel, stride, padding or dilation" in whys(report)["pool"]
    assert type(model.pool) is nn.MaxPool2d
    assert type(model.unpool) is MaxUnpool2d


def test_an_unpooling_that_stays_keeps_its_pool() -> None:
    model = SegNet().double()
    model.unpool2.register_forward_hook(lambda *_: None)
    before = results(model, IMAGE)
    report = segfast.swap(model)
    assert packed(model) == ["pool1"]
    assert whys(report) == {
        "pool2": "its indices stay int64: unpool2 stays: it has hooks",
        "unpool2": "it has hooks",
    }
    assert all(map(same, results(model, IMAGE), before))


class Shared(nn.Module):
    """One pool and one unpooling for two stages."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.pool, self.unpool = nn.MaxPool2d(2, return_indices=True), nn.MaxUnpool2d(2)

    def forward(self, x: Tensor, leak: bool = False) -> Any:
        a, first = self.pool(self.conv(x))
        b, second = self.pool(a)
        y = self.unpool(self.unpool(b, second, a.shape), first, x.shape)
        return (y, first) if leak else y


def test_a_pool_that_is_called_twice() -> None:
    model = Shared().double()
    before = results(model, IMAGE)
    segfast.swap(model)
    assert type(model.pool) is MaxPool2d
    assert all(map(same, results(model, IMAGE), before))
    leaks = Shared().double()
    report = segfast.swap(leaks, example={"x": EXAMPLE, "leak": True})
    assert "returns or keeps them" in whys(report)["pool"]  # of one of its calls
