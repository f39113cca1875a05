"""The dense CRF operators as PyTorch sees them: schema, kernel, fake, vmap rule.

Gradients: `_dense_crf_backward.py` (what is computed), `_dense_crf_grad.py` (autograd).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from segfast.kernels.dense_crf import reference
from segfast.ops import (
    _dense_crf_exact_cuda,
    _dense_crf_exact_grad,
    _dense_crf_exact_op,
    _dense_crf_lattice_op,
)
from segfast.ops._dense_crf_backward import Record, filter_gradients, pull_back
from segfast.ops._dense_crf_engine import Engine, filter_features, warn_if_slow
from segfast.ops._dense_crf_look import Look, constants, is_recording
from segfast.ops._dense_crf_options import NAMES, NONE, SIGMAS, Each, Options
from segfast.ops._dense_crf_terms import (
    PairwiseTerm,
    compute_dtype,
    placed,
    require_finite_quotients,
)
from segfast.ops._register import batch, fold

TENSORS = ", ".join(f"Tensor {name}" for name in NAMES)
OPTIONS = (
    "int iterations, str normalization, str method, str spatial, float tolerance,"
    " bool keep_steps, bool softmax"
)
FILTER = "Tensor values, Tensor features, str method, str normalization, float tolerance"
# Room for the vertices of a lattice on CUDA, see segfast.ops.gaussian_filter.
CAPACITY = "int? capacity"
torch.library.define("segfast::gaussian_filter", f"({FILTER}, {CAPACITY}=None) -> Tensor")
torch.library.define("segfast::mean_field", f"({TENSORS}, {OPTIONS}, {CAPACITY}=None) -> Tensor")
# Gradients of the tensors that are wanted; empty ones of the others.
torch.library.define(
    "segfast::_gaussian_filter_backward",
    f"(Tensor grad, {FILTER}, {CAPACITY}, bool[] wanted) -> (Tensor, Tensor)",
)
torch.library.define(
    "segfast::_mean_field_backward",
    f"(Tensor grad, {TENSORS}, {OPTIONS}, {CAPACITY}, bool[] wanted)"
    f" -> ({', '.join(['Tensor'] * len(NAMES))})",
)


@torch.library.impl("segfast::gaussian_filter", "default")
@torch.autocast("cpu", enabled=False)  # all arithmetic stays in float32 or float64
def _gaussian_filter(
    values: Tensor, features: Tensor, method: str, normalization: str, tolerance: float,
    capacity: int | None = None,
) -> Tensor:  # fmt: skip
    if _dense_crf_lattice_op.serves(values, method):
        return _dense_crf_lattice_op.gaussian_filter(values, features, normalization, capacity)
    if _dense_crf_exact_cuda.serves(values, method):
        return _dense_crf_exact_cuda.gaussian_filter(values, features, normalization, tolerance)
    dtype = compute_dtype(values.dtype)
    _require_no_recording(method, values.dtype)
    v, f = (x.to("cpu", dtype) for x in (values, features))
    images, names = len(v), ("channels", "positions")
    warn_if_slow("gaussian_filter", v.shape[1:], method == "exact", images=images, names=names)
    y = torch.empty_like(v, memory_format=torch.contiguous_format)  # [B, C, N]
    for b in range(v.shape[0]):
        y[b] = filter_features(v[b], f[b], method, normalization, tolerance)
    return y.to(values.device, values.dtype)


@torch.library.impl("segfast::_gaussian_filter_backward", "default")
@torch.autocast("cpu", enabled=False)
def _gaussian_filter_backward(
    grad: Tensor, values: Tensor, features: Tensor, method: str, normalization: str,
    tolerance: float, capacity: int | None, wanted: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    if _dense_crf_exact_cuda.serves(values, method):
        options = (normalization, tolerance, wanted[1])
        both = _dense_crf_exact_grad.gaussian_filter(grad, values, features, *options)
        kept = [x if w else None for x, w in zip(both, wanted, strict=True)]
        return as_given(kept, (values, features))
    if _dense_crf_lattice_op.serves(values, method) and not wanted[1]:
        g = _dense_crf_lattice_op.gaussian_filter(grad, features, normalization, capacity, True)
        return as_given([g if wanted[0] else None, None], (values, features))
    dtype = compute_dtype(values.dtype)
    g, v, f = (x.to("cpu", dtype) for x in (grad, values, features))
    found = [torch.zeros_like(x) if w else None for x, w in zip((v, f), wanted, strict=True)]
    for b in range(v.shape[0]):
        each = filter_gradients(g[b], v[b], f[b], method, normalization, tolerance, wanted)
        for total, part in zip(found, each, strict=True):
            if total is not None and part is not None:
                total[b] = part
    return as_given(found, (values, features))


class Problem:
    """The tensors of one call: logits, image and mixings where they are, sigmas on the CPU.

    `run` and `gradients` take images one by one to the CPU, in float32 or float64; `features` is
    for kernels that take all of them where they are.
    """

    def __init__(self, tensors: Sequence[Tensor], options: Options) -> None:
        given = Each(*tensors)
        logits, self.image = given.logits, given.image
        self.options = options
        self.dtype = compute_dtype(logits.dtype)
        self.logits = logits
        self.height, self.width = logits.shape[2:]
        self.mixings = [m.detach().double() for m in given.mixings]
        self.sigmas = _deviations(given)

    def run(self, b: int, wanted: Each | None = None) -> tuple[Tensor, Record]:
        """The steps [S, L, N] of an image, and what their gradient needs if any is `wanted`."""
        o = self.options
        terms = self._terms(self.image[b], wanted or NONE)
        unary = self.logits[b].to("cpu", self.dtype).flatten(1)  # [L, N]
        engine = Engine(unary, list(terms.values()), (self.height, self.width), o.tolerance)
        kept = o.iterations if o.keep_steps else max(0, o.iterations - 1) if wanted else 0
        states = unary.new_empty(kept, *unary.shape) if kept else None
        last = engine.run(o.iterations, states, o.softmax)
        steps = last[None] if not o.keep_steps else unary[None][:0] if states is None else states
        return steps, Record(engine, terms, o.iterations, states, last if o.softmax else None)

    def warn_if_slow(self, gradients: bool) -> None:
        exact = self.options.method == "exact" and bool(self.mixings[1].count_nonzero())
        images, labels = self.logits.shape[:2]
        warn_if_slow(
            f"dense CRF, {self.options.iterations} iterations,",
            torch.Size((labels, self.height * self.width)), exact, self.options.iterations, images,
            gradients,
        )  # fmt: skip

    def features(self) -> Tensor:
        """Of the bilateral kernel for all images, where the logits are: [B, 2 + C, N]."""
        *sigma, color = (s.tolist() for s in self.sigmas)
        images = placed(self.image, self.options.method, self.dtype)
        colors = constants(color, images)
        return torch.stack([reference.image_features(x, sigma[1], colors) for x in images])

    def shaped(self, steps: Tensor) -> Tensor:
        """[S, L, N] -> [S, L, H, W] as the caller wants it."""
        steps = steps.unflatten(2, (self.height, self.width))
        return steps.to(self.logits.device, self.logits.dtype)

    def _terms(self, image: Tensor, wanted: Each) -> dict[str, PairwiseTerm]:
        """The kernels of one image [C, H, W]; a zero weight that is not learned drops its term."""
        o = self.options
        terms = {}
        given, image = image, placed(image.cpu(), o.method, self.dtype)
        spatial, bilateral = (m.to("cpu", self.dtype) for m in self.mixings)
        spatial_sigma, bilateral_sigma, color_sigma = (s.tolist() for s in self.sigmas)
        if spatial.count_nonzero() or wanted.spatial_mixing:
            if o.spatial == "conv" or o.method == "exact":
                sigma = (spatial_sigma[0], spatial_sigma[1])
                term = PairwiseTerm(None, spatial, o.normalization, "conv", sigma)
            else:
                grid = reference.position_features(image, spatial_sigma)  # [2, N]
                term = PairwiseTerm(grid, spatial, o.normalization, "lattice")
            terms["spatial"] = term
        present = bool(bilateral.count_nonzero())
        if present or wanted.bilateral_mixing:
            features = reference.image_features(image, bilateral_sigma, color_sigma)  # [2 + C, N]
            term = PairwiseTerm(features, bilateral, o.normalization, o.method)
            finite = not features.numel() or bool(term.span.isfinite().all())
            if not finite:
                require_finite_quotients(given, bilateral_sigma, color_sigma, self.dtype)
            if finite or present:  # 0 NaN is NaN, but a weight of 0 means no term
                terms["bilateral"] = term
        return terms

    def gradients(
        self, grad: Tensor, wanted: Each, records: Sequence[Record] = ()
    ) -> list[Tensor | None]:
        """From dL/dsteps [S, B, L, H, W] to every wanted tensor; `records` of an earlier `run`."""
        grad = grad.to("cpu", self.dtype).flatten(3)  # [S, B, L, N]
        found: list[Tensor | None] = [None] * len(NAMES)
        tensors = (self.logits, self.image, *self.mixings, *self.sigmas)
        for i, (x, w) in enumerate(zip(tensors, wanted, strict=True)):
            if w:
                dtype = self.dtype if i < 2 else torch.float64
                found[i] = torch.zeros(x.shape, dtype=dtype)
        for b in range(grad.shape[1] if grad[:1].numel() else 0):
            record = records[b] if records else self.run(b, wanted)[1]
            parts = pull_back(record, grad[:, b], wanted, self.sigmas)
            for i, (total, part) in enumerate(zip(found, parts, strict=True)):
                if total is not None and part is not None:
                    into = total[b] if i < 2 else total
                    into += part.reshape(into.shape if part.dim() else ())
        return found


def _deviations(given: Each) -> list[Tensor]:
    """The three on the CPU, positive and finite."""
    return [_deviation(name, x) for name, x in zip(SIGMAS, given.sigmas, strict=True)]


def _deviation(name: str, sigma: Tensor) -> Tensor:
    if sigma.is_cuda and is_recording():
        raise ValueError(f"{name} must be numbers while a CUDA graph is recorded, not a tensor")
    sigma = sigma.detach().to("cpu", torch.float64)
    if not bool(((sigma > 0) & sigma.isfinite()).all()):
        raise ValueError(f"{name} must be positive and finite, got {sigma.tolist()}")
    return sigma


@torch.library.impl("segfast::mean_field", "default")
@torch.autocast("cpu", enabled=False)
def _mean_field(*arguments: Any) -> Tensor:
    """Scores [1, B, L, H, W] (their softmax if asked for); scores of all steps if `keep_steps`."""
    tensors, options = Each(*arguments[: len(NAMES)]), Options(*arguments[len(NAMES) :])
    if not _dense_crf_lattice_op.serves(tensors.logits, options.method):
        return refine(Problem(tensors, options))[0]
    return _dense_crf_lattice_op.mean_field(
        tensors.logits, _batch_model(tensors, options), options.iterations, options.keep_steps,
        options.softmax,
    )  # fmt: skip


def _require_no_recording(method: str, dtype: torch.dtype) -> None:
    if is_recording():
        raise ValueError(
            f"a CUDA graph cannot record method={method!r} in {dtype}: no kernel for GPUs serves "
            f"it, and the CPU's would wait for the tensors"
        )


def _batch_model(tensors: Each, options: Options) -> _dense_crf_lattice_op.BatchModel:
    spatial, bilateral, color = (sigma.tolist() for sigma in _deviations(tensors))
    return _dense_crf_lattice_op.BatchModel(
        tensors.image, [m.detach() for m in tensors.mixings], spatial, bilateral, color,
        options.normalization, options.spatial, options.capacity,
    )  # fmt: skip


def refine(problem: Problem, wanted: Each | None = None) -> tuple[Tensor, list[Record]]:
    """The result of segfast::mean_field, and a record per image if gradients are `wanted`."""
    logits, o = problem.logits, problem.options
    if _dense_crf_exact_cuda.serves(logits, o.method):
        return _dense_crf_exact_op.refine(problem), []
    _require_no_recording(o.method, logits.dtype)
    Look(logits, problem.image, (), None).read().warn(problem.sigmas[2].tolist())
    problem.warn_if_slow(bool(wanted))
    if logits.shape[0] == 1 and (o.iterations > 0 or not o.keep_steps):
        steps, record = problem.run(0, wanted)
        return problem.shaped(steps).unsqueeze(1), [record]  # a single image is not copied
    count = o.iterations if o.keep_steps else 1
    result = logits.new_empty((count, *logits.shape))  # [S, B, L, H, W]
    records = []
    for b in range(logits.shape[0] if result.numel() else 0):
        steps, record = problem.run(b, wanted)
        result[:, b] = problem.shaped(steps)
        records += [record] if wanted else []
    return result, records


@torch.library.impl("segfast::_mean_field_backward", "default")
@torch.autocast("cpu", enabled=False)
def _mean_field_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *rest, flags = arguments
    tensors, options = Each(*rest[: len(NAMES)]), Options(*rest[len(NAMES) :])
    wanted = Each(*flags)
    places = wanted.any_bilateral_place or wanted.spatial_sigma
    if not places and _dense_crf_lattice_op.serves(tensors.logits, options.method):
        logits, mixings = _dense_crf_lattice_op.mean_field_gradients(
            grad, tensors.logits, _batch_model(tensors, options), options.iterations,
            options.softmax, wanted.mixings,
        )  # fmt: skip
        found = Each(logits if wanted.logits else None, None, *mixings, *[None] * len(SIGMAS))
        return as_given(found, tensors)
    problem = Problem(tensors, options)
    if _dense_crf_exact_cuda.serves(problem.logits, options.method):
        return as_given(_dense_crf_exact_op.gradients(problem, grad, wanted), tensors)
    _require_no_recording(options.method, problem.logits.dtype)
    return as_given(problem.gradients(grad, wanted), tensors)


def as_given(gradients: Sequence[Tensor | None], like: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradients in the dtypes and on the devices of their tensors; empty for those unwanted."""
    return tuple(
        x.new_empty(0) if g is None else g.to(x.device, x.dtype)
        for g, x in zip(gradients, like, strict=True)
    )


