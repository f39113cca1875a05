"""Other tiles of Triton's kernels than those of the tables: what each takes on this GPU.

    python -m benchmarks.tune --tiles [-k NAME] [-o FILE.json]

An `Entry` is a place of a table `kernels/*/triton_configurations.py` with a job that goes through
it. Every candidate is put there, compiled (by as many processes as there are cores), compared with
the result of the table's own tiles, and timed; nothing is changed: that is for whoever reads it.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from benchmarks import _common
from segfast.kernels.dense_crf import triton_configurations as crf
from segfast.kernels.dilated_conv import triton_configurations as conv
from segfast.kernels.linear_attention import reference
from segfast.kernels.linear_attention import triton_configurations as attention

CALLS = 5  # of a timed job
AGREEMENT = 1e-2  # |other - table's| / |table's|: sums in another order, rounded to bfloat16
TABLE = "table"  # its own tiles


@dataclass(frozen=True)
class Entry:
    """put: a candidate into the table; the table as it was for None.  job: makes its inputs."""

    name: str
    candidates: dict[str, Any]
    put: Callable[[Any], None]
    job: Callable[[], Sequence[Tensor]]


@contextlib.contextmanager
def using(entry: Entry, label: str) -> Iterator[None]:
    try:
        entry.put(None if label == TABLE else entry.candidates[label])
        yield
    finally:
        entry.put(None)


# ---------------------------------------------------------------------------- the tables' places


def _normal(device: str, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(len(shape))
    return torch.randn(shape, generator=generator).to(device, torch.bfloat16)


# feature map, and B, D, E, N of MANet's and MAResU-Net's first levels
ATTENTION = (
    ("softplus", (4, 32, 256, 256**2)),
    ("softplus", (4, 64, 512, 128**2)),
    ("taylor", (4, 8, 64, 256**2)),
    ("taylor", (4, 16, 128, 128**2)),
)
ATTENTION_OPERATOR = {"grad_v": "state_backward", "grad_state": "read_backward"}


def linear_attention(device: str) -> Iterator[Entry]:
    tiles = {
        "x".join(map(str, tile)): tile
        for tile in itertools.product((32, 64, 128, 256), (32, 64, 128), (4, 8), (2, 3, 4))
    }  # BLOCK_E, BLOCK_N, warps, stages
    for (feature_map, shape), kernel in itertools.product(ATTENTION, attention.KERNELS):
        rows = shape[1] + (feature_map == "taylor")
        at = next(i for i, most in enumerate(attention.ROWS) if rows <= most)
        size = "x".join(map(str, shape))
        yield Entry(
            f"linear_attention {kernel} bfloat16, {attention.ROWS[at]} rows, {feature_map} {size}",
            tiles,
            functools.partial(_put_attention, kernel, at, attention.TABLE[kernel, "bfloat16"]),
            functools.partial(_attention, kernel, feature_map, shape, device),
        )


def _put_attention(kernel: str, at: int, before: Any, tile: Any) -> None:
    after = before if tile is None else (*before[:at], tile, *before[at + 1 :])
    attention.TABLE[kernel, "bfloat16"] = after


def _attention(
    kernel: str, feature_map: str, shape: tuple[int, int, int, int], device: str
) -> Sequence[Tensor]:
    from segfast.ops._linear_attention_cuda import KERNELS

    operator = ATTENTION_OPERATOR.get(kernel, kernel)
    result = KERNELS[f"_linear_attention_{operator}"](
        *_attention_inputs(operator, feature_map, shape, device)
    )
    return result if isinstance(result, tuple) else (result,)


@functools.lru_cache(maxsize=1)
def _attention_inputs(
    operator: str, feature_map: str, shape: tuple[int, int, int, int], device: str
) -> tuple[Any, ...]:
    (b, d, e, n), index = shape, reference.FEATURE_MAPS.index(feature_map)
    q, k, v, grad = (_normal(device, b, c, n) for c in (d, d, e, e))
    if operator == "state":
        return k, v, index
    state = reference.state(k.float(), v.float(), feature_map)
    if operator == "state_backward":
        return state / n, k, v, index
    if operator == "read":
        return q, state, None, None, index, 1e-6
    return grad, q, state, state.new_ones(b), index, 1e-6


# kind, batch, channels, outputs, side, rates
CONVOLUTIONS = (
    ("dense", 1, 2048, 256, 33, (6, 12, 18)),
    ("dense", 1, 2048, 256, 65, (12, 24, 36)),
    ("dense", 8, 2048, 256, 33, (6, 12, 18)),
    ("dense", 1, 512, 512, 33, (2,)),
    ("dense", 8, 512, 512, 65, (4,)),
    ("grad_weight", 1, 2048, 256, 33, (12,)),
    ("grad_weight", 8, 2048, 256, 33, (12,)),
    ("grad_weight", 8, 512, 512, 65, (4,)),
    ("context", 1, 21, 21, 64, (1, 1, 2, 4, 8, 16, 1)),
)


def dilated_conv(device: str) -> Iterator[Entry]:
    """One configuration alone in the table: that which the model of time would have to prefer."""
    tiles = {
        f"{m}x{n}x{k}x{warps}x{stages}": conv.Configuration(m, n, k, warps, stages, 1.0)
        for m, n, k, warps, stages in itertools.product(
            (64, 128, 256), (32, 64, 128, 256), (32, 64, 128), (4, 8), (3, 4)
        )
        if m * n <= 128 * 256 and 4 * (m + n) * k * stages <= 2 * 227 << 10
    }
    few = {label: replace(tile, resident=1) for label, tile in tiles.items() if tile.block_m <= 128}
    for kind, *shape, rates in CONVOLUTIONS:
        size = "x".join(map(str, shape))
        table: Any = conv.CONTEXT if kind == "context" else conv.TABLE
        key: Any = "bfloat16" if kind == "context" else (kind, "bfloat16")
        yield Entry(
            f"dilated_conv {kind} bfloat16, {size}, rates {'/'.join(map(str, rates))}",
            few if kind == "context" else tiles,
            functools.partial(_put_convolution, table, key, table[key]),
            functools.partial(_convolution, kind, shape, rates, device),
        )


def _put_convolution(table: Any, key: Any, before: Any, tile: Any) -> None:
    from segfast.ops import _dilated_conv_triton, _dilated_conv_triton_context

    table[key] = before if tile is None else (tile,)
    _dilated_conv_triton._launch.cache_clear()  # how work was cut
    _dilated_conv_triton_context._launch.cache_clear()


def _convolution(
    kind: str, shape: Sequence[int], rates: tuple[int, ...], device: str
) -> Sequence[Tensor]:
    from segfast.ops import _dilated_conv_triton as launchers
    from segfast.ops._dilated_conv_plan import Strides
    from segfast.ops._dilated_conv_triton_context import one_launch

    x, weights, grad = _convolution_inputs(tuple(shape), len(rates), device)
    if kind == "dense":
        return [launchers.pyramid(x, weights, None, rates, None, None, False)]
    if kind == "context":
        y = one_launch(x, weights, [None] * len(weights), rates)
        if y is None:
            raise ValueError("too large for one launch")
        return [y]
    strides = Strides(1, 1, rates[0], rates[0], rates[0], rates[0], 1)
    side = x.shape[2], x.shape[3]
    return [launchers.grad_weight(grad, x, strides.geometry(side, side, (3, 3)), strides)]


@functools.lru_cache(maxsize=1)
def _convolution_inputs(
    shape: tuple[int, int, int, int], branches: int, device: str
) -> tuple[Tensor, list[Tensor], Tensor]:
    batch, channels, outputs, side = shape
    maps = (_normal(device, batch, c, side, side) for c in (channels, outputs))
    x, grad = (m.contiguous(memory_format=torch.channels_last) for m in maps)
    scale = (9 * channels) ** -0.5
    return x, [scale * _normal(device, outputs, channels, 3, 3) for _ in range(branches)], grad


FILTERS = ((21, (375, 500)), (1, (375, 500)))  # channels, size


def dense_crf(device: str) -> Iterator[Entry]:
    tiles = {
        f"{c}x{warps}x{stages}": crf.Configuration(crf.ROW, c, warps, stages)
        for c, warps, stages in itertools.product((16, 32, 64), (4, 8), (1, 2, 3, 4))
    }  # a program of the filter sums a whole row
    for channels, size in FILTERS:
        fitting = {label: tile for label, tile in tiles.items() if tile.block_c >= channels}
        yield Entry(
            f"dense_crf filter, {channels}x{size[0]}x{size[1]}",
            fitting,
            functools.partial(_put_filter, crf.FILTER),
            functools.partial(_filter, channels, size, device),
        )


def _put_filter(before: Any, tile: Any) -> None:
    crf.FILTER = before if tile is None else (tile,)


def _filter(channels: int, size: tuple[int, int], device: str) -> Sequence[Tensor]:
    values, features = _filter_inputs(channels, size, device)
    from segfast.ops._dense_crf_exact_triton import ExactFilter

    return [ExactFilter(features, 1e-7)(values)]


@functools.lru_cache(maxsize=1)
def _filter_inputs(channels: int, size: tuple[int, int], device: str) -> tuple[Tensor, Tensor]:
    from benchmarks._dense_crf.providers import filter_inputs
    from benchmarks._dense_crf.workloads import Inputs, Workload, on
    from benchmarks._pictures import PICTURES

    image = PICTURES["coffee"](*size)
    logits = torch.linspace(0, 9, channels * image[0].numel()).sin().reshape(channels, *size)
    workload = Workload("filter", "coffee", (*size, channels), ())
    values, features = filter_inputs(workload, on(device, Inputs(logits, image)))
    return values[None], features[None]


def entries(device: str) -> dict[str, Entry]:
    found = (*linear_attention(device), *dilated_conv(device), *dense_crf(device))
    return {entry.name: entry for entry in found}


# ---------------------------------------------------------------------------------------- timing


def compile_one(name: str, label: str, device: str = "cuda") -> None:
    """Into Triton's cache on disk; what fails here fails where it is timed, and is told there."""
    entry = entries(device)[name]
    with contextlib.suppress(Exception), using(entry, label):
        entry.job()


