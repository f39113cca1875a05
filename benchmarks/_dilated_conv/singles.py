"""Single convolutions for benchmarks/tune.py: the benchmark's own, and what else has a rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks._dilated_conv.workloads import WORKLOADS
from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.ops._dilated_conv_plan import Strides
from segfast.ops._layout import dtype_name


@dataclass(frozen=True)
class Single:
    """A convolution of one square map, zeros around: at stride 1 it keeps the map's size."""

    channels: int
    outputs: int
    side: int
    rate: int
    groups: int = 1
    layout: str = "nchw"
    kernel: int = 3
    stride: int = 1
    dtype: str = "float32"

    @property
    def name(self) -> str:
        shape = f"{self.channels}-{self.outputs}x{self.side}r{self.rate}g{self.groups}{self.layout}"
        taps = f"k{self.kernel}" if self.kernel != 3 else ""
        step = f"s{self.stride}" if self.stride != 1 else ""
        return shape + taps + step + (self.dtype if self.dtype != "float32" else "")

    @property
    def padding(self) -> int:
        return self.kernel // 2 * self.rate

    @property
    def strides(self) -> Strides:
        step, before, rate = self.stride, self.padding, self.rate
        return Strides(step, step, before, before, rate, rate, self.groups)

    @property
    def geometry(self) -> Geometry:
        outputs = (self.side + 2 * self.padding - self.rate * (self.kernel - 1) - 1) // self.stride
        sizes = ((side, side) for side in (self.side, outputs + 1, self.kernel))
        return self.strides.geometry(*sizes)

    def tensors(self, device: str) -> tuple[Tensor, Tensor, Tensor]:
        """x, the weight and the gradient of the result."""
        generator = torch.Generator().manual_seed(0)
        nhwc, rows = self.layout == "nhwc", self.geometry.rows
        layout = torch.channels_last if nhwc else torch.contiguous_format

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(device, getattr(torch, self.dtype))

        x = normal(1, self.channels, rows.input, rows.input)
        weight = normal(self.outputs, self.channels // self.groups, self.kernel, self.kernel)
        grad = normal(1, self.outputs, rows.output, rows.output)
        return x.contiguous(memory_format=layout), weight, grad.contiguous(memory_format=layout)


def depthwise(channels: int, side: int, rate: int, **more: object) -> Single:
    return Single(channels, channels, side, rate, channels, **more)  # type: ignore[arg-type]


BOTH = ("nchw", "nhwc")
HALVES = ("bfloat16", "float16")
MORE = (
    # depthwise: PyTorch's kernels of planes at low rates on narrow maps, of channels_last at 3x3
    *(depthwise(512, side, 1, layout=layout) for side in (14, 33) for layout in BOTH),
    *(depthwise(512, side, rate) for side in (10, 15, 20, 28) for rate in (1, 2)),
    *(
        depthwise(256, side, rate, kernel=5, layout=layout)
        for side in (15, 33, 65) for rate in (1, 2, 4) for layout in BOTH
    ),
    *(
        depthwise(256, side, rate, kernel=7, layout=layout)
        for side in (33, 65) for rate in (1, 2) for layout in BOTH
    ),
    *(
        depthwise(256, 65, rate, kernel=kernel, stride=2, layout=layout)
        for kernel in (3, 5) for rate in (1, 2) for layout in BOTH
    ),
    *(
        depthwise(512, 33, rate, layout=layout, dtype=dtype)
        for rate in (2, 12) for layout in BOTH for dtype in HALVES
    ),
    # groups of few channels: PyTorch has blocks of eight
    *(
        Single(256, outputs, 33, rate, 32)
        for outputs in (128, 256, 512, 2048) for rate in (1, 2, 6, 12)
    ),
    *(Single(256, 256, 33, rate, groups) for groups in (64, 128) for rate in (1, 6)),
    *(Single(256, 256, 33, 2, 32, dtype=dtype) for dtype in HALVES),
    Single(256, 256, 65, 1, 32, stride=2),
    # dense: few channels, 1x1, large kernels, strides, half types
    *(Single(3, 64, 129, 1, kernel=kernel, stride=2) for kernel in (3, 7)),
    *(Single(channels, 64, 65, rate) for channels in (3, 8, 21) for rate in (1, 6)),
    *(Single(256, outputs, 33, 1, kernel=1) for outputs in (21, 256)),
    *(Single(64, 64, 33, rate, kernel=kernel) for kernel in (5, 7) for rate in (1, 4)),
    *(Single(256, 256, 65, rate, stride=2) for rate in (1, 2)),
    *(Single(256, 512, 33, 1, kernel=1, stride=2),),
    *(Single(256, 256, 33, rate, dtype=dtype) for rate in (1, 12) for dtype in HALVES),
)  # fmt: skip


def singles(device: str = "cpu") -> Iterator[Single]:
    """Every convolution of the benchmark's rows there by itself, then the others; each once."""
    own = (
        Single(row.channels, row.outputs, row.side, rate, row.groups, row.layout,
               dtype=dtype_name(row.dtype))
        for row in WORKLOADS if row.device == device for rate in row.rates
    )  # fmt: skip
    yield from dict.fromkeys((*own, *MORE))
