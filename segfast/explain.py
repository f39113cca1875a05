"""What an operator or a module would do with its arguments, without computing anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map_only

from segfast import ops
from segfast._look_alike import faker, look_alike
from segfast.ops._check import describe
from segfast.ops._dilated_conv_kernels import choose, problem
from segfast.ops._dilated_conv_plan import DIRECTIONS, Direction, Plan, Problem, Strides
from segfast.ops._function import observed_by

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Convolution:
    """One convolution: its shapes, its multiplications, and what serves its three directions."""

    x: Shape  # [N, C, H, W]
    weight: Shape
    y: Shape  # [N, O, Ho, Wo]
    dtype: str  # "float32"
    channels_last: bool
    strides: Strides
    transposed: bool
    rectangles: int  # of outputs with the same live taps
    multiplications: int  # products with padding included
    live_multiplications: int  # those with padding left out
    kernels: dict[Direction, Plan]

    @property
    def saved(self) -> float:
        """The share of the multiplications that is by padding: PyTorch's kernels save none."""
        return _share(self.multiplications, self.live_multiplications)

    def __str__(self) -> str:
        sh, sw, ph, pw, dh, dw, groups = self.strides
        facts = {
            "stride": _either(sh, sw, usual=1),
            "padding": _either(ph, pw, usual=0),
            "rate": _either(dh, dw, usual=1),
            "groups": _either(groups, groups, usual=1),
        }
        named = [f"{name} {value}" for name, value in facts.items() if value]
        named += [self.dtype, *(["channels_last"] if self.channels_last else [])]
        served: dict[Plan, list[Direction]] = {}
        for direction, plan in self.kernels.items():
            served.setdefault(plan, []).append(direction)
        kind = "transposed by" if self.transposed else "by"
        ours = self.kernels["forward"].kernel not in ("torch", "winograd")
        head = f"{list(self.x)} {kind} {list(self.weight)} -> {list(self.y)}"
        return "\n".join(
            [
                ", ".join([head, *named]),
                f"  {self.multiplications:,} multiplications, {self.live_multiplications:,} without"
                f" padding: {self.saved:.1%} {'saved' if ours else 'less'}; rectangles: "
                f"{self.rectangles}",
                *(
                    f"  {', '.join(directions)}: {plan.kernel} ({plan.why})"
                    for plan, directions in served.items()
                ),
            ]
        )


@dataclass(frozen=True)
class Explanation:
    """What :func:`explain` returns; `str` of it is a page to read."""

    operator: str
    device: str  # a kind: "cpu", "cuda"
    convolutions: tuple[Convolution, ...]  # in the order in which they are computed
    served_by: str  # the kernels of its convolutions; of other operators those in general

    @property
    def multiplications(self) -> int:
        """Of all convolutions, products with padding included."""
        return sum(c.multiplications for c in self.convolutions)

    @property
    def live_multiplications(self) -> int:
        """Of all convolutions, those with padding left out."""
        return sum(c.live_multiplications for c in self.convolutions)

    def __str__(self) -> str:
        lines = [f"{self.operator} on {self.device}: {self.served_by}"]
        if len(self.convolutions) > 1:
            saved = _share(self.multiplications, self.live_multiplications)
            lines.append(
                f"{len(self.convolutions)} convolutions: {self.multiplications:,} multiplications,"
                f" {self.live_multiplications:,} without padding: {saved:.1%} less"
            )
        lines += [f"{i}. {conv}" for i, conv in enumerate(self.convolutions, 1)]
        if "torch" in self.served_by.partition(";")[0].split(", ") and self.convolutions:
            lines.append(
                "torch: PyTorch's kernels, which may multiply the padding, too; their results are "
                "as deterministic as PyTorch promises"
            )
        return "\n".join(lines)


