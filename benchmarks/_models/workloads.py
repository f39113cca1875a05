"""Benchmark of whole networks: which ones, on which images."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import _measure

OPERATIONS = ("forward", "train")


@dataclass(frozen=True)
class Workload(_measure.Workload):
    """One line of the tables below.

    operation: "forward": scores, in evaluation mode; "train": scores and the gradients of all
        parameters, in training mode.
    """

    operation: str
    model: str
    batch: int
    height: int
    width: int

    @property
    def train(self) -> bool:
        """With gradients."""
        return self.operation == "train"

    @property
    def size(self) -> str:
        return f"{self.model}, {self.batch}x3x{self.height}x{self.width}"


# name: height, width on the CPU
NETWORKS = {
    "segnet": (180, 240),
    "deeplabv3_resnet50": (129, 129),
    "deeplabv3plus_mobilenet_v2": (129, 129),
    "pspnet_resnet50": (129, 129),
    "danet_resnet50": (128, 128),
    "fcn8s_vgg16": (128, 128),
    "dilation8_camvid": (128, 128),
    "hrnet_w18_small": (128, 128),
    "manet_resnet50": (128, 128),
    "maresunet_resnet18": (128, 128),
    "abcnet_resnet18": (128, 128),
}
CUDA_SIDE, CUDA_BATCH = 512, 4
# Whose costs the SegNet paper compares; its FCN is FCN-8s. DeconvNet trains on 225 pixels and more.
PAPER = ("segnet", "deeplabv1_largefov", "fcn8s_vgg16", "deconvnet")
PAPER_SIZES = {"cpu": (120, 160), "cuda": (360, 480)}
LEAST = {"deconvnet": 225}
SMALL = {"segnet_basic": (32, 48), "maresunet_resnet18": (32, 64)}


def _rows(
    prefix: str, networks: dict[str, tuple[int, int]], batch: int, **more: Any
) -> list[Workload]:
    return [
        Workload(f"{prefix}{name}-{operation}", operation, name, batch, *size, **more)
        for name, size in networks.items()
        for operation in OPERATIONS
    ]


def _paper(device: str) -> dict[str, tuple[int, int]]:
    height, width = PAPER_SIZES[device]
    return {n: (max(height, LEAST.get(n, 0)), max(width, LEAST.get(n, 0))) for n in PAPER}


_CUDA: dict[str, Any] = {"device": "cuda", "threads": (1,), "memory": True, "allocator": "default"}
_CPU: dict[str, Any] = {"memory": True, "allocator": "default"}
WORKLOADS = (
    *_rows("cuda-segnet-paper-", _paper("cuda"), 1, **_CUDA),
    *_rows("cuda-", dict.fromkeys(NETWORKS, (CUDA_SIDE, CUDA_SIDE)), CUDA_BATCH, **_CUDA),
    *_rows("small-", SMALL, 2, threads=(1,), seconds=0.3, allocator="default"),
    *_rows("segnet-paper-", _paper("cpu"), 1, **_CPU),
    *_rows("", NETWORKS, 2, **_CPU),  # pyramids normalise one value per image
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


@functools.lru_cache(maxsize=1)
def _image(batch: int, height: int, width: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((batch, 3, height, width), generator=generator).to(device)


def inputs_of(workload: Workload) -> Tensor:
    """x [N, 3, H, W], the same in every run."""
    return _image(workload.batch, workload.height, workload.width, workload.device)
