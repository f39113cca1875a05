"""What is decided about one module, and what stands against any exchange of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn.modules.lazy import LazyModuleMixin
from torch.nn.utils.parametrize import is_parametrized

HOOKS = (
    "_forward_pre_hooks",
    "_forward_hooks",
    "_backward_pre_hooks",
    "_backward_hooks",
    "_state_dict_pre_hooks",
    "_state_dict_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


class Swap(NamedTuple):
    """A module takes another's place."""

    new: nn.Module
    note: str = ""
    # (old, new) of modules below them that have the same parameters; `undo` hands those back.
    below: tuple[tuple[nn.Module, nn.Module], ...] = ()


class Leave(NamedTuple):
    """A module stays, and why; without `enter` all in it, too."""

    why: str
    enter: bool = True


Verdict = Swap | Leave | None  # None: the module is none of those that a rule knows
Rule = Callable[[nn.Module], Verdict]


def first(rules: tuple[Rule, ...], module: nn.Module) -> Verdict:
    """Of the first rule that knows the module."""
    return next((found for rule in rules if (found := rule(module)) is not None), None)


def not_plain(module: nn.Module, cls: type[nn.Module]) -> str | None:
    """What another module in its place would lose, if it is not just a `cls`."""
    if isinstance(module, LazyModuleMixin):
        return "it is lazy: run the model once first"
    if is_parametrized(module):
        return "it has a parametrization"
    if type(module) is not cls:
        return f"it is of a class derived from {cls.__name__}, whose forward may differ"
    if hooked(module):
        return "it has hooks"
    if "forward" in vars(module):
        return "its forward was replaced"
    if getattr(module, "qconfig", None) is not None:
        return "it is to be quantized"
    if unknown := held(module) - {"weight", "bias"}:
        return f"it holds what a {cls.__name__} does not: {', '.join(sorted(unknown))}"
    for name, parameter in module._parameters.items():
        if parameter is not None and not is_plain_parameter(parameter):
            return f"its {name} is of the class {type(parameter).__name__}"
    return None


def is_plain_parameter(value: object) -> bool:
    """One without a class of its own, which may be sharded or quantized."""
    kinds = (nn.Parameter, FakeTensor)  # a fake parameter is of the class FakeTensor
    return isinstance(value, nn.Parameter) and type(value) in kinds


def held(module: nn.Module) -> set[str]:
    """The names of its own parameters, buffers and children."""
    return {*module._parameters, *module._buffers, *module._modules}


def hooked(module: nn.Module) -> bool:
    return any(getattr(module, name) for name in HOOKS)


def hooked_below(module: nn.Module) -> str | None:
    """Whether something in it would no longer be called by its hooks."""
    for name, child in module.named_modules():
        if hooked(child) or is_parametrized(child):
            where = f"{name} has" if name else "it has"
            return f"{where} hooks or parametrizations"
    return None


def keep_attributes(new: nn.Module, old: nn.Module) -> None:
    """What users wrote onto a module, and what its class does not make again."""
    for name, value in vars(old).items():
        if name not in vars(new) or name == "_reversed_padding_repeated_twice":
            vars(new)[name] = value
    new.training = old.training
