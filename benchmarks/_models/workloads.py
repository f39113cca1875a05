"""Benchmark of whole networks: which ones, on which images."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from benchmarks import _measure

OPERATIONS = ("forward", "backward", "train")


@dataclass(frozen=True)
class Workload(_measure.Workload):
    """One line of the tables below.

    operation: "forward": scores, in evaluation mode; "train": scores and the gradients of all
        parameters, in training mode; "backward": those gradients alone, of scores that are there.
    """

    operation: str
    model: str
    batch: int
    height: int
    width: int
    paper: bool = False  # a cell of the SegNet paper's table

    @property
    def train(self) -> bool:
        """With gradients."""
        return self.operation != "forward"

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
LEAST = {"deconvnet": 225}
TOO_SLOW = {"dilation8_camvid-train"}  # minutes of float64, for a few seconds of float32
SMALL = {"segnet_basic": (32, 48), "maresunet_resnet18": (32, 64)}


def _rows(
    prefix: str,
    networks: Mapping[str, tuple[int, int]],
    batch: int,
    operations: Sequence[str] = ("forward", "train"),
    **more: Any,
) -> list[Workload]:
    return [
        Workload(f"{prefix}{name}-{operation}", operation, name, batch, *size, **more)
        for name, size in networks.items()
        for operation in operations
    ]


def _paper(prefix: str, size: tuple[int, int], **more: Any) -> list[Workload]:
    networks = dict.fromkeys(PAPER, size)
    return _rows(f"{prefix}segnet-paper-", networks, 1, OPERATIONS, paper=True, **more)


_CUDA: dict[str, Any] = {
    "device": "cuda", "threads": (1,), "memory": True, "allocator": "default", "seconds": 2.0,
}  # fmt: skip
_CPU: dict[str, Any] = {"memory": True, "allocator": "default"}
WORKLOADS = (
    *_paper("cuda-", (360, 480), **_CUDA),
    *(
        row
        for row in _rows("cuda-", dict.fromkeys(NETWORKS, (CUDA_SIDE,) * 2), CUDA_BATCH, **_CUDA)
        if row.name.removeprefix("cuda-") not in TOO_SLOW
    ),
    *_rows("small-", SMALL, 2, threads=(1,), seconds=0.5, allocator="default"),
    *_paper("", (240, 320), **_CPU),
    # two images: pyramids normalise one value per image
    *(row for row in _rows("", NETWORKS, 2, **_CPU) if row.name not in TOO_SLOW),
)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


@functools.lru_cache(maxsize=1)
def _image(batch: int, height: int, width: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((batch, 3, height, width), generator=generator).to(device)


def inputs_of(workload: Workload) -> Tensor:
    """x [N, 3, H, W], the same in every run."""
    return _image(workload.batch, workload.height, workload.width, workload.device)
