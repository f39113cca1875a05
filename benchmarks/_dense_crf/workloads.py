"""Dense CRF benchmark: what is computed, on which inputs, and what was promised."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from benchmarks._pictures import PICTURES, network_logits
from benchmarks._targets import Target


@dataclass(frozen=True)
class Model:
    """Parameters of the CRF, named as in `segfast.ops.mean_field`."""

    spatial_weight: float = 3.0
    spatial_sigma: float = 3.0
    bilateral_weight: float = 10.0
    bilateral_sigma: float = 80.0
    color_sigma: float = 13.0
    normalization: str = "symmetric"


@dataclass(frozen=True)
class Workload:
    """One line of the table below.

    `size` is (height, width, labels); `providers` are ours first, then whom it is compared with;
    `allocator` is "default" or "warm"; `memory` asks for peak memory, on the CPU in fresh
    processes; `tolerance` is the exact method's.
    """

    name: str
    picture: str
    size: tuple[int, int, int]
    providers: tuple[str, ...]
    model: Model = Model()
    iterations: int = 10
    threads: tuple[int, ...] = (1, 2)
    allocator: str = "default"
    memory: bool = True
    targets: tuple[Target, ...] = ()
    device: str = "cpu"
    tolerance: float = 1e-7

    @property
    def height(self) -> int:
        return self.size[0]

    @property
    def width(self) -> int:
        return self.size[1]

    @property
    def labels(self) -> int:
        return self.size[2]

    @property
    def pixels(self) -> int:
        return self.height * self.width


LATTICE = ("segfast", "segfast-lattice-spatial", "pydensecrf")
ON_GPU: dict[str, Any] = {"device": "cuda", "threads": (1,)}
EXACT = ("segfast-exact", "torch-brute-force", "torch-brute-force-tuned")
TRAIN = ("segfast-gradient", "segfast")  # forward and backward, against the forward pass alone
TRAIN_EXACT = ("segfast-exact-gradient", "segfast-exact", "torch-gradient")
FILTER = ("segfast-filter", "torch-filter", "torch-filter-tuned")

DEEPLAB_V2 = Model(3.0, 1.0, 4.0, 67.0, 3.0, "after")  # ResNet-101, published configuration
CRF_RNN = Model(3.0, 3.0, 5.0, 160.0, 3.0, "after")  # published initial values

VOC, STREET = (375, 500, 21), (1024, 2048, 19)
SMALL, TINY, SQUARE = (96, 128, 5), (48, 64, 5), (128, 128, 21)


def both(peer: str, one: float, two: float) -> tuple[Target, ...]:
    """Promises of time against `peer` on one thread and on two."""
    return Target(peer, 1, one), Target(peer, 2, two)


def at_most(ms: float) -> Target:
    """A promise of time on a GPU."""
    return Target("", 1, ms, of="ms")


# fmt: off
WORKLOADS = (
    Workload("small", "coffee", SMALL, LATTICE, iterations=3, threads=(1,)),
    Workload("small-exact", "coffee", TINY, EXACT, iterations=2, threads=(1,), memory=False),
    Workload("small-filter", "coffee", TINY, FILTER, threads=(1,), memory=False),
    Workload("voc", "coffee", VOC, (*LATTICE, "segfast-compat"),
             targets=both("pydensecrf", 3.5, 6.0)),
    Workload("noise", "noise", VOC, LATTICE,  # more lattice vertices than pixels
             targets=both("pydensecrf", 1.0, 1.0)),
    Workload("deeplab-v2", "coffee", VOC, LATTICE, model=DEEPLAB_V2),
    Workload("crf-rnn", "coffee", VOC, LATTICE, model=CRF_RNN),
    Workload("street", "mosaic", STREET, LATTICE,
             targets=(Target("pydensecrf", 2, 4.0), Target("pydensecrf", 2, 2.0, "memory"))),
    Workload("exact", "coffee", SQUARE, EXACT, iterations=2,
             targets=both("torch-brute-force", 20.0, 20.0)),
    Workload("filter", "coffee", SQUARE, FILTER, memory=False,
             targets=both("torch-filter", 20.0, 20.0)),
    Workload("train", "coffee", VOC, TRAIN, targets=both("segfast", 1 / 3, 1 / 3)),
    Workload("train-exact-64", "coffee", (64, 64, 21), TRAIN_EXACT, iterations=5,
             targets=both("torch-gradient", 1.0, 1.0)),
    Workload("train-exact-128", "coffee", SQUARE, TRAIN_EXACT, iterations=5,
             targets=both("torch-gradient", 1.0, 1.0)),
    # Promised on an H200. One pass of the filter over all pairs, and over those that count.
    Workload("cuda-voc", "coffee", VOC, ("segfast", "segfast-cpu", "pydensecrf"), **ON_GPU,
             targets=(at_most(3.0),)),
    Workload("cuda-noise", "noise", VOC, LATTICE[:1], **ON_GPU),
    Workload("cuda-crf-rnn", "coffee", VOC, LATTICE[:1], model=CRF_RNN, **ON_GPU),
    Workload("cuda-street", "mosaic", STREET, LATTICE[:1], **ON_GPU),
    Workload("cuda-filter", "coffee", VOC, FILTER[:2], **ON_GPU, targets=(at_most(6.0),)),
    Workload("cuda-filter-all-pairs", "coffee", VOC, FILTER[:2], tolerance=0.0, **ON_GPU,
             targets=(at_most(15.0),)),
    Workload("cuda-exact", "coffee", VOC, EXACT[:1], **ON_GPU),
    Workload("cuda-exact-128", "coffee", SQUARE, EXACT[:2], iterations=2, **ON_GPU),
    Workload("cuda-train", "coffee", VOC, TRAIN, **ON_GPU),
    Workload("cuda-train-exact-128", "coffee", SQUARE, TRAIN_EXACT, iterations=5, **ON_GPU),
    # Last: glibc's allocator is not quite its old self once options have been set.
    Workload("voc-warm", "coffee", VOC, LATTICE, allocator="warm", memory=False),
)
# fmt: on
BY_NAME = {workload.name: workload for workload in WORKLOADS}


@dataclass(frozen=True)
class Inputs:
    """logits float32 [L, H, W] (log-probabilities), image uint8 [3, H, W]."""

    logits: Tensor
    image: Tensor


@functools.lru_cache(maxsize=1)
def inputs_of(workload: Workload) -> Inputs:
    """The workload's inputs on its device, the same on every machine and in every run."""
    image = PICTURES[workload.picture](workload.height, workload.width)
    return on(workload.device, Inputs(network_logits(image, workload.labels), image))


def on(device: str, inputs: Inputs) -> Inputs:
    return Inputs(inputs.logits.to(device), inputs.image.to(device))


def crop(inputs: Inputs, height: int = 24, width: int = 32) -> Inputs:
    """A window from the middle, small enough for the float64 oracle."""
    top = max(0, (inputs.image.shape[1] - height) // 2)
    left = max(0, (inputs.image.shape[2] - width) // 2)
    window = (..., slice(top, top + height), slice(left, left + width))
    return Inputs(inputs.logits[window].contiguous(), inputs.image[window].contiguous())


def at(workload: Workload, iterations: int) -> Workload:
    """The same workload with another number of iterations."""
    return replace(workload, iterations=iterations)
