"""Which kernel serves a dilated convolution, and why: a pure function of sizes, no tensors.

Kernels: "direct" (C++: one input channel per group, or few), "dense" (C++: products of matrices
over rectangles), "winograd" (C++: fewer products, where it is allowed), "triton" (as "dense", on a
GPU), "torch" (PyTorch's own). Where which is faster, the numbers of _dilated_conv_rules.py say.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from segfast.kernels.dilated_conv.geometry import Geometry
from segfast.kernels.dilated_conv.triton_configurations import DTYPES
from segfast.ops import _dilated_conv_faults as faults
from segfast.ops._dilated_conv_rules import AVX2, AVX512, CUDA, Cpu, Direction

DIRECTIONS: tuple[Direction, ...] = ("forward", "grad_input", "grad_weight")


class Strides(NamedTuple):
    """The last seven arguments of every raw operator."""

    sh: int
    sw: int
    ph: int
    pw: int
    dh: int
    dw: int
    groups: int

    def geometry(self, input_size: Any, output_size: Any, kernel: Any) -> Geometry:
        sh, sw, ph, pw, dh, dw, _ = self
        sizes = (tuple(input_size), tuple(output_size), tuple(kernel))
        return Geometry.of(*sizes, (sh, sw), (ph, pw), (dh, dw))


class Problem(NamedTuple):
    """A dilated convolution without its numbers."""

    device: str  # "cpu", "cuda"
    dtype: str  # "float32"
    channels_last: bool
    batch: int
    groups: int
    in_channels: int  # of a group
    out_channels: int  # of a group
    geometry: Geometry

    def multiplications(self) -> int:
        """Products of numbers, those with padding included."""
        return self._channel_pairs() * self.geometry.pairs()

    def live_multiplications(self) -> int:
        return self._channel_pairs() * self.geometry.live_pairs()

    def rate(self) -> int:
        return max(axis.dilation for axis in self.geometry)

    def strided(self) -> bool:
        return any(axis.stride > 1 for axis in self.geometry)

    def live_share(self) -> float:
        return self.geometry.live_pairs() / max(1, self.geometry.pairs())

    def map_elements(self) -> int:
        """Of the input and the result."""
        rows, columns = self.geometry
        inputs = self.in_channels * rows.input * columns.input
        outputs = self.out_channels * rows.output * columns.output
        return self.batch * self.groups * (inputs + outputs)

    def _channel_pairs(self) -> int:
        return self.batch * self.groups * self.in_channels * self.out_channels


class Plan(NamedTuple):
    kernel: str
    why: str


EVERY = frozenset({"direct", "dense", "triton", "torch"})


def plan(direction: Direction, problem: Problem, available: frozenset[str]) -> Plan:
    """The kernel for one direction, of those that are `available` ("torch" always is).

    "avx512" and "fast bfloat16" among them are no kernels but what the processor can do.
    """
    rules = AVX512 if "avx512" in available else AVX2
    kernel, *others = candidates(direction, problem, available)
    if kernel == "winograd":
        if (share := winograd_products(direction, problem, rules)) < rules.winograd_share:
            return Plan("winograd", f"{share:.0%} of the products; allowed, with a larger error")
        kernel = others[0]
    if kernel == "direct":
        why = torch_beats_direct(direction, problem, rules, "fast bfloat16" in available)
        return Plan("torch", why) if why else Plan("direct", "few channels in a group")
    if kernel == "dense":
        why = torch_beats_dense(direction, problem, rules, "fast bfloat16" in available)
        return Plan("torch", why) if why else Plan("dense", "no products with padding")
    if kernel == "triton":
        why = torch_may_beat_triton(problem)
        return Plan("torch", why) if why else Plan("triton", "no products with padding")
    if len(candidates(direction, problem, EVERY)) > 1:
        return Plan("torch", "our kernels are not there: segfast.info() says why")
    return Plan("torch", "no kernel of ours computes it")


def candidates(
    direction: Direction, problem: Problem, available: frozenset[str]
) -> tuple[str, ...]:
    """The available kernels that can compute it, PyTorch's last."""
    on_cpu, on_cuda = problem.device == "cpu", problem.device == "cuda"
    serves = {
        "winograd": on_cpu and serves_winograd(direction, problem),
        "direct": on_cpu and serves_direct(problem),
        "dense": on_cpu and serves_dense(problem),
        "triton": on_cuda and serves_triton(problem, direction),
        "torch": True,
    }
    return tuple(kernel for kernel, can in serves.items() if can and kernel in available)


def serves_direct(problem: Problem) -> bool:
    """Whether the direct kernels can compute it."""
    depthwise = problem.in_channels == problem.out_channels == 1
    if problem.channels_last or problem.groups == 1:
        return depthwise
    return problem.in_channels <= 8


def torch_beats_direct(
    direction: Direction, problem: Problem, rules: Cpu, fast_bfloat16: bool
) -> str | None:
    """Why PyTorch is faster than the direct kernels, where it is."""
    bfloat16 = problem.dtype == "bfloat16" and fast_bfloat16
    if problem.dtype != "float32" and not bfloat16:
        return None
    if problem.in_channels == problem.out_channels == 1:
        return _torch_beats_depthwise(direction, problem, rules)
    if bfloat16 and direction == "grad_weight":
        return None
    if problem.in_channels == 8 and problem.out_channels % 8 == 0:
        if direction == "grad_weight" and problem.out_channels <= rules.eights_weight_outputs:
            beaten = problem.rate() == 1
        elif direction == "grad_input" and problem.strided():
            beaten = False
        else:
            most_live = problem.live_share() > rules.eights_live
            beaten = most_live or problem.out_channels > rules.eights_outputs
        return "PyTorch has a kernel for blocks of eight channels" if beaten else None
    return None


