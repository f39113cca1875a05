"""Where the modules of a model are, and models in which nothing can be exchanged."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch.fx
from torch import nn


class Site(NamedTuple):
    """A module and where it is."""

    module: nn.Module
    name: str  # of its first place, "" for the model itself
    places: list[tuple[nn.Module, str]]  # (parent, name there): several where it is shared


def sites(model: nn.Module) -> Iterator[Site]:
    """Every module once, parents first."""
    places: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                places.setdefault(child, []).append((parent, name))
    for name, module in model.named_modules():
        yield Site(module, name, places.get(module, []))


def require_model(model: object) -> None:
    """Refuses what has been compiled or exported: its code does not ask its modules any more."""
    if not isinstance(model, nn.Module):
        hint = ": swap its module before it is exported" if "Export" in type(model).__name__ else ""
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}{hint}")
    for name, module in model.named_modules():
        if how := _frozen(module):
            what = f"its {name} is" if name else "it is"
            raise ValueError(f"model must be swapped before it is {how}; {what} already")


def _frozen(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "compiled by torch.jit"
    if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
        return "compiled by torch.compile"
    graph = getattr(module, "graph", None)
    if isinstance(graph, torch.fx.Graph) and any(
        isinstance(node.target, torch._ops.OpOverload) for node in graph.nodes
    ):
        return "exported"
    return None


def kind(module: nn.Module) -> str:
    """Its class, by the package that it is imported from where that is torch.nn or segfast.nn."""
    cls = type(module)
    for package in ("torch", "segfast"):
        if cls.__module__.startswith(f"{package}.nn."):
            return f"{package}.nn.{cls.__name__}"
    return cls.__name__