# Fakes: shapes and dtypes only.
@torch.library.register_fake("segfast::gaussian_filter")
def _gaussian_filter_fake(values: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


@torch.library.register_fake("segfast::mean_field")
def _mean_field_fake(logits: Tensor, *arguments: Any) -> Tensor:
    options = Options(*arguments[len(NAMES) - 1 :])
    return logits.new_empty((options.iterations if options.keep_steps else 1, *logits.shape))


@torch.library.register_fake("segfast::_gaussian_filter_backward")
@torch.library.register_fake("segfast::_mean_field_backward")
def _backward_fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    return tuple(
        x.new_empty(x.shape if w else 0) for x, w in zip(tensors, arguments[-1], strict=True)
    )


batch("gaussian_filter")


def _sample_by_sample(name: str) -> Callable[..., tuple[Any, Any]]:
    """The vmap rule that calls the operator once per sample."""
    operator = getattr(torch.ops.segfast, name)

    def rule(info: Any, in_dims: Sequence[Any], *arguments: Any) -> tuple[Any, Any]:
        each = [
            operator(
                *(
                    x.select(dim, i) if isinstance(x, Tensor) and dim is not None else x
                    for x, dim in zip(arguments, in_dims, strict=True)
                )
            )
            for i in range(info.batch_size)
        ]
        if isinstance(each[0], Tensor):
            return torch.stack(each), 0
        return tuple(map(torch.stack, zip(*each, strict=True))), (0,) * len(each[0])

    return rule


for _name in ("_gaussian_filter_backward", "_mean_field_backward"):
    torch.library.register_vmap(f"segfast::{_name}", _sample_by_sample(_name))


@torch.library.register_vmap("segfast::mean_field")
def _mean_field_vmap(
    info: Any, in_dims: Sequence[int | None], logits: Tensor, image: Tensor, *rest: Any
) -> tuple[Tensor, int]:
    """Images are folded into the batch; parameters that differ ask for one call per sample."""
    size = info.batch_size
    x, pixels = fold(logits, in_dims[0], size), fold(image, in_dims[1], size)
    if size == 0 or all(dim is None for dim in in_dims[2 : len(NAMES)]):
        steps = torch.ops.segfast.mean_field(x, pixels, *rest)  # [S, size * B, L, H, W]
        images = logits.shape if in_dims[0] is None else logits.movedim(in_dims[0], 0).shape[1:]
        return steps.unflatten(1, (size, images[0])), 1
    return _sample_by_sample("mean_field")(info, in_dims, logits, image, *rest)