def _torch_beats_depthwise(direction: Direction, problem: Problem, rules: Cpu) -> str | None:
    rows, columns = problem.geometry
    if direction != "forward" or not problem.channels_last or problem.dtype != "bfloat16":
        return None
    rule = rules.depthwise_last_bfloat16.get(rows.taps)
    if rule is None or rows.taps != columns.taps:
        return None
    most_rate, elements, width = rule
    large, narrow = problem.map_elements() >= elements, columns.output < width
    beaten = problem.rate() <= most_rate and large and narrow
    return "PyTorch has a kernel for low rates, faster on large narrow maps" if beaten else None


def serves_dense(problem: Problem) -> bool:
    """Whether the dense kernels can compute it."""
    return problem.groups == 1 and not problem.channels_last


def torch_beats_dense(
    direction: Direction, problem: Problem, rules: Cpu, fast_bfloat16: bool
) -> str | None:
    """Why PyTorch is faster than the dense kernels, where it is.

    fast_bfloat16: PyTorch multiplies bfloat16 in hardware.
    """
    if problem.dtype == "bfloat16" and fast_bfloat16:
        return "this processor multiplies bfloat16, our kernels widen it"
    if problem.dtype != "float32":
        return None
    rows, columns = problem.geometry
    if (inputs := problem.in_channels) < problem.out_channels:
        few = inputs < rules.dense_inputs and min(inputs, problem.rate()) == 1
        if few or (direction == "grad_input" and inputs <= rules.dense_inputs):
            return "too few input channels for a product of matrices"
    if direction == "grad_weight" and _torch_has_sixteens(problem, rules):
        return "PyTorch has a kernel for blocks of sixteen channels"
    ragged = problem.in_channels % 8 or problem.out_channels % 8  # PyTorch pads them
    if direction in rules.dense_live and not problem.strided() and not ragged:
        large = max(rows.taps, columns.taps) > 3
        most_live = rules.dense_live_large if large else rules.dense_live[direction]
        if (live := problem.live_share()) > most_live:
            return f"only {1 - live:.0%} of the products are with padding"
    return None


def _torch_has_sixteens(problem: Problem, rules: Cpu) -> bool:
    """Whether PyTorch's gradient of the weight is faster, for blocks of sixteen channels."""
    rows, columns = problem.geometry
    if (rows.taps, columns.taps) != (3, 3) or problem.strided():
        return False
    if problem.in_channels % 16 or problem.out_channels % 16:
        return False
    least, most = rules.dense_sixteens
    positions = problem.batch * rows.output * columns.output
    return (
        least <= problem.in_channels * problem.out_channels <= most
        and positions >= rules.dense_sixteens_positions
        and problem.live_share() > rules.dense_sixteens_live
    )


def serves_winograd(direction: Direction, problem: Problem) -> bool:
    """Whether Winograd's kernels can compute it."""
    strides_and_taps = {(axis.stride, axis.taps) for axis in problem.geometry}
    one_kind = problem.dtype == "float32" and strides_and_taps == {(1, 3)}
    return direction != "grad_weight" and serves_dense(problem) and one_kind


def winograd_products(direction: Direction, problem: Problem, rules: Cpu) -> float:
    """What Winograd's kernels take, as a share of the products without padding."""
    tiles = problem.batch
    for axis in problem.geometry:
        size, rate = axis.output if direction == "forward" else axis.input, axis.dilation
        phases = [-(-(size - phase) // rate) for phase in range(min(rate, size))]
        tiles *= sum(-(-results // 4) for results in phases)
    weight, source, result = rules.winograd_transforms
    sources, results = problem.in_channels, problem.out_channels
    if direction == "grad_input":
        sources, results = results, sources
    each = weight + tiles * (1 + source / results + result / sources)
    live = problem.batch * problem.geometry.live_pairs()
    return 36 * each / live if live else math.inf


def torch_may_beat_triton(problem: Problem) -> str | None:
    """Why PyTorch keeps what the Triton kernels could serve. Not measured yet."""
    if problem.in_channels == problem.out_channels == 1:
        return None
    if problem.dtype == "float32":
        return "ours takes three products of TF32 for float32: not measured against cuDNN yet"
    saved = 1 - problem.live_share()
    if saved < CUDA.least_saved:
        return f"only {saved:.0%} of the products are with padding"
    return None


def torch_is_wrong(direction: Direction, problem: Problem) -> bool:
    """Whether a kernel of PyTorch's may be one of `_dilated_conv_faults`, in some format."""
    if problem.device != "cpu" or direction == "grad_input":
        return False
    geometry, facts = problem.geometry, (problem.dtype == "bfloat16", problem.in_channels)
    if direction == "forward":
        return faults.nothing_read(geometry) or faults.result_misread(*facts, geometry)
    return faults.few_columns(facts[0], geometry) or faults.gradient_misread(*facts, geometry)


def serves_triton(problem: Problem, direction: Direction) -> bool:
    """Whether the Triton kernels can compute it.

    They reckon positions in 32 bits, and the input gradient of stride > 1 only where it is
    depthwise: with a stride its taps are live for every other position, not for rectangles.
    """
    rows, columns = problem.geometry
    positions = max(rows.input * columns.input, rows.output * columns.output)
    weights = problem.in_channels * problem.out_channels * rows.taps * columns.taps
    if problem.dtype not in DTYPES or max(problem.batch * positions, weights) >= 2**30:
        return False
    if problem.in_channels == problem.out_channels == 1:
        return True
    strided = (rows.stride, columns.stride) != (1, 1)
    return problem.groups == 1 and not (strided and direction == "grad_input")
