"""Where PyTorch is faster than our dilated convolutions: numbers for each kind of device.

`python -m benchmarks.tune` measures both and says where these choose wrongly;
_dilated_conv_plan.py reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

Direction = Literal["forward", "grad_input", "grad_weight"]


class Cpu(NamedTuple):
    """For float32; of half types only bfloat16 counts, where the processor multiplies it."""

    # Depthwise channels_last, forward: up to this rate, from this many elements of input and result
    # together, on maps narrower than this: taps -> (rate, elements, columns of the result)
    depthwise_last_bfloat16: Mapping[int, tuple[int, int, int]]
    # Groups of eight input channels and a multiple of eight outputs: above this share of live
    # products, or this many outputs, but not the input's gradient with a stride; the weight's
    # gradient of up to so many outputs at rate 1 only.
    eights_live: float
    eights_outputs: int
    eights_weight_outputs: int
    # Products of matrices: above this share of live products, with larger kernels than 3x3 this.
    dense_live: Mapping[Direction, float]
    dense_live_large: float
    # The weight's gradient of 3x3 at stride 1 between whole sixteens of channels: where input times
    # output channels are between these, the result has as many positions as this or more, and the
    # share of live products is above this.
    dense_sixteens: tuple[int, int]
    dense_sixteens_positions: int
    dense_sixteens_live: float
    # With fewer input channels than this, and more outputs than inputs: all at rate 1 or with one
    # input channel; with as many, too, the input's gradient.
    dense_inputs: int
    # Winograd's: what transforming takes, in products of 36: of a weight, of a tile's sources for
    # one channel, of its results for one channel; below this share of the live products.
    winograd_transforms: tuple[float, float, float]
    winograd_share: float


class Gpu(NamedTuple):
    least_saved: float  # share of products that the dense kernels must leave out


AVX2 = Cpu(  # measured on Zen 3, with one thread and two; serves every processor without AVX-512
    depthwise_last_bfloat16={},
    eights_live=0.8,
    eights_outputs=32,
    eights_weight_outputs=16,
    dense_live={"forward": 0.93, "grad_input": 0.9},
    dense_live_large=0.88,
    dense_sixteens=(1, 0),  # nowhere
    dense_sixteens_positions=0,
    dense_sixteens_live=1.0,
    dense_inputs=8,
    winograd_transforms=(11.0, 36.0, 26.0),
    winograd_share=0.75,
)
AVX512 = AVX2._replace(  # measured on Zen 5 with two threads: PyTorch gains more from AVX-512
    depthwise_last_bfloat16={
        3: (6, 4_000_000, 100),
        5: (3, 1_000_000, 100),
        7: (2, 500_000, 100),
    },
    eights_live=0.5,
    dense_live={"forward": 0.8, "grad_input": 0.42},
    dense_live_large=0.5,
    dense_sixteens=(1024, 16384),
    dense_sixteens_positions=2000,
    dense_sixteens_live=0.5,
)
CUDA = Gpu(least_saved=0.1)  # not measured yet
