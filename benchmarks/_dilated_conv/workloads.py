"""Dilated-convolution benchmark: what is computed, on which maps, and what was promised."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import _measure
from benchmarks._targets import Mean, Target
from segfast.kernels.dilated_conv.geometry import Geometry

OTHER = "torch-other-layout"
BEST = f"torch|{OTHER}"  # PyTorch's faster route


@dataclass(frozen=True)
class Workload(_measure.Workload):
    """One line of the table below.

    kind: "conv": one convolution; "pyramid": all of one map, side by side; "context": one after
        another with ReLU between.  train: with the gradients of the map and all weights.
    rates: of the convolutions.  groups: 1 or, depthwise, the channels.  kernel: its side.
    layout: "nchw" or "nhwc" (channels_last).
    """

    kind: str
    train: bool
    batch: int
    channels: int
    outputs: int  # of each convolution
    side: int  # height and width
    rates: tuple[int, ...]
    groups: int = 1
    layout: str = "nchw"
    kernel: int = 3

    @property
    def size(self) -> str:
        """For the table."""
        channels = f"{self.channels}" if self.groups > 1 else f"{self.channels}->{self.outputs}"
        rates = "/".join(map(str, self.rates))
        maps = f"{self.batch}x{channels}x{self.side}x{self.side}"
        kernel = "" if self.kernel == 3 else f"{self.kernel}x{self.kernel}, "
        return f"{maps}, {kernel}rate {rates}, {self.layout}"

    @property
    def memory_format(self) -> torch.memory_format:
        return torch.channels_last if self.layout == "nhwc" else torch.contiguous_format

    @property
    def repeat(self) -> int:
        """Calls per timed job: a single one of a small map is too short to time."""
        enough = 10**12 if self.device == "cuda" else 50_000_000  # milliseconds of work
        return max(1, min(50, enough // (self.flops or 1)))

    @property
    def flops(self) -> int:
        """Those of live taps: products with padding are nobody's work."""
        pairs = self.batch * self.channels * self.outputs // self.groups
        taps = sum(live_taps(self.side, rate, self.kernel) for rate in self.rates)
        return (6 if self.train else 2) * pairs * taps

    @property
    def bytes_moved(self) -> int | None:
        """Depthwise: the map once in, once out; training: x, y and both gradients once, x twice."""
        if self.groups == 1:
            return None
        maps = 5 if self.train else 2
        elements = maps * self.batch * self.channels * self.side**2
        return elements * self.dtype.itemsize


def live_taps(side: int, rate: int, kernel: int = 3) -> int:
    """(output, tap) pairs of a convolution of a square map that read an input."""
    return Geometry.same((side, side), (kernel, kernel), rate).live_pairs()


NEVER_BELOW = Target("torch", 2, 0.95)
PEERS = ("segfast", "torch", OTHER, "torch-compile")
SIMPLE = ("segfast", "torch")
WINOGRAD = (*SIMPLE, "segfast-winograd")  # which is for planes, on the CPU
ASPP = ((33, (6, 12, 18)), (33, (12, 24, 36)), (33, (6, 12, 18, 24)), (65, (12, 24, 36)))
DEPTHWISE = (  # channels, side, rate: MobileNetV3, Xception, separable ASPP
    (960, 33, 2),
    (728, 33, 4),
    (512, 33, 12),
    (2048, 33, 6),
    (2048, 33, 12),
    (2048, 33, 18),
    (64, 129, 8),
    (256, 65, 12),
    (256, 65, 36),
)
LAYERS = (  # of networks at rate 1: channels, side, kernel
    ("mobilenet", 144, 56, 3),
    ("xception", 728, 33, 3),
    ("efficientnet", 240, 28, 5),
    ("convnext", 192, 28, 7),
)
LAYER_DTYPES = (torch.float32, torch.bfloat16)
LARGE_RATE = 7  # from where PyTorch leaves its depthwise kernels
DEPTHWISE_MEANS = {"forward": 8.0, "train": 10.0}
ASPP_MEANS = (("ASPP forward", "torch", 1.4), ("ASPP forward, PyTorch's best route", BEST, 1.1))


