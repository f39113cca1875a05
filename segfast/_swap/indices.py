"""Where the indices of max-pools go: found by running a look-alike of the model.

In the look-alike pools give tokens in the place of indices. A token knows to which unpoolings it
was given; asked for anything else it says so and behaves as indices would. The look-alike runs on
an example without numbers, or on torch.fx's proxies, which stand for every input.
"""

from __future__ import annotations

import contextlib
import gc
import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from segfast._look_alike import faker, look_alike


class Flow:
    """Where the indices of one pool went.

    Attributes:
        unpools: modules that were given them.
        elsewhere: what else was done with them.
    """

    def __init__(self) -> None:
        self.unpools: set[nn.Module] = set()
        self.elsewhere: list[str] = []


class Token:
    """In the place of the indices of one call of a pool."""

    def __init__(self, flow: Flow, indices: Any) -> None:
        self.__dict__.update(_flow=flow, _indices=indices)

    def given_to(self, unpool: nn.Module) -> Any:
        self._flow.unpools.add(unpool)
        return self._indices

    def used(self, how: str) -> Any:
        self._flow.elsewhere.append(how)
        return self._indices

    def __getattr__(self, name: str) -> Any:
        return getattr(self.used(f"the model asks for their {name}"), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", func)
        args, kwargs = tree_map_only(
            Token, lambda token: token.used(f"torch's {name} takes them"), (args, kwargs or {})
        )
        return func(*args, **kwargs)


def _operator(name: str) -> Callable[..., Any]:
    return lambda self, *args: getattr(self.used("the model reckons with them"), name)(*args)


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "mod", "getitem"):
    setattr(Token, f"__{_name}__", _operator(f"__{_name}__"))


def follow(
    model: nn.Module, pools: Iterable[nn.Module], unpools: Iterable[nn.Module], example: Any = None
) -> tuple[dict[nn.Module, Flow], str | None]:
    """Pool -> where its indices go; and why that is not known, if it is not.

    Args:
        pools, unpools: modules of the model.
        example: an input, a tuple of inputs, a dict of arguments, or None: torch.fx traces.
    """
    flows = {pool: Flow() for pool in pools}
    tokens: list[weakref.ref[Token]] = []
    new: dict[Any, nn.Module] = {}
    with _collected():
        try:
            if example is None:
                twin = look_alike(model, lambda x: x.to("meta"), new)
                _wire(new, flows, unpools, tokens)
                results = _trace(twin, [new[module] for module in (*flows, *unpools)])
            else:
                mode = FakeTensorMode(allow_non_fake_inputs=True)
                fake = faker(mode)
                twin = look_alike(model, fake, new).eval()
                _wire(new, flows, unpools, tokens)
                args, kwargs = tree_map_only(Tensor, fake, _arguments(example))
                with torch.no_grad(), mode:
                    results = twin(*args, **kwargs)
        except Exception as error:  # whatever somebody's forward may raise
            what = "torch.fx does not trace the model, give example="
            what = what if example is None else "the model does not run on fake tensors"
            return {}, f"{what} ({type(error).__name__}: {error})".split("\n")[0]
    for reference in tokens:
        if (token := reference()) is not None:  # held by the results or by the look-alike
            token.used("the model returns or keeps them")
    del results
    return flows, None


@contextlib.contextmanager
def _collected() -> Iterator[None]:
    """What the block has made and let go is gone when it ends, cycles too.

    Only what is younger than the block is looked at: all of a process takes a second.
    """
    ours = gc.get_freeze_count() == 0  # what somebody else froze is not ours to thaw
    if ours:
        gc.freeze()
    try:
        yield
    finally:
        gc.collect()
        if ours:
            gc.unfreeze()


def _wire(
    new: dict[Any, nn.Module], flows: dict[nn.Module, Flow], unpools: Iterable[nn.Module],
    tokens: list[Any],
) -> None:  # fmt: skip
    """Pools of the look-alike give tokens, unpoolings take them."""
    for pool, flow in flows.items():
        vars(new[pool])["forward"] = _pooling(pool, flow, tokens)
    for unpool in unpools:
        vars(new[unpool])["forward"] = _unpooling(unpool, new[unpool].forward)


def _pooling(pool: Any, flow: Flow, tokens: list[Any]) -> Callable[..., Any]:
    def forward(input: Any) -> Any:
        y = F.max_pool2d(
            input, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode
        )
        token = Token(flow, torch.zeros_like(y, dtype=torch.int64))
        tokens.append(weakref.ref(token))
        return y, token

    return forward


def _unpooling(unpool: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
    def forward(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map_only(
            Token, lambda token: token.given_to(unpool), (args, dict(kwargs))
        )
        return original(*args, **kwargs)

    return forward


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, dict):
        return (), example
    return (tuple(example) if isinstance(example, tuple) else (example,)), {}


class _Tracer(torch.fx.Tracer):
    """Goes into what holds one of the `followed`; everything else is one node."""

    def __init__(self, followed: Iterable[nn.Module]) -> None:
        super().__init__()
        self.followed = set(followed)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return self.followed.isdisjoint(m.modules())

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Token):
            a = a.used("the model returns them, or gives them to something else")
        return super().create_arg(a)


def _trace(twin: nn.Module, followed: list[nn.Module]) -> torch.fx.Graph:
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(twin.forward).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    return _Tracer(followed).trace(twin, concrete_args=defaults)
