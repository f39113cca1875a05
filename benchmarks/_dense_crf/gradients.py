"""Dense CRF benchmark, training: forward and backward of <w, Q>, for fixed w [L, N].

Every job ends with the gradient of the logits [L, N]; "exact" ones append the image's, [3, N].
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

import segfast
from benchmarks._common import Job
from benchmarks._dense_crf.workloads import Inputs, Workload
from segfast.kernels.dense_crf import reference


def upstream(logits: Tensor) -> Tensor:
    """w [L, N]: no two elements can stand in for each other."""
    w = torch.linspace(1, 9, logits.numel()).mul(1e3).sin()
    return w.reshape(logits.shape[0], -1).to(logits.device, logits.dtype)


def _leaves(inputs: Inputs) -> tuple[Tensor, Tensor]:
    return inputs.logits.clone().requires_grad_(), inputs.image.float().requires_grad_()


def _joined(belief: Tensor, w: Tensor, leaves: list[Tensor]) -> Tensor:
    """[C, N]: the gradients one below the other, those of the leaves with channels."""
    each = torch.autograd.grad(belief, leaves, w.reshape(belief.shape))
    found = [g.flatten(1) for g in each if g.dim() == 3]
    return torch.cat(found) if len(found) > 1 else found[0]


def lattice(workload: Workload, inputs: Inputs) -> Job:
    """Logits and both weights."""
    w, options = (
        upstream(inputs.logits),
        asdict(workload.model) | {"iterations": workload.iterations},
    )
    logits, _ = _leaves(inputs)
    weights = {
        name: torch.tensor(options[name], device=logits.device, requires_grad=True)
        for name in ("spatial_weight", "bilateral_weight")
    }

    def job() -> Tensor:
        belief = segfast.ops.mean_field(
            logits[None], inputs.image[None], return_belief=True, **(options | weights)
        )
        return _joined(belief, w, [logits, *weights.values()])

    return job


def exact(workload: Workload, inputs: Inputs) -> Job:
    """Logits and image, by the exact method."""
    w, options = (
        upstream(inputs.logits),
        asdict(workload.model) | {"iterations": workload.iterations},
    )
    logits, image = _leaves(inputs)

    def job() -> Tensor:
        belief = segfast.ops.mean_field(
            logits[None], image[None], method="exact", return_belief=True, **options
        )
        return _joined(belief, w, [logits, image])

    return job


def brute_force(workload: Workload, inputs: Inputs) -> Job:
    """Autograd through K [N, N], made by one product; the spatial kernel is two small ones."""
    w, model = upstream(inputs.logits), workload.model
    logits, image = _leaves(inputs)
    if model.normalization != "symmetric":
        raise ValueError("the brute force is written for the symmetric normalisation")
    gy, gx = (
        torch.exp((x[:, None] - x).square() / -2)
        for x in (torch.arange(size).to(w) / model.spatial_sigma for size in image.shape[1:])
    )

    def spatial(values: Tensor) -> Tensor:
        return (gy @ values.reshape(-1, *logits.shape[1:]) @ gx).flatten(1)

    def job() -> Tensor:
        features = reference.image_features(image, model.bilateral_sigma, model.color_sigma)
        centred = features - features.mean(1, keepdim=True)
        half = centred.square().sum(0, keepdim=True) / -2
        one = torch.ones_like(half)
        left, right = torch.cat([centred, one, half]), torch.cat([centred, half, one])
        kernel = (left.T @ right).exp()
        terms = [
            (weight, filter_, filter_(one).rsqrt())
            for weight, filter_ in (
                (model.spatial_weight, spatial),
                (model.bilateral_weight, lambda values: values @ kernel),
            )
        ]
        unary = logits.flatten(1)
        belief = unary.softmax(0)
        for _ in range(workload.iterations):
            messages = [weight * n * filter_(n * belief) for weight, filter_, n in terms]
            belief = (unary + messages[0] + messages[1]).softmax(0)
        return _joined(belief, w, [logits, image])

    return job


def oracle(workload: Workload, inputs: Inputs, method: str) -> Tensor:
    """What the jobs end with, in float64."""
    options: dict[str, Any] = asdict(workload.model) | {"iterations": workload.iterations}
    logits = inputs.logits.double().requires_grad_()
    image = inputs.image.double().requires_grad_()
    scores = reference.mean_field(logits, image, method=method, **options)
    leaves = [logits, image] if method == "exact" else [logits]
    return _joined(scores.softmax(0), upstream(logits), leaves)
