"""Dense CRF benchmark: who computes.

Every job starts from logits (or energies) and an image in memory and ends with the belief Q,
[L, N]: set-up, all iterations and the last softmax are inside the clock.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

import segfast
from benchmarks._common import Job, version_of, waiting
from benchmarks._dense_crf import gradients
from benchmarks._dense_crf.workloads import Inputs, Workload, on
from segfast.kernels.dense_crf import reference


def _segfast(method: str, spatial: str) -> Callable[[Workload, Inputs], Job]:
    def prepare(workload: Workload, inputs: Inputs) -> Job:
        logits, image = inputs.logits[None], inputs.image[None]
        options: dict[str, Any] = asdict(workload.model) | {"iterations": workload.iterations}

        def job() -> Tensor:
            belief = segfast.ops.mean_field(
                logits,
                image,
                method=method,
                spatial=spatial,
                return_belief=True,
                tolerance=workload.tolerance,
                **options,
            )  # [1, L, H, W]
            return belief[0].flatten(1)

        return job

    return prepare


def _segfast_cpu(workload: Workload, inputs: Inputs) -> Job:
    """Where the others are on a GPU."""
    return _segfast("lattice", "conv")(workload, on("cpu", inputs))


_NORMALIZATION = {
    "none": "NO_NORMALIZATION",
    "before": "NORMALIZE_BEFORE",
    "after": "NORMALIZE_AFTER",
    "symmetric": "NORMALIZE_SYMMETRIC",
}


def _densecrf(package: str) -> Callable[[Workload, Inputs], Job]:
    """pydensecrf's interface as its README uses it, on whichever package provides it."""

    def prepare(workload: Workload, inputs: Inputs) -> Job:
        densecrf = importlib.import_module(f"{package}.densecrf")
        model = workload.model
        normalization = getattr(densecrf, _NORMALIZATION[model.normalization])
        here = on("cpu", inputs)
        energy = -here.logits.flatten(1).contiguous().numpy()  # [L, N]
        rgb = np.ascontiguousarray(here.image.movedim(0, -1).numpy())  # [H, W, 3]

        def job() -> Any:
            crf = densecrf.DenseCRF2D(workload.width, workload.height, workload.labels)
            crf.setUnaryEnergy(energy)
            crf.addPairwiseGaussian(
                sxy=model.spatial_sigma,
                compat=model.spatial_weight,
                normalization=normalization,
            )
            crf.addPairwiseBilateral(
                sxy=model.bilateral_sigma,
                srgb=model.color_sigma,
                rgbim=rgb,
                compat=model.bilateral_weight,
                normalization=normalization,
            )
            return np.asarray(crf.inference(workload.iterations))  # a view where there can be one

        return job

    return prepare


# Entries of K held at once by the brute force: tiles of 8 MB, which stay in the cache, ran fastest
# (128 rows at N = 16384, AMD EPYC: product 0.35 + exp 4.4 + product 0.7 ns per pair). On a GPU
# tiles of 1 GB, whose launches take no time beside the work.
BRUTE_FORCE_TILE = {"cpu": 1 << 21, "cuda": 1 << 28}
SMALLEST_EXPONENT = -120.0  # 2^-120: nothing beside K_ii = 1, and no denormal number yet


class BruteForce:
    """values [C, N] -> values K in float32, over every pair, as a careful PyTorch user writes it.

    Streams over tiles of rows: one matrix product makes the exponents -|f_i - f_j|^2 / 2 (features
    are centred first, so that little cancels), exp in place, one product with the values; nothing
    of size N x N is held. `tuned` also avoids what makes that exp slow on CPUs: 2^x instead of
    e^x, and exponents clamped before K gets denormal. `kept` holds all of K (4 N^2 bytes).
    """

    def __init__(self, features: Tensor, tuned: bool = False, kept: bool = False) -> None:
        centred = features - features.mean(1, keepdim=True)  # [F, N]
        half = centred.square().sum(0, keepdim=True) / -2  # [1, N]
        one = torch.ones_like(half)
        scale = math.log2(math.e) if tuned else 1.0
        self.left = torch.cat([centred, one, half]).T.contiguous()  # [N, F + 2]
        self.right = torch.cat([centred, half, one]) * scale  # [F + 2, N]
        self.tuned = tuned
        pixels = features.shape[1]
        most = BRUTE_FORCE_TILE[features.device.type] // pixels
        rows = pixels if kept else max(1, min(pixels, most))
        self.tiles = range(0, pixels, rows)
        self.tile = features.new_empty(rows, pixels)
        self.kernel = self._rows(0) if kept else None

    def _rows(self, begin: int) -> Tensor:
        """Rows of K from `begin` on, [rows, N]; they live until the next call."""
        rows = self.left[begin : begin + self.tiles.step]
        tile = torch.mm(rows, self.right, out=self.tile[: len(rows)])
        return tile.clamp_(min=SMALLEST_EXPONENT).exp2_() if self.tuned else tile.exp_()

    def __call__(self, values: Tensor) -> Tensor:
        if self.kernel is not None:
            return values @ self.kernel
        return torch.cat([values @ self._rows(begin).T for begin in self.tiles], 1)


