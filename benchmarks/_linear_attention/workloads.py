"""Linear-attention benchmark: what is computed, on which maps, and what was promised."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import _measure
from benchmarks._targets import Mean, Target

OPERATIONS = ("forward", "train", "block-forward", "block-train")


def _parameters(d: int, e: int) -> int:
    """Weights and biases of the block, and gamma."""
    return 2 * d * e + e * e + 2 * d + e + 1


@dataclass(frozen=True)
class Workload(_measure.Workload):
    """One line of the table below.

    operation: "forward": the attention of q, k, v; "train": that and the gradients of all three;
        "block-...": the same of x + gamma attention(W_q x + b_q, W_k x + b_k, W_v x + b_v).
    batch, features, channels, height, width: B, D, E, and N = height x width.
    """

    operation: str
    feature_map: str
    batch: int
    features: int
    channels: int
    height: int
    width: int

    @property
    def block(self) -> bool:
        """The whole block, with its projections."""
        return self.operation.startswith("block-")

    @property
    def train(self) -> bool:
        """With gradients."""
        return self.operation.endswith("train")

    @property
    def positions(self) -> int:
        return self.height * self.width

    @property
    def size(self) -> str:
        return f"{self.batch}x{self.features}/{self.channels}x{self.height}x{self.width}"

    @property
    def repeat(self) -> int:
        elements = self.batch * self.channels * self.positions
        return max(1, min(50, (200_000_000 if self.device == "cuda" else 2_000_000) // elements))

    @property
    def bytes_moved(self) -> int:
        """Compulsory traffic of one call.

        The state needs all keys before the first output, and its gradient all queries before the
        first gradient of a key: two passes each. The attention reads q, k, v, writes o; backward
        reads q, k, v, dO, writes dQ, dK, dV, each once. The block's passes all read x (backward:
        dy, too), q, k and v are never there; its weights are read twice and their gradients
        written.
        """
        d, e = self.features, self.channels
        if self.block:
            weights = _parameters(d, e)
            maps, passes = (8 * e, 3) if self.train else (3 * e, 1)
            elements = self.batch * self.positions * maps + passes * weights
        else:
            maps = 6 * d + 5 * e if self.train else 2 * d + 2 * e
            elements = self.batch * self.positions * maps
        return elements * self.dtype.itemsize

    @property
    def result_bytes(self) -> int:
        """The result, and in training the gradients of all inputs."""
        d, e = self.features, self.channels
        elements = self.batch * self.positions * e
        if self.train and self.block:
            elements += self.batch * self.positions * e + _parameters(d, e)
        elif self.train:
            elements += self.batch * self.positions * (2 * d + e)
        return elements * self.dtype.itemsize


# Per network: feature map, and (D, E, height = width) of its levels with a 512 x 512 picture on
# the CPU; the GPU's MANet rows have twice the side.
NETWORKS = {
    "manet": ("softplus", ((32, 256, 128), (64, 512, 64), (128, 1024, 32), (256, 2048, 16))),
    "maresu": ("taylor", ((8, 64, 256), (16, 128, 128), (32, 256, 64), (64, 512, 32))),
}
PROMISED_LEVELS = (1, 2)
PEERS = ("segfast", "torch", "torch-compile", "torch-matmul")
SIMPLE = ("segfast", "torch", "torch-matmul")
# Promised as geometric means over the levels above of both networks, float32, batch 1, 2 threads.
MEANS = {
    "forward": (("torch", 4.0), ("torch-compile", 3.0)),
    "train": (("torch", 3.5), ("torch-compile", 3.0)),
}
NONE_BELOW = 2.0
MEMORY = 3.0  # eager's peak of training over ours, both beyond the result and the gradients
NEVER_BELOW = 0.95  # everywhere else
QUADRATIC = {"cpu": 4096, "cuda": 16384}  # positions up to which softmax attention takes part


def promised(operation: str) -> dict[str, Any]:
    """Targets and means of a promised row."""
    targets = [Target(peer, 2, NONE_BELOW) for peer, _ in MEANS[operation]]
    if operation == "train":
        targets.append(Target("torch", 2, MEMORY, "extra memory"))
    rows = len(NETWORKS) * len(PROMISED_LEVELS)
    means = (Mean(operation, peer, 2, ratio, rows) for peer, ratio in MEANS[operation])
    return {"targets": tuple(targets), "means": tuple(means)}


def _workload(
    name: str, operation: str, feature_map: str, shape: tuple[int, ...], **more: Any
) -> Workload:
    row = Workload(f"{name}-{operation}", operation, feature_map, *shape, **more)
    if not row.block and row.positions <= QUADRATIC[row.device] and "torch-matmul" in row.providers:
        row = replace(row, providers=(*row.providers, "sdpa"))
    return row


def _cpu() -> list[Workload]:
    rows = []
    never: dict[str, Any] = {"targets": (Target("torch", 2, NEVER_BELOW),)}
    users: dict[str, Any] = {"allocator": "default", "detail": True, **never}
    for network, (feature_map, levels) in NETWORKS.items():
        add = functools.partial(_workload, feature_map=feature_map)
        for op in OPERATIONS:
            tiny: dict[str, Any] = {"shape": (2, 8, 32, 24, 20), "threads": (1,), "seconds": 0.3}
            rows.append(add(f"small-{network}", op, providers=SIMPLE, **tiny))
        for level, (d, e, side) in enumerate(levels, 1):
            one, four = (1, d, e, side, side), (4, d, e, side, side)
            main = level in PROMISED_LEVELS
            name = f"{network}{level}"
            for op in OPERATIONS:
                core, train = not op.startswith("block"), op.endswith("train")
                more = promised(op) if main and core else never
                more = {"providers": PEERS if main else SIMPLE, "memory": main and train, **more}
                more |= {"seconds": 3.0 if main else 0.7, "detail": not main}
                rows.append(add(name, op, shape=one, **more))
                batch = {"providers": SIMPLE, "seconds": 0.7, "detail": True, **never}
                rows.append(add(f"{name}-batch4", op, shape=four, **batch))
                if main:
                    rows.append(add(f"{name}-users", op, shape=one, **users))
                # MANet's block of PyTorch takes seconds in half precision.
                halves = level == 2 and (core or network == "maresu")
                for dtype in (torch.bfloat16, torch.float16) if halves else ():
                    kind = str(dtype).removeprefix("torch.")
                    rows.append(add(f"{name}-{kind}", op, shape=one, dtype=dtype, detail=True))
    return rows


def _cuda() -> list[Workload]:
    """Batch 4 in the dtype networks train in there."""
    rows = []
    for network, (feature_map, levels) in NETWORKS.items():
        for level, (d, e, side) in enumerate(levels, 1):
            side *= 2 if network == "manet" else 1
            for op in OPERATIONS:
                core, train = not op.startswith("block"), op.endswith("train")
                compiled = core and level in PROMISED_LEVELS
                providers: tuple[str, ...] = PEERS if compiled else SIMPLE
                targets = [Target("torch", 1, 3.0 if core else 4.0)]
                targets += [Target("torch-compile", 1, 1.5)] if compiled else []
                targets += [Target("torch", 1, 2.0, "memory")] if train else []
                if network == "manet" and level == 1 and core:
                    targets.append(Target("", 1, 0.7, "copy"))
                    providers += ("flash-bla",)
                rows.append(
                    _workload(f"cuda-{network}{level}", op, feature_map, (4, d, e, side, side),
                              providers=providers, dtype=torch.bfloat16, device="cuda",
                              threads=(1,), allocator="default", memory=train, detail=level > 2,
                              seconds=1.0, targets=tuple(targets))
                )  # fmt: skip
    return sorted(rows, key=lambda row: row.detail)  # time may run out


# "default" allocators first: its change leaves traces.
WORKLOADS = (*_cuda(), *sorted(_cpu(), key=lambda row: row.allocator))
BY_NAME = {workload.name: workload for workload in WORKLOADS}


@dataclass(frozen=True)
class Inputs:
    """q, k [B, D, N], v [B, E, N]; or x [B, E, H, W], w_q, b_q, w_k, b_k, w_v, b_v, gamma.

    grad: of the result, [B, E, N] or [B, E, H, W].
    """

    tensors: tuple[Tensor, ...]
    grad: Tensor

    def to(self, dtype: torch.dtype) -> Inputs:
        """The same in another dtype."""
        return Inputs(tuple(x.to(dtype) for x in self.tensors), self.grad.to(dtype))


@functools.lru_cache(maxsize=1)
def _inputs(
    shape: tuple[int, int, int, int, int], block: bool, dtype: torch.dtype, device: str
) -> Inputs:
    b, d, e, h, w = shape
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (scale * torch.randn(size, generator=generator)).to(device, dtype)

    if not block:
        tensors = normal(b, d, h * w), normal(b, d, h * w), normal(b, e, h * w)
        return Inputs(tensors, normal(b, e, h * w))
    x, grad = normal(b, e, h, w), normal(b, e, h, w)
    parameters = [p for rows in (d, d, e) for p in (normal(rows, e, scale=e**-0.5), normal(rows))]
    return Inputs((x, *parameters, normal(1)), grad)


def inputs_of(workload: Workload) -> Inputs:
    """The same in every run."""
    w = workload
    shape = (w.batch, w.features, w.channels, w.height, w.width)
    return _inputs(shape, w.block, w.dtype, w.device)
