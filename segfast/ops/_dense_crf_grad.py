"""Derivatives of the dense CRF as autograd sees them.

Each operator is an autograd.Function, for torch.func and torch.compile, and the same formula is
registered for the raw operator, for exported graphs. Run eagerly on the CPU, `mean_field` keeps
what its run made (lattices, the scores of every iteration); elsewhere the backward operator makes
it again. Second derivatives and forward mode are refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import reduce
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch.autograd import Function

from segfast.ops._dense_crf_op import Problem, as_given, refine
from segfast.ops._dense_crf_options import NAMES, SIGMAS, Each, Options
from segfast.ops._function import call, forward_of, needs_graph, watched

_ops = torch.ops.segfast


def _refuse(*_: Any) -> NoReturn:
    raise NotImplementedError(
        "the gradient of the dense CRF has no derivative: second derivatives are not available"
    )


class _Final(Function):
    """Not to be differentiated."""

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> NoReturn:
        _refuse()


class GaussianFilterBackward(_Final):
    forward = forward_of(_ops._gaussian_filter_backward.default)


class MeanFieldBackward(_Final):
    forward = forward_of(_ops._mean_field_backward.default)


class GaussianFilter(Function):
    generate_vmap_rule = True
    forward = forward_of(_ops.gaussian_filter.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, features, *ctx.options = inputs
        ctx.save_for_backward(values, features)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[:2])
        require_exact(ctx.options[0], {"features": wanted[1]})
        found = call(GaussianFilterBackward, grad, *ctx.saved_tensors, *ctx.options, wanted)
        return _given(found, wanted, len(ctx.options))


class MeanField(Function):
    """segfast::mean_field; its gradient runs the model again."""

    generate_vmap_rule = True
    forward = forward_of(_ops.mean_field.default)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[: len(NAMES)])
        ctx.options = inputs[len(NAMES) :]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        wanted = list(ctx.needs_input_grad[: len(NAMES)])
        require_exact(Options(*ctx.options).method, _pixels(wanted))
        found = call(MeanFieldBackward, grad, *ctx.saved_tensors, *ctx.options, wanted)
        return _given(found, wanted, len(ctx.options))


class _KeptBackward(_Final):
    """`run(grad)`; the tensors are here for the graph, which must not end silently."""

    @staticmethod
    def forward(run: Callable[[Tensor], Any], grad: Tensor, *tensors: Tensor) -> Any:
        return run(grad)


IMAGE = NAMES.index("image")


class KeptMeanField(Function):
    """mean_field whose lattices and states are kept for the gradient, until it was taken."""

    @staticmethod
    def forward(ctx: Any, options: Options, *tensors: Tensor) -> Tensor:
        ctx.problem = Problem(tensors, options)
        with torch.autocast("cpu", enabled=False):
            result, records = refine(ctx.problem, Each(*ctx.needs_input_grad[1:]))
        # Not a view made in here, which nobody could change in place.
        result = result.new_empty(0).set_(result)  # type: ignore[call-overload]
        # What autograd saves is freed with the graph, and refused if it was written to since. The
        # result may share memory with the states.
        shared = [result] if options.keep_steps or options.softmax else []
        ctx.count = len(records)
        if options.method != "exact":  # a lattice stands for the image, which may change
            tensors = (*tensors[:IMAGE], tensors[IMAGE].new_empty(0), *tensors[IMAGE + 1 :])
        ctx.save_for_backward(*tensors, *(r.states for r in records), *shared)
        ctx.records = [replace(r, states=None) for r in records]
        return result

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        saved = ctx.saved_tensors  # once: checkpoints unpack but once
        tensors, rest = saved[: len(NAMES)], saved[len(NAMES) :]
        wanted = Each(*ctx.needs_input_grad[1:])
        records = [
            replace(r, states=s) for r, s in zip(ctx.records, rest[: ctx.count], strict=True)
        ]

        def run(grad: Tensor) -> tuple[Tensor, ...]:
            with torch.autocast("cpu", enabled=False):
                return as_given(problem.gradients(grad, wanted, records), tensors)

        problem = ctx.problem
        found = _KeptBackward.apply(run, grad, *tensors)
        if not _graph_is_retained():
            ctx.problem = ctx.records = None
        return None, *_given(found, wanted, 0)


def _graph_is_retained() -> bool:
    """Whether the running backward may be followed by another one; yes if PyTorch does not tell."""
    tell = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)
    return bool(tell())


class Belief(Function):
    """softmax over the labels of [..., L, H, W], with the same bits for any number of threads.

    PyTorch's own depends on it down the columns, and its gradient along rows, too.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor) -> Tensor:
        return scores.movedim(-3, -1).contiguous().softmax(-1).movedim(-1, -3).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (belief,) = ctx.saved_tensors
        along = reduce(torch.add, (grad * belief).unbind(-3))
        return belief * (grad - along.unsqueeze(-3))


def _given(
    found: Sequence[Tensor], wanted: Sequence[bool], options: int
) -> tuple[Tensor | None, ...]:
    return *(g if w else None for g, w in zip(found, wanted, strict=True)), *[None] * options


def _pixels(wanted: Sequence[bool]) -> dict[str, bool]:
    """Of the arguments that place the pixels: whether a gradient is wanted."""
    flags = dict(zip(NAMES, wanted, strict=True))
    return {name: flags[name] for name in ("image", *SIGMAS)}


def require_exact(method: str, wanted: Mapping[str, bool]) -> None:
    """Refuses gradients of where the pixels stand unless every pair is summed."""
    for name, it in wanted.items():
        if it and method != "exact":
            raise ValueError(
                f'{name} must not require a gradient with method="{method}": the lattice has none '
                f'with respect to where the pixels stand; use method="exact" or {name}.detach()'
            )


def gaussian_filter(values: Tensor, features: Tensor, *options: Any) -> Tensor:
    require_exact(options[0], {"features": differentiated(features)})
    return call(GaussianFilter, values, features, *options)


def mean_field(tensors: Sequence[Tensor], options: Options) -> Tensor:
    """segfast::mean_field with its gradient; run eagerly on the CPU, its run is kept for it."""
    require_exact(options.method, _pixels([differentiated(x) for x in tensors]))
    if tensors[0].is_cpu and needs_graph(*tensors) and not watched():
        return call(KeptMeanField, options, *tensors)
    return call(MeanField, *tensors, *options.arguments())


def differentiated(x: Tensor) -> bool:
    return torch.is_grad_enabled() and x.requires_grad


for _name, _function in (("gaussian_filter", GaussianFilter), ("mean_field", MeanField)):
    torch.library.register_autograd(
        f"segfast::{_name}", _function.backward, setup_context=_function.setup_context
    )
for _name in ("_gaussian_filter_backward", "_mean_field_backward"):
    torch.library.register_autograd(f"segfast::{_name}", _refuse)