def _brute_force(**options: bool) -> Callable[[Workload, Inputs], Job]:
    """Mean field whose bilateral kernel is a `BruteForce`, the spatial one two small products."""

    def prepare(workload: Workload, inputs: Inputs) -> Job:
        model, (height, width) = workload.model, inputs.image.shape[1:]
        if model.normalization != "symmetric":
            raise ValueError("the brute force is written for the symmetric normalisation")

        def axis(size: int) -> Tensor:
            position = torch.arange(size, device=workload.device).float() / model.spatial_sigma
            return torch.exp(-0.5 * (position[:, None] - position[None, :]).square())

        def job() -> Tensor:
            logits = inputs.logits.flatten(1)
            gy, gx = axis(height), axis(width)

            def spatial(values: Tensor) -> Tensor:
                return (gy @ values.reshape(-1, height, width) @ gx).flatten(1)

            terms: list[tuple[float, Callable[[Tensor], Tensor]]] = [
                (model.spatial_weight, spatial),
                (model.bilateral_weight, BruteForce(_features(workload, inputs), **options)),
            ]
            one = logits.new_ones(1, logits.shape[1])
            scaled = [(w, f, (f(one) + 1e-20).rsqrt()) for w, f in terms]
            belief = logits.softmax(0)
            for _ in range(workload.iterations):
                scores = logits
                for weight, filter_, scale in scaled:  # n^-1/2 K n^-1/2 Q
                    scores = scores + weight * scale * filter_(scale * belief)
                belief = scores.softmax(0)
            return belief

        return job

    return prepare


def _features(workload: Workload, inputs: Inputs) -> Tensor:
    """Bilateral features float32 [5, N]."""
    model = workload.model
    image = inputs.image.float()
    return reference.image_features(image, model.bilateral_sigma, model.color_sigma).float()


def filter_inputs(workload: Workload, inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Values [L, N] and features [5, N], float32, of one un-normalised bilateral pass."""
    return inputs.logits.flatten(1).softmax(0), _features(workload, inputs)


def _segfast_filter(workload: Workload, inputs: Inputs) -> Job:
    values, features = filter_inputs(workload, inputs)
    options: dict[str, Any] = {"method": "exact", "tolerance": workload.tolerance}
    return lambda: segfast.ops.gaussian_filter(values[None], features[None], **options)[0]


def _torch_filter(**options: bool) -> Callable[[Workload, Inputs], Job]:
    def prepare(workload: Workload, inputs: Inputs) -> Job:
        values, features = filter_inputs(workload, inputs)
        return lambda: BruteForce(features, **options)(values)

    return prepare


def _served_by_segfast(device: str) -> str:
    return str(segfast.info()["served_by"]["dense_crf"][device])


def _pydensecrf_version(device: str) -> str:
    return f"{version_of('pydensecrf', 'pydensecrf2')}, one thread"


def _torch_version(device: str) -> str:
    return f"torch {torch.__version__}"


@dataclass(frozen=True)
class Provider:
    """Who computes: how a job is prepared, what serves it where, and which package it needs."""

    prepare: Callable[[Workload, Inputs], Job]
    served_by: Callable[[str], str]  # of a device
    needs: str = "segfast"
    remedy: str = ""


PROVIDERS = {
    "segfast": Provider(_segfast("lattice", "conv"), _served_by_segfast),
    "segfast-cpu": Provider(_segfast_cpu, lambda _: _served_by_segfast("cpu")),
    "segfast-lattice-spatial": Provider(_segfast("lattice", "lattice"), _served_by_segfast),
    "segfast-exact": Provider(_segfast("exact", "conv"), _served_by_segfast),
    "segfast-filter": Provider(_segfast_filter, _served_by_segfast),
    "segfast-gradient": Provider(gradients.lattice, _served_by_segfast),
    "segfast-exact-gradient": Provider(gradients.exact, _served_by_segfast),
    "segfast-compat": Provider(_densecrf("segfast.compat.pydensecrf"), _served_by_segfast),
    "pydensecrf": Provider(
        _densecrf("pydensecrf"),
        _pydensecrf_version,
        needs="pydensecrf",
        remedy="pip install pydensecrf2",
    ),
    "torch-brute-force": Provider(_brute_force(), _torch_version),
    "torch-brute-force-tuned": Provider(_brute_force(tuned=True, kept=True), _torch_version),
    "torch-gradient": Provider(gradients.brute_force, _torch_version),
    "torch-filter": Provider(_torch_filter(), _torch_version),
    "torch-filter-tuned": Provider(_torch_filter(tuned=True), _torch_version),
}


def absent(provider: str) -> str | None:
    """None when the provider can run here, else why not and what would help."""
    entry = PROVIDERS[provider]
    if importlib.util.find_spec(entry.needs) is not None:
        return None
    return f"{entry.needs} is not installed here ({entry.remedy})"


def prepare(provider: str, workload: Workload, inputs: Inputs) -> Job:
    """Its job, done when it returns."""
    return waiting(PROVIDERS[provider].prepare(workload, inputs), workload.device)