def _rows() -> list[Workload]:
    rows = []
    for train in (False, True):
        operation = "train" if train else "forward"
        for layout in ("nchw", "nhwc"):
            for c, side, rate in ((24, 20, 9), *DEPTHWISE):
                small = c == 24
                name = "small" if small else f"{c}x{side}r{rate}"
                large = 2 * sum(r >= LARGE_RATE for _, _, r in DEPTHWISE)
                label = f"depthwise {operation}, rate >= {LARGE_RATE}"
                depthwise = (Mean(label, "torch", 2, DEPTHWISE_MEANS[operation], large),)
                row = Workload(
                    f"{name}-depthwise-{layout}-{operation}", "conv", train, 1, c, c, side, (rate,),
                    c, layout, providers=SIMPLE, seconds=0.5 if small else 5.0,
                    threads=(1,) if small else (2,), targets=() if small else (NEVER_BELOW,),
                    means=depthwise if rate >= LARGE_RATE and not small else (), detail=c != 2048,
                )  # fmt: skip
                rows.append(row)
        for name, c, side, kernel in LAYERS:
            for layout, dtype in itertools.product(("nchw", "nhwc"), LAYER_DTYPES):
                label = f"{name}-depthwise-{layout}-{str(dtype)[6:]}-{operation}"
                rows.append(
                    Workload(
                        label, "conv", train, 1, c, c, side, (1,), c, layout, kernel, dtype=dtype,
                        providers=SIMPLE, seconds=1.0, targets=(NEVER_BELOW,),
                    )
                )  # fmt: skip
        for side, rates in ASPP:
            name = f"aspp{side}r{'-'.join(map(str, rates))}-{operation}"
            means = tuple(Mean(n, peer, 2, ratio, len(ASPP)) for n, peer, ratio in ASPP_MEANS)
            rows.append(
                Workload(
                    name, "pyramid", train, 1, 2048, 256, side, rates, providers=PEERS,
                    targets=(NEVER_BELOW,), means=() if train else means,
                    memory=train and side == 33,
                )
            )  # fmt: skip
        for side, rate in ((33, 2), (33, 4), (65, 2), (65, 4)):
            for layout in ("nchw", "nhwc"):
                name = f"layer4-{side}r{rate}-{layout}-{operation}"
                rows.append(
                    Workload(
                        name, "conv", train, 1, 512, 512, side, (rate,), layout=layout,
                        providers=WINOGRAD if layout == "nchw" else SIMPLE,
                        targets=(NEVER_BELOW,), detail=True,
                    )
                )  # fmt: skip
        rows.append(
            Workload(
                f"context-{operation}", "context", train, 1, 21, 21, 64, (1, 1, 2, 4, 8, 16, 1),
                providers=("segfast", "torch", "torch-compile"), targets=(NEVER_BELOW,),
            )
        )  # fmt: skip
        rows.append(
            Workload(
                f"small-aspp-{operation}", "pyramid", train, 2, 24, 10, 17, (6, 12, 18),
                providers=("segfast", "torch", OTHER), threads=(1,), seconds=0.5,
            )
        )  # fmt: skip
    return rows


BATCHED = (  # networks train with 8 images
    "aspp33r12-24-36-forward",
    "aspp33r12-24-36-train",
    "layer4-33r4-nchw-train",
    "512x33r12-depthwise-nchw-train",
    "512x33r12-depthwise-nhwc-train",
)


def _batches(rows: list[Workload]) -> list[Workload]:
    """Eight images of some rows; promises of means are for one."""
    peers = {"pyramid": ("segfast", "torch", OTHER)}
    return [
        replace(
            row, name=f"{row.name}-batch8", batch=8, means=(), memory=False, detail=True,
            providers=peers.get(row.kind, SIMPLE),
        )
        for row in rows if row.name in BATCHED
    ]  # fmt: skip


# On an H200 in bfloat16, against each way of PyTorch's and every plan of cuDNN's that is there.
GPU_PYRAMID = {33: 3.0, 65: 2.0}  # by side: forward, batch 1
GPU_BATCHED = {False: 1.4, True: 1.3}  # pyramids of batch 8: forward, training
GPU_CONTEXT = 5.0
GPU_SKIP_FLOOR = 0.6  # of a product's rate, over live taps, where one takes 50 us or more
GPU_COPY_SHARE = 0.75  # depthwise, likewise
COMPILED = ("aspp33r6-12-18-forward", "aspp33r6-12-18-train", "context-")
CUDNN, CUDNN_OTHER, PLANS = "cudnn-benchmark", "cudnn-benchmark-other-layout", "cudnn-plans"


