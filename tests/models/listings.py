"""Networks beside the listings of tests/data/nets/, row by row.

A listing names every layer of a published Caffe network: its kind, output shape, parameters, field
of view (rf) and step in the image (j), kernel, stride, padding, dilation and groups. Ours runs on
the meta device under hooks. Field and step follow from the composition rule, layer by layer,

    convolution, pool    rf + (d (k - 1)) j, j s
    transposed           rf + (ceil(k / s) - 1) j, j / s
    unpooling, resizing  rf, j H_in / H_out

and what joins maps (a sum, a concatenation) has the widest field of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tests.fingerprints import DATA

KINDS: dict[str, tuple[type[nn.Module], ...]] = {  # those that are modules of ours, too
    "BN": (nn.BatchNorm2d,),
    "Convolution": (nn.Conv2d,),
    "Deconvolution": (nn.ConvTranspose2d, nn.Conv2d),  # of stride 1 it is a convolution
    "InnerProduct": (nn.Linear,),
    "LRN": (nn.LocalResponseNorm,),
    "Pooling": (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d),
    "Unpooling": (nn.MaxUnpool2d,),
    "Upsample": (nn.MaxUnpool2d,),
}
OPERATIONS = {  # seen in what comes after them
    "Accuracy", "ArgMax", "Concat", "Crop", "Eltwise", "Interp", "MAT_WRITE",
    "MultiStageMeanfield", "Scale", "SegAccuracy", "Softmax", "SoftmaxWithLoss",
}  # fmt: skip
HOOKED = tuple(dict.fromkeys(kind for kinds in KINDS.values() for kind in kinds))


class Row(NamedTuple):
    """A layer of a listing."""

    name: str
    kind: str
    shape: tuple[int, ...]
    params: int
    field: float
    step: float
    geometry: dict[str, int]  # of "k", "s", "p", "d", "g"


class Call(NamedTuple):
    """A layer of ours, as it was run."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]
    field: float
    step: float


def listing(name: str) -> tuple[list[Row], int]:
    """The layers that are modules of ours, too, and the number of parameters of the whole net."""
    *lines, total = (DATA / "nets" / f"{name}.txt").read_text().splitlines()
    rows = [_row(*line.split()) for line in lines]
    assert all(row.kind in KINDS or row.kind in OPERATIONS for row in rows)
    return [row for row in rows if row.kind in KINDS], int(total.split()[1])


def _row(name: str, kind: str, shape: str, params: str, field: str, step: str, *rest: str) -> Row:
    sizes = tuple(map(int, shape.split("x")))
    geometry = {item[0]: int(item[1:]) for item in rest if re.fullmatch(r"[kspdg]\d+", item)}
    return Row(name, kind, sizes, int(params), float(field[2:]), float(step[1:]), geometry)


# --------------------------------------------------------------------------------- our network


class _Fields(TorchFunctionMode):
    """What is computed of maps has the widest field of them, as the attribute `field`."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        given = [*args, *(kwargs or {}).values()]
        fields = [x.field for x in _tensors(given) if "field" in vars(x)]
        if fields:
            field, step = max(fields)
            if func is F.interpolate:
                step *= args[0].shape[-1] / out.shape[-1]
            for tensor in _tensors([out]):
                tensor.field = field, step
        return out


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def run(model: nn.Module, shape: tuple[int, ...]) -> list[Call]:
    """The layers of a model on the meta device, in the order in which they run."""
    calls: list[Call] = []
    starts: list[tuple[float, float, int]] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        starts.append((*args[0].field, args[0].shape[-1]))

    def after(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            y = next(_tensors([out]))
            field, step, width = starts.pop()
            y.field = _composed(module, field, step, width / y.shape[-1])
            calls.append(Call(name, module, tuple(y.shape), *y.field))

        return hook

    handles = []
    for name, module in model.named_modules():
        if isinstance(module, HOOKED):
            handles.append(module.register_forward_pre_hook(before))
            handles.append(module.register_forward_hook(after(name)))
    x = torch.empty(shape, device="meta")
    x.field = (1.0, 1.0)  # type: ignore[attr-defined]
    with torch.no_grad(), _Fields():
        model.eval()(x)
    for handle in handles:
        handle.remove()
    return calls


def _composed(
    module: nn.Module, field: float, step: float, shrinking: float
) -> tuple[float, float]:
    if isinstance(module, nn.MaxUnpool2d):
        return field, step * round(shrinking, 1)
    if isinstance(module, nn.AdaptiveAvgPool2d):  # regions that lie beside each other
        return field + (shrinking - 1) * step, shrinking * step
    if not isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.MaxPool2d, nn.AvgPool2d)):
        return field, step
    kernel, stride = _first(module.kernel_size), _first(module.stride)
    if isinstance(module, nn.ConvTranspose2d):
        return field + (-(-kernel // stride) - 1) * step, step / stride
    rate = _first(getattr(module, "dilation", 1))
    return field + rate * (kernel - 1) * step, step * stride


def _first(value: Any) -> int:
    return value[0] if isinstance(value, tuple) else value


# ------------------------------------------------------------------------------------ compared


def assert_row(row: Row, call: Call) -> None:
    """The layer does to maps what the row says."""
    where = f"{row.name} ({call.name})"
    assert isinstance(call.module, KINDS[row.kind]), where
    assert call.shape + (1,) * (len(row.shape) - len(call.shape)) == row.shape, where
    assert sum(p.numel() for p in call.module.parameters()) == row.params, where
    assert (call.field, call.step) == (row.field, row.step), where
    for letter, attribute in (("k", "kernel_size"), ("s", "stride"), ("d", "dilation")):
        if hasattr(call.module, attribute) and letter in row.geometry:
            assert _first(getattr(call.module, attribute)) == row.geometry[letter], where
    assert getattr(call.module, "groups", 1) == row.geometry.get("g", 1), where
