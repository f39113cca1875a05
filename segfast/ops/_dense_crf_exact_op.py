"""Between the dense CRF's operators and the exact method on a GPU: tensors and options as given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from segfast.kernels.dense_crf.reference_grad import image_gradients
from segfast.ops import _dense_crf_exact_cuda, _dense_crf_exact_grad

if TYPE_CHECKING:
    from segfast.ops._dense_crf_op import Problem


def refine(problem: Problem) -> Tensor:
    """segfast::mean_field, [S, B, L, H, W]."""
    o = problem.options
    return _dense_crf_exact_cuda.mean_field(
        problem.logits, problem.features(), problem.mixings, problem.sigmas[0].tolist(),
        o.iterations, o.normalization, o.tolerance, o.keep_steps, o.softmax,
    )  # fmt: skip


def gradients(problem: Problem, grad: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
    """Of segfast::mean_field's seven tensors, None where a gradient is not wanted."""
    o, features = problem.options, problem.features()
    of_features = wanted[1] or wanted[5] or wanted[6]
    found = _dense_crf_exact_grad.mean_field(
        grad, problem.logits, features, problem.mixings, problem.sigmas[0].tolist(),
        o.iterations, o.normalization, o.tolerance, o.keep_steps, o.softmax,
        of_features, wanted[4], (wanted[2], wanted[3]),
    )  # fmt: skip
    image, position, color = None, None, None
    if found.features is not None:
        sigmas = [sigma.to(features.device, torch.float32) for sigma in problem.sigmas[1:]]
        each = [
            image_gradients(g, f, *sigmas) for g, f in zip(found.features, features, strict=True)
        ]
        images, positions, colors = zip(*each, strict=True)
        image = torch.stack(images).reshape(problem.image.shape)
        position, color = torch.stack(positions).sum(0), torch.stack(colors).sum(0)
    tensors = (found.logits, image, *found.mixings, found.spatial_sigma, position, color)
    like = (problem.logits, problem.image, *problem.mixings, *problem.sigmas)
    return [
        None if not w else torch.zeros_like(x, dtype=problem.dtype) if g is None else g
        for g, x, w in zip(tensors, like, wanted, strict=True)
    ]