def _gpu_targets(row: Workload) -> tuple[Target, ...]:
    def against(ratio: float) -> tuple[Target, ...]:
        peers = {"torch", OTHER, CUDNN, CUDNN_OTHER, PLANS}
        return tuple(Target(peer, 1, ratio) for peer in row.providers if peer in peers)

    never = against(NEVER_BELOW.ratio)
    if row.dtype != torch.bfloat16:
        return never
    if row.kind == "pyramid" and row.batch == 8:
        return against(GPU_BATCHED[row.train])
    if row.kind == "pyramid" and not row.train:
        floor = (Target("", 1, GPU_SKIP_FLOOR, "product"),) if row.side == 65 else ()
        return (*against(GPU_PYRAMID[row.side]), *floor)
    if row.kind == "context" and not row.train:
        return (*never, Target("torch", 1, GPU_CONTEXT))
    if row.groups > 1 and row.name.startswith("cuda-wide"):
        return (*never, Target("", 1, GPU_COPY_SHARE, "copy"))
    return never


def _cuda(row: Workload, suffix: str = "", **change: Any) -> Workload:
    """On a GPU, in the dtype networks train in there unless changed, beside cuDNN at its best."""
    on_gpu: dict[str, Any] = {
        "device": "cuda",
        "dtype": torch.bfloat16,
        "allocator": "default",
        "threads": (1,),
        "seconds": 0.5,
    }
    peers = [p for p in row.providers if change.get("layout") != "nhwc" or "other" not in p]
    compiled = row.name.startswith(COMPILED) and not suffix  # which takes long
    peers = [p for p in peers if p != "segfast-winograd" and (compiled or p != "torch-compile")]
    more = [CUDNN, *[CUDNN_OTHER] * (OTHER in peers), PLANS]
    row = replace(row, name=f"cuda-{row.name}{suffix}", providers=(*peers, *more), means=(),
                  **(on_gpu | change))  # fmt: skip
    return replace(row, targets=_gpu_targets(row))


def _on_gpu() -> list[Workload]:
    """Where cuDNN is hardest to beat comes first: the time of a session there is short."""
    kinds = "pyramid", "conv", "context"
    no = "small", *(name for name, *_ in LAYERS)
    rows = [row for row in CPU if row.batch == 1 and not row.name.startswith(no)]
    rows.sort(key=lambda row: (row.groups > 1, kinds.index(row.kind)))
    pyramids = [row for row in rows if row.kind == "pyramid"]
    few = [row for row in rows if row.name.startswith(OTHER_DTYPES)]
    wide = [row for row in rows if row.name.startswith("2048x33r12-")]
    return [
        *(_cuda(row) for row in rows),
        *(_cuda(row, "-batch8", batch=8) for row in pyramids),
        *(_cuda(replace(row, name=f"wide-{row.name}"), batch=64) for row in wide),
        *(_cuda(row, "-nhwc", layout="nhwc") for row in pyramids),
        *(_cuda(row, "-float16", dtype=torch.float16) for row in few),
        *(_cuda(row, "-float32", dtype=torch.float32) for row in few),
    ]


OTHER_DTYPES = ("aspp33r6-12-18-f", "aspp33r6-12-18-t", "layer4-33r2-", "2048x33r12-")
CPU = [*(rows := _rows()), *_batches(rows)]
WORKLOADS = (*_on_gpu(), *CPU)
BY_NAME = {workload.name: workload for workload in WORKLOADS}


@dataclass(frozen=True)
class Inputs:
    """x [N, C, H, W], the weights [O, C / groups, k, k] and the gradient of the result."""

    x: Tensor
    weights: tuple[Tensor, ...]
    grad: Tensor

    def map(self, change: Any) -> Inputs:
        """The same, every tensor changed."""
        return Inputs(change(self.x), tuple(map(change, self.weights)), change(self.grad))


@functools.lru_cache(maxsize=1)
def inputs_of(workload: Workload) -> Inputs:
    """The same in every run."""
    w = workload
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        values = scale * torch.randn(size, generator=generator)
        return values.to(w.device, w.dtype).contiguous(memory_format=w.memory_format)

    shape = w.outputs, w.channels // w.groups, w.kernel, w.kernel
    scale = math.prod(shape[1:]) ** -0.5
    weights = tuple(normal(*shape, scale=scale) for _ in w.rates)
    side_by_side = len(w.rates) if w.kind == "pyramid" else 1
    grad = normal(w.batch, w.outputs * side_by_side, w.side, w.side)
    return Inputs(normal(w.batch, w.channels, w.side, w.side), weights, grad)
