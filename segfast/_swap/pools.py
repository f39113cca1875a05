"""Max-pools and max-unpools: torch.nn's <-> segfast.nn's, with packed indices between both ends.

segfast's unpooling takes PyTorch's int64 indices, too. So every unpooling is exchanged by itself;
a pool that returns indices, where they are seen to go to such unpoolings only, of its geometry.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from segfast._swap.indices import Flow, follow
from segfast._swap.verdict import Leave, Swap, Verdict, keep_attributes, not_plain
from segfast.nn import FixedUnpool2d, MaxPool2d, MaxUnpool2d
from segfast.ops._check import pair
from segfast.ops._max_unpool_geometry import windows_of

Namer = Callable[[nn.Module], str]  # module -> its name in the model


def to_segfast(model: nn.Module, example: Any) -> Callable[[nn.Module], Verdict]:
    """The rule for the pools and unpools of a model."""
    names = {module: name for name, module in model.named_modules()}
    pools = [m for m in names if type(m) is nn.MaxPool2d and m.return_indices]
    unpools = [m for m in names if type(m) in (nn.MaxUnpool2d, MaxUnpool2d)]
    flows: dict[nn.Module, Flow] = {}
    unknown: str | None = None
    if pools and unpools:
        flows, unknown = follow(model, pools, unpools, example)

    def rule(module: nn.Module) -> Verdict:
        if isinstance(module, (MaxPool2d, MaxUnpool2d)):
            return None
        if isinstance(module, nn.MaxUnpool2d):
            why = not_plain(module, nn.MaxUnpool2d) or unlike(module)
            return Leave(why) if why else _swap(module, _unpool(module))
        if not isinstance(module, nn.MaxPool2d):
            return None
        if why := not_plain(module, nn.MaxPool2d) or unlike(module):
            return Leave(why)
        if not module.return_indices:
            return _swap(module, _pool(MaxPool2d, module))
        flow = flows.get(module)
        if why := unknown or _not_inside(module, flow, names.__getitem__):
            return Leave(f"its indices stay int64: {why}")
        ends = ", ".join(sorted(map(names.__getitem__, flow.unpools if flow else ())))
        return _swap(module, _pool(MaxPool2d, module), f"packed indices, to {ends}")

    return rule


def to_torch(model: nn.Module) -> Callable[[nn.Module], Verdict]:
    """The rule for segfast's pools and unpools: packed indices only where both ends stay."""
    stays = next(
        (
            name
            for name, module in model.named_modules()
            if isinstance(module, MaxPool2d)
            and module.return_indices
            and not_plain(module, MaxPool2d)
        ),
        None,
    )

    def rule(module: nn.Module) -> Verdict:
        if isinstance(module, MaxPool2d):
            why = not_plain(module, MaxPool2d)
            return Leave(why) if why else _swap(module, _pool(nn.MaxPool2d, module))
        if isinstance(module, FixedUnpool2d):
            return Leave("PyTorch has no unpooling without indices")
        if not isinstance(module, MaxUnpool2d):
            return None
        if why := not_plain(module, MaxUnpool2d):
            return Leave(why)
        if pair("dilation", module.dilation, 1) != (1, 1):
            return Leave("torch.nn.MaxUnpool2d has no dilation")
        if stays is not None:
            return Leave(f"{stays} stays, and its packed indices may come here")
        return _swap(module, nn.MaxUnpool2d(module.kernel_size, module.stride, module.padding))

    return rule


def unlike(module: Any) -> str | None:
    """Why segfast's kernels do not take these windows."""
    try:
        dilation = getattr(module, "dilation", 1)
        windows_of(module.kernel_size, module.stride, module.padding, dilation)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _not_inside(pool: Any, flow: Flow | None, name: Namer) -> str | None:
    """Why the indices of a pool are not seen to end in unpoolings that understand packed ones."""
    if flow is not None and flow.elsewhere:
        return flow.elsewhere[0]
    if flow is None or not flow.unpools:
        return "no MaxUnpool2d is seen to take them"
    for unpool in flow.unpools:
        ours = type(unpool) is MaxUnpool2d
        why = None if ours else not_plain(unpool, nn.MaxUnpool2d) or unlike(unpool)
        if why:
            return f"{name(unpool)} stays: {why}"
        if _geometry(pool) != _geometry(unpool):
            return f"{name(unpool)} has another kernel, stride, padding or dilation"
    return None


def _geometry(module: Any) -> tuple[Any, ...]:
    dilation = getattr(module, "dilation", 1)
    return windows_of(module.kernel_size, module.stride, module.padding, dilation)


def _swap(old: nn.Module, new: nn.Module, note: str = "") -> Swap:
    keep_attributes(new, old)
    return Swap(new, note)


def _pool(cls: type[nn.MaxPool2d], pool: nn.MaxPool2d) -> nn.MaxPool2d:
    return cls(
        pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.return_indices,
        pool.ceil_mode,
    )  # fmt: skip


def _unpool(unpool: nn.MaxUnpool2d) -> MaxUnpool2d:
    return MaxUnpool2d(unpool.kernel_size, unpool.stride, unpool.padding)
