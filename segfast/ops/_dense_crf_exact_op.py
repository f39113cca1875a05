"""Between the dense CRF's operators and the exact method on a GPU: tensors and options as given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segfast.kernels.dense_crf.reference_grad import image_gradients
from segfast.ops import _dense_crf_exact_cuda, _dense_crf_exact_grad
from segfast.ops._dense_crf_exact_cuda import Call
from segfast.ops._dense_crf_look import Look, Seen, constants, drop_undefined, is_recording
from segfast.ops._dense_crf_options import Each
from segfast.ops._dense_crf_terms import require_finite_quotients

if TYPE_CHECKING:
    from segfast.ops._dense_crf_op import Problem


def _look(problem: Problem, features: Tensor) -> Seen | None:
    """The one wait of a call; nothing is seen while a CUDA graph is recorded."""
    if is_recording():
        return None
    seen = Look(problem.logits, problem.image, problem.mixings, features).read()
    if not seen.finite:
        sigmas = [sigma.tolist() for sigma in problem.sigmas[1:]]
        require_finite_quotients(problem.image, sigmas[0], sigmas[1], problem.dtype)
    return seen


def _call(problem: Problem, features: Tensor, present: Sequence[bool] | None) -> Call:
    return Call(
        problem.logits, features, problem.mixings, problem.sigmas[0].tolist(), problem.options,
        present,
    )  # fmt: skip


def refine(problem: Problem) -> Tensor:
    """segfast::mean_field, [S, B, L, H, W]."""
    features = problem.features()
    if seen := _look(problem, features):
        seen.warn(problem.sigmas[2].tolist())
    present = None if seen is None else seen.present
    return _dense_crf_exact_cuda.mean_field(_call(problem, features, present))


def gradients(problem: Problem, grad: Tensor, wanted: Each) -> list[Tensor | None]:
    """Of segfast::mean_field's seven tensors, None where a gradient is not wanted."""
    features = problem.features()
    seen = _look(problem, features)
    present = None if seen is None else [
        p or learned for p, learned in zip(seen.present, wanted.mixings, strict=True)
    ]  # fmt: skip
    found = _dense_crf_exact_grad.mean_field(
        grad, _call(problem, features, present), wanted.any_bilateral_place, wanted.spatial_sigma
    )
    image, position, color = None, None, None
    if found.features is not None:
        sigmas = [constants(sigma.tolist(), features) for sigma in problem.sigmas[1:]]
        placed, _ = drop_undefined(features, problem.mixings[1])
        each = [image_gradients(g, f, *sigmas) for g, f in zip(found.features, placed, strict=True)]
        images, positions, colors = zip(*each, strict=True)
        image = torch.stack(images).reshape(problem.image.shape)
        position, color = torch.stack(positions).sum(0), torch.stack(colors).sum(0)
    tensors = (found.logits, image, *found.mixings, found.spatial_sigma, position, color)
    like = (problem.logits, problem.image, *problem.mixings, *problem.sigmas)
    return [
        None if not w else torch.zeros_like(x, dtype=problem.dtype) if g is None else g
        for g, x, w in zip(tensors, like, wanted, strict=True)
    ]