def explain(
    op: Callable[..., Any] | nn.Module, *args: Any, device: str | None = None, **kwargs: Any
) -> Explanation:
    """Which kernels serve an operator or a module for these arguments, why, and what they save.

    Nothing is computed and no memory of results is taken: only shapes, dtypes and memory formats
    are looked at. The multiplications of two-dimensional convolutions are counted, those of
    PyTorch's among them, with padding and without: what is less without is saved where a kernel of
    ours that leaves padding out serves.

    Args:
        op: an operator of `segfast.ops`, or a module that convolves: any `torch.nn.Module` in
            which dilated convolutions, or PyTorch's, are to be counted. Of the other operators of
            `segfast.ops`, those in a module among them, it says what serves them in general.
        args, kwargs: its arguments; tensors may be on the meta device.
        device: the kind of device to plan for, "cpu" or "cuda"; it need not be there. None: that
            of the tensors, and "cpu" for those on meta.

    Returns:
        An :class:`Explanation`: one :class:`Convolution` each with shapes, rectangles,
        multiplications and, for each of the directions forward, grad_input and grad_weight, the
        kernel that serves and why.

    Raises:
        TypeError: op is something else.
        ValueError: device is something else; what op computes depends on numbers in a tensor.
        TypeError, ValueError: as op does, for arguments that it would refuse.

    Example:
        >>> import torch, segfast
        >>> x = torch.empty(1, 64, 33, 33, device="meta")
        >>> w = torch.empty(8, 64, 3, 3, device="meta")
        >>> found = segfast.explain(segfast.ops.dilated_conv2d, x, w, padding=18, dilation=18)
        >>> found.convolutions[0].rectangles, f"{found.convolutions[0].saved:.1%}"
        (9, '59.5%')
    """
    kind = _kind(op, (args, kwargs), device)
    if not isinstance(op, nn.Module):
        name = getattr(op, "__name__", None)
        if name not in ops.__all__ or op is not getattr(ops, name):
            raise TypeError(
                f"op must be an operator of segfast.ops or a module, got {describe(op)}"
            )
        if op.__module__ != ops.dilated_conv2d.__module__:
            served_by = import_module(op.__module__).served_by()
            return Explanation(name, kind, (), served_by.get(kind, "PyTorch"))
    name = type(op).__name__ if isinstance(op, nn.Module) else op.__name__
    recorder = _recorded(op, args, kwargs, device and kind)
    kernels = {plan.kernel for conv in recorder.found for plan in conv.kernels.values()}
    served = [", ".join(sorted(kernels)) or "no convolution"]
    for operator in sorted(recorder.others):
        kernel = import_module(f"segfast.ops.{operator}").served_by().get(kind, "PyTorch")
        served.append(f"{operator}: {kernel}")
    return Explanation(name, kind, tuple(recorder.found), "; ".join(served))


def _kind(op: Any, arguments: Any, device: str | None) -> str:
    """The kind of device of the first tensor."""
    if device is not None:
        kind = device.type if isinstance(device, torch.device) else str(device).partition(":")[0]
        if kind not in ("cpu", "cuda"):
            raise ValueError(f"device must be 'cpu' or 'cuda', got {describe(device)}")
        return kind
    leaves = [*tree_flatten(arguments)[0], *(op.parameters() if isinstance(op, nn.Module) else ())]
    kinds = [leaf.device.type for leaf in leaves if isinstance(leaf, Tensor)]
    return kinds[0] if kinds and kinds[0] != "meta" else "cpu"


def _share(multiplications: int, live: int) -> float:
    return 1 - live / multiplications if multiplications else 0.0


def _either(vertical: int, horizontal: int, usual: int) -> str:
    if vertical == horizontal:
        return "" if vertical == usual else str(vertical)
    return f"{vertical} x {horizontal}"


# ------------------------------------------------------------------------------ looking on


