"""Max-unpooling benchmark: what is computed, on which maps, and what was promised."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import _measure
from benchmarks._targets import Target

Shape = tuple[int, int, int, int]
OPERATIONS = ("pool", "unpool", "pool-backward", "unpool-backward", "forward", "train")


@dataclass(frozen=True)
class Workload(_measure.Workload):
    """One line of the table below.

    operation: "pool" (with indices), "unpool", their backwards alone; "forward": pools all the
        maps and unpools them, last first, as SegNet does; "train": the same on maps computed
        before (scaled), and all gradients.
    maps: shapes [N, C, H, W] of the pool's inputs.
    pool: kernel size, stride, padding.
    """

    operation: str
    maps: tuple[Shape, ...]
    layout: str  # "nchw" or "nhwc" (channels_last)
    pool: tuple[int, int, int] = (2, 2, 0)

    @property
    def size(self) -> str:
        """For the table: one map, or how many and the first."""
        n, c, h, w = self.maps[0]
        more = f" and {len(self.maps) - 1} more" if len(self.maps) > 1 else ""
        return f"{n}x{c}x{h}x{w}{more}"

    @property
    def repeat(self) -> int:
        """Calls per timed job: a single one of a small map is too short to time."""
        elements = sum(n * c * h * w for n, c, h, w in self.maps)
        return max(1, min(100, (400_000_000 if self.device == "cuda" else 4_000_000) // elements))

    @property
    def bytes_moved(self) -> int | None:
        """Compulsory traffic of one operation: maps once in, once out; 2 or 4 bits per window."""
        kernel, stride, padding = self.pool
        bits = 2 if kernel == 2 else 4
        total = 0
        for n, c, h, w in self.maps:
            windows = n * c
            for size in (h, w):
                windows *= (size + 2 * padding - kernel) // stride + 1
            total += (n * c * h * w + windows) * self.dtype.itemsize + windows * bits // 8
        return {"forward": 2 * total, "train": None}.get(self.operation, total)


SEGNET = ((64, 360, 480), (128, 180, 240), (256, 90, 120), (512, 45, 60), (512, 22, 30))
MAIN = ((1, *SEGNET[0]),)
PEERS = ("segfast", "torch", "torch-compile")
# Promised against PyTorch eager on two threads.
RATIOS = {
    "nchw": {"pool": 12.0, "unpool": 2.0, "pool-backward": 2.5, "unpool-backward": 1.7},
    "nhwc": {"pool": 1.0, "unpool": 1.4, "pool-backward": 2.0, "unpool-backward": 8.0},
}
COPY_SHARE = 0.6
# On an H200 in bfloat16, with SegNet's batch: PyTorch eager, in both layouts.
ON_GPU = {"pool": 1.6, "unpool": 2.2, "pool-backward": 1.7, "unpool-backward": 1.7}
GPU_COPY_SHARE = 0.8
GPU_BATCH = 12
NEVER_BELOW = 0.95


def pyramid(batch: int) -> tuple[Shape, ...]:
    """The inputs of SegNet's five pools."""
    return tuple((batch, *shape) for shape in SEGNET)


def _rows(layout: str) -> list[Workload]:
    def row(name: str, operation: str, maps: tuple[Shape, ...], **more: Any) -> Workload:
        return Workload(f"{name}{layout}-{operation}", operation, maps, layout, **more)

    users: dict[str, Any] = {"allocator": "default", "memory": True}
    small = ((2, 8, 45, 60), (2, 16, 22, 30))
    rows = [
        *(row("small-", op, small, threads=(1,), seconds=0.5) for op in ("forward", "train")),
        *(row("segnet1-", op, pyramid(1), providers=PEERS, **users) for op in ("forward", "train")),
        *(row("segnet12-", op, pyramid(12), **users) for op in ("forward", "train")),
        *(  # a residual network's first pool
            row("stem-", op, ((8, 64, 112, 112),), pool=(3, 2, 1))
            for op in ("pool", "pool-backward")
        ),
    ]
    for operation, ratio in RATIOS[layout].items():
        promised = Target("torch", 2, ratio), Target("", 2, COPY_SHARE, "copy")
        rows.append(row("", operation, MAIN, providers=PEERS, targets=promised))
        for number, shape in enumerate(pyramid(1), 1):
            never = (Target("torch", 2, NEVER_BELOW),)
            rows.append(row(f"level{number}-", operation, (shape,), detail=True, targets=never))
    return rows


def _cuda(row: Workload) -> Workload:
    """The same on a GPU, in the dtype networks train in there."""
    targets: tuple[Target, ...] = (Target("torch", 1, NEVER_BELOW),)
    if row.operation in ON_GPU:
        faster = Target("torch", 1, ON_GPU[row.operation])
        targets = (faster, Target("", 1, GPU_COPY_SHARE, "copy"))
    maps = tuple((GPU_BATCH, c, h, w) for _, c, h, w in row.maps)
    return replace(row, name=f"cuda-{row.name}", maps=maps, device="cuda", dtype=torch.bfloat16,
                   threads=(1,), allocator="default", targets=targets, seconds=1.0)  # fmt: skip


# "default" allocators first: its change leaves traces.
_CPU = sorted((*_rows("nchw"), *_rows("nhwc")), key=lambda row: row.allocator)
_ON_GPU = ("nchw-", "nhwc-", "segnet12-")
WORKLOADS = (*(_cuda(row) for row in _CPU if row.name.startswith(_ON_GPU)), *_CPU)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


@functools.lru_cache(maxsize=1)
def _maps(shapes: tuple[Shape, ...], layout: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    last = torch.channels_last if layout == "nhwc" else torch.contiguous_format
    return [
        torch.randn(shape, generator=generator).to(device, dtype).contiguous(memory_format=last)
        for shape in shapes
    ]


def inputs_of(workload: Workload) -> list[Tensor]:
    """The maps, the same in every run."""
    return _maps(workload.maps, workload.layout, workload.dtype, workload.device)
