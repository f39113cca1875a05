"""The context module's layers in one launch: whether, with which tiles, and the launch's tables.

Between two layers every program waits for all others, so that all of them must be resident. That
pays where a layer is shorter than a launch, and only while the maps stay on the chip: with the
weights of a layer, the two maps that a layer reads and writes are to take half of the L2 cache, the
half that a multiprocessor is close to (Hopper and Ampere's cache is in two).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from .geometry import Geometry
from .triton_configurations import (
    ALIGNMENT,
    CONTEXT,
    LAUNCH,
    Configuration,
    Cut,
    Product,
    least_time,
    modelled,
)
from .triton_work import Branch, padded, rectangles, scheduled

# Compute capabilities for which the kernels are compiled without a GPU, and `resident` is proven.
PROVEN = ((8, 0), (9, 0), (10, 0))
BLOCK = 1024  # elements that a program lays out at once
BARRIER = 4e6  # in the unit of triton_configurations.modelled: waiting for the last, seeing it

LAYER = (
    "first",  # block of the layer's weights and biases
    "tiles",
    "inputs",  # channels, padded
    "outputs",
    "live_inputs",  # channels
    "live_outputs",
    "taps",
    "weights",  # elements, padded; biases come behind them
    "packed",  # their first element
    "weight",  # the first element among the parameters
    "input_step",  # elements of a weight from an input to the next, a tap
    "tap_step",
    "bias",  # the first element among the parameters; -1: none
)


class Chip(NamedTuple):
    multiprocessors: int
    cache: int  # bytes of L2
    capability: tuple[int, int]


H100 = Chip(132, 50 << 20, (9, 0))


class Layer(NamedTuple):
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    rate: int
    bias: bool
    channels_last: bool = False  # the weight in memory

    def geometry(self, size: tuple[int, int]) -> Geometry:
        return Geometry.same(size, self.kernel, self.rate)

    @property
    def taps(self) -> int:
        return self.kernel[0] * self.kernel[1]


class Choice(NamedTuple):
    configuration: Configuration | None  # None: a launch for each layer
    why: str


class ContextWork(NamedTuple):
    configuration: Configuration
    layers: tuple[tuple[int, ...], ...]  # rows of LAYER
    products: tuple[tuple[int, ...], ...]  # rows of triton_work.DENSE, as many for every layer
    programs: int
    blocks: int  # of weights and biases
    packed: int  # elements of those
    largest: int  # elements of a map


def choose(
    layers: Sequence[Layer], batch: int, size: tuple[int, int], dtype: str, chip: Chip
) -> Choice:
    """The tiles with which one launch computes all layers, if it is to."""
    if len(layers) < 2:
        return Choice(None, "there is one layer")
    room, number = chip.cache // 2, chip.multiprocessors
    bytes_of = {c: on_chip(layers, batch, size, dtype, c.block_k) for c in CONTEXT[dtype]}
    least = f"two maps and a layer's weights are {min(bytes_of.values()) / 2**20:.1f} MiB"
    fitting = [c for c in CONTEXT[dtype] if bytes_of[c] <= room]
    if not fitting:
        return Choice(None, f"{least}, above half of the L2 cache ({room / 2**20:.1f} MiB)")
    apart = sum(
        least_time("dense", dtype, _products(layer, batch, size, ALIGNMENT), number) + LAUNCH
        for layer in layers
    )
    times = [_together(c, layers, batch, size, number) for c in fitting]
    if min(times) > apart:
        return Choice(None, "the layers take longer than launches: each has tiles of its own")
    return Choice(fitting[times.index(min(times))], f"{least}, and stay in the L2 cache")


def on_chip(
    layers: Sequence[Layer], batch: int, size: tuple[int, int], dtype: str, unit: int
) -> int:
    """Bytes of what a layer reads and writes, of that with most; channels padded to `unit`."""
    positions = batch * size[0] * size[1]
    channels = [(_up(x.inputs, unit), _up(x.outputs, unit), x.taps) for x in layers]
    most = max(positions * (c + o) + c * o * taps for c, o, taps in channels)
    return most * (4 if dtype == "float32" else 2)


def _up(channels: int, unit: int) -> int:
    return -(-channels // unit) * unit


def _products(layer: Layer, batch: int, size: tuple[int, int], unit: int) -> tuple[Product, ...]:
    return tuple(rectangles([_branch(layer, size, unit)], batch, _up(layer.inputs, unit))[0])


def _branch(layer: Layer, size: tuple[int, int], unit: int) -> Branch:
    return Branch(layer.geometry(size), _up(layer.outputs, unit), False)


def _together(
    c: Configuration, layers: Sequence[Layer], batch: int, size: tuple[int, int], workers: int
) -> float:
    """The time of one launch; laying maps and weights out comes before another barrier."""
    products = [_products(layer, batch, size, c.block_k) for layer in layers]
    each = (modelled(p, c, (1,) * len(p), workers) for p in products)
    return sum(each) + BARRIER * len(layers) + LAUNCH


def work(
    layers: Sequence[Layer], batch: int, size: tuple[int, int], c: Configuration, chip: Chip
) -> ContextWork:
    """Channels are padded to whole steps of a sum: nothing there needs a mask."""
    tables, rows, tiles = [], [], []
    block = packed = parameter = 0
    for layer in layers:
        inputs, outputs = _up(layer.inputs, c.block_k), _up(layer.outputs, c.block_k)
        products, facts = rectangles([_branch(layer, size, c.block_k)], batch, inputs)
        found = scheduled(products, facts, Cut(c, (1,) * len(products)))
        weights, own = inputs * outputs * layer.taps, layer.inputs * layer.outputs * layer.taps
        rows.append(
            (
                block,
                found.programs,
                inputs,
                outputs,
                layer.inputs,
                layer.outputs,
                layer.taps,
                weights,
                packed,
                parameter,
                1 if layer.channels_last else layer.taps,
                layer.inputs if layer.channels_last else 1,
                parameter + own if layer.bias else -1,
            )
        )
        tables.append(found.table)
        tiles.append(found.programs)
        block += -(-(weights + outputs) // BLOCK)
        packed += weights + outputs
        parameter += own + layer.outputs * layer.bias
    most = len(padded(max(tables, key=len)))
    entries = tuple(row for table in tables for row in padded(table, most))
    elements = [batch * size[0] * size[1] * channels for row in rows for channels in row[2:4]]
    resident = chip.multiprocessors * (c.resident if chip.capability in PROVEN else 1)
    programs = min(resident, max(*tiles, block, -(-elements[0] // BLOCK)))
    return ContextWork(c, tuple(rows), entries, programs, block, packed, max(elements))