def _recorded(
    op: Any, args: tuple[Any, ...], kwargs: dict[str, Any], device: str | None
) -> _Recorder:
    """What op runs into, on tensors without numbers."""
    mode, recorder = FakeTensorMode(allow_non_fake_inputs=True), _Recorder(device)
    fake = faker(mode)
    args, kwargs = tree_map_only(Tensor, fake, (args, kwargs))
    if isinstance(op, nn.Module):
        op = look_alike(op, fake, {})
    try:
        with torch.no_grad(), mode, recorder, observed_by(recorder):
            op(*args, **kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(
            "op must not depend on numbers in a tensor, which explain does not compute: it calls "
            f"{error.func}"
        ) from error
    return recorder


class _Recorder(TorchDispatchMode):
    def __init__(self, device: str | None) -> None:
        super().__init__()
        self.device = device
        self.found: list[Convolution] = []
        self.others: set[str] = set()  # modules of segfast.ops
        self._next: list[Plan | None] = []  # what serves the next convolutions, together

    def together(self, count: int, plan: Plan | None) -> None:
        """The next `count` convolutions are one call of a kernel, where no gradient is wanted."""
        self._next = [plan] * count

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        y = func(*args, **(kwargs or {}))
        if (operator := operator_of(func.name())) not in (None, "dilated_conv"):
            self.others.add(str(operator))
        if func == _ops._dilated_conv.default:
            x, weight, _, _, _, *strides = args
            self._add(x, weight, y, Strides(*strides), choose)
        elif func == _ops._dilated_conv_grad_input.default:
            x, weight, _, _, *strides = args
            self._add(x, weight, y, Strides(*strides), choose, transposed=True)
        elif func == torch.ops.aten.convolution.default and args[1].dim() == 4:
            x, weight, _, stride, padding, dilation, transposed, _, groups = args
            given = (*stride, *padding, *dilation, groups)
            self._add(x, weight, y, Strides(*given), _torch_plan, transposed)
        return y

    def _add(
        self,
        x: Tensor,
        weight: Tensor,
        y: Tensor,
        strides: Strides,
        chosen: Callable[[Direction, Problem], Plan],
        transposed: bool = False,
    ) -> None:
        inputs, outputs = (y, x) if transposed else (x, y)
        geometry = strides.geometry(inputs.shape[-2:], outputs.shape[-2:], weight.shape[-2:])
        facts = problem(x, weight.shape, geometry, strides.groups)
        facts = facts._replace(device=self.device or facts.device)
        directions = {d: _TRANSPOSED.get(d, d) if transposed else d for d in DIRECTIONS}
        plans = {name: chosen(direction, facts) for name, direction in directions.items()}
        if self._next and (plan := self._next.pop()) is not None:
            plans["forward"] = plan
        convolution = Convolution(
            tuple(x.shape),
            tuple(weight.shape),
            tuple(y.shape),
            facts.dtype,
            facts.channels_last,
            strides,
            transposed,
            len(geometry.rectangles()),
            facts.multiplications(),
            facts.live_multiplications(),
            plans,
        )
        self.found.append(convolution)


def operator_of(raw: str) -> str | None:
    """The module of segfast.ops that a raw operator, "segfast::_max_pack", is of; None: none."""
    library, _, name = raw.partition("::")
    if library != "segfast":
        return None
    return next(module for module, start in _RAW.items() if name.lstrip("_").startswith(start))


def _torch_plan(direction: Direction, problem: Problem) -> Plan:
    return Plan("torch", "PyTorch's own operator was called")


# A transposed convolution is the gradient of a convolution's input, and that is its own.
_TRANSPOSED: dict[Direction, Direction] = {"forward": "grad_input", "grad_input": "forward"}
_ops = torch.ops.segfast
_RAW = {  # how the names of each module's raw operators begin
    "dilated_conv": ("dilated_conv", "atrous_pyramid"),
    "linear_attention": ("linear_attention",),
    "max_unpool": ("max_",),
    "dense_crf": (
        "mean_field", "gaussian_filter", "crf_", "lattice_", "exact_", "feature_range", "softmax"
    ),
}  # fmt: skip
