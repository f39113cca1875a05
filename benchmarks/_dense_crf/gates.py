"""Dense CRF benchmark: the gates every provider passes before anything is timed."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from benchmarks._dense_crf import gradients
from benchmarks._dense_crf.providers import absent, filter_inputs, prepare
from benchmarks._dense_crf.workloads import BY_NAME, Inputs, Workload, at, crop, inputs_of, on
from benchmarks._gate import gate
from segfast.kernels.dense_crf import reference


def _oracle(workload: Workload, inputs: Inputs, method: str, spatial: str) -> Tensor:
    """Belief [L, N] of the float64 reference."""
    model = asdict(workload.model)
    sigmas = {key: float(model[key]) for key in ("spatial_sigma", "bilateral_sigma", "color_sigma")}
    scores = reference.mean_field(
        inputs.logits.double(),
        inputs.image.double(),
        **(model | sigmas),
        compatibility=None,
        iterations=workload.iterations,
        method=method,
        spatial=spatial,
    )
    return scores.flatten(1).softmax(0)


ONE_ITERATION = 1e-5  # max |dQ| that the project promises after one iteration in float32
# A float32 exponent of size e = |f|^2 / 2 (up to ~100 here) rounds by e * 6e-8 in each of its
# F + 2 products, and K with it; un-normalised sums then carry that relative error.
BRUTE_FORCE_RELATIVE = 1e-4
# Ours takes differences first: 1e-7 of dropped mass, and the rounding, 6e-8 each, of a handful of
# products and of a sum's longest chain.
OURS_RELATIVE = 5e-6


def _relative(provider: str, truth: Tensor) -> float:
    relative = BRUTE_FORCE_RELATIVE if provider.startswith("torch") else OURS_RELATIVE
    return relative * float(truth.abs().max())


def _run(provider: str, workload: Workload, inputs: Inputs) -> Any:
    result = prepare(provider, workload, inputs)()
    return result.cpu() if isinstance(result, Tensor) else result


def run_gates(workload: Workload, inputs: Inputs) -> list[dict[str, Any]]:
    """Raises WrongResult unless every provider of the workload computes the right thing."""
    small = crop(inputs)  # where the jobs run
    here = on("cpu", small)
    height, width = small.image.shape[1:]
    cropped = replace(at(workload, 1), size=(height, width, workload.labels))
    passed = []
    if "segfast-filter" in workload.providers:
        values, features = filter_inputs(cropped, here)
        truth = reference.gaussian_filter(values.double(), features.double())
        for provider in workload.providers:
            name = f"{provider} against float64, {height}x{width}"
            limit = _relative(provider, truth)
            passed.append(gate(name, _run(provider, cropped, small), truth, limit))
        return passed
    oracles = {
        "segfast": ("lattice", "conv"),
        "segfast-cpu": ("lattice", "conv"),
        "segfast-lattice-spatial": ("lattice", "lattice"),
        "segfast-exact": ("exact", "conv"),
        "torch-brute-force": ("exact", "conv"),
        "torch-brute-force-tuned": ("exact", "conv"),
    }
    slopes = {
        "segfast-gradient": "lattice",
        "segfast-exact-gradient": "exact",
        "torch-gradient": "exact",
    }
    for provider in workload.providers:
        if provider in slopes:
            truth = gradients.oracle(cropped, here, slopes[provider])
            limit = _relative(provider, truth)
            name = f"{provider} against float64 autograd, {height}x{width}, 1 iteration"
            passed.append(gate(name, _run(provider, cropped, small), truth, limit))
        if provider in oracles:
            truth = _oracle(cropped, here, *oracles[provider])
            limit = BRUTE_FORCE_RELATIVE if provider.startswith("torch") else ONE_ITERATION
            name = f"{provider} against float64, {height}x{width}, 1 iteration"
            passed.append(gate(name, _run(provider, cropped, small), truth, limit))
    if "pydensecrf" in workload.providers and absent("pydensecrf") is None:
        theirs = _run("pydensecrf", at(workload, 1), inputs)
        for provider in {"segfast-lattice-spatial", "segfast-compat"} & set(workload.providers):
            ours = _run(provider, at(workload, 1), inputs)
            name = f"{provider} against pydensecrf, full size, 1 iteration"
            passed.append(gate(name, ours, theirs, ONE_ITERATION))
    return passed


@functools.cache
def gates(name: str) -> list[dict[str, Any]]:
    """`run_gates` of a workload by name, once per session."""
    return run_gates(BY_NAME[name], inputs_of(BY_NAME[name]))