def compile_all(chosen: Sequence[Entry], processes: int) -> None:
    work = [(entry.name, label) for entry in chosen for label in (TABLE, *entry.candidates)]
    context = multiprocessing.get_context("spawn")  # no process may inherit a GPU's context
    with ProcessPoolExecutor(processes, context) as pool:
        list(pool.map(compile_one, *zip(*work, strict=True), chunksize=8))


def tune(
    entry: Entry, time: Callable[[Callable[[], Any]], float | None]
) -> dict[str, float | str | None]:
    """Milliseconds of the table's own tiles and of each candidate, or why there are none."""
    with using(entry, TABLE):
        truth = [x.double() for x in entry.job()]
        found: dict[str, float | str | None] = {TABLE: time(entry.job)}
    for label in entry.candidates:
        try:
            with using(entry, label):
                error = _difference(entry.job(), truth)
                found[label] = time(entry.job) if error <= AGREEMENT else f"{error:.2g} off"
        except Exception as failed:  # too large for the registers or the shared memory
            found[label] = (str(failed) or repr(failed)).splitlines()[0]
    return found


def _difference(actual: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """|actual - expected| / |expected|, the largest; NaN where there is one."""
    pairs = zip(actual, expected, strict=True)
    each = [(x.double() - y).norm() / y.norm().clamp(min=1e-30) for x, y in pairs]
    return float(torch.stack(each).max())


def busy_ms(job: Callable[[], Any]) -> float | None:
    """Of one call, kernels alone."""

    def calls() -> None:
        for _ in range(CALLS):
            job()

    busy = _common.device_ms(calls)
    return None if busy is None else busy / CALLS


def line(name: str, found: dict[str, float | str | None]) -> str:
    """The table's time, and the best three as shares of it."""
    times = {label: ms for label, ms in found.items() if isinstance(ms, float)}
    if TABLE not in times:
        return f"{name}: not timed"
    own = times.pop(TABLE)
    best = sorted(times, key=times.__getitem__)[:3]
    others = ", ".join(f"{label} {times[label] / own:.3f}" for label in best)
    return f"{name}: {own:.4g} ms; {others or 'no other runs'}"


def run(needle: str, processes: int) -> list[dict[str, Any]]:
    """All entries whose name contains `needle`."""
    chosen = [entry for name, entry in entries("cuda").items() if needle in name]
    if not chosen:
        return []
    compile_all(chosen, processes)
    rows = []
    for entry in chosen:
        found = tune(entry, busy_ms)
        print(line(entry.name, found), flush=True)
        rows.append({"entry": entry.name, "ms": found})
    return rows
