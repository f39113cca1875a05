"""Times every kernel that could serve a dilated convolution, and judges the plan's choice.

    python -m benchmarks.tune [--device cpu] [--threads 2] [--seconds 0.5] [-k NAME] [-o FILE.json]

For the convolutions of benchmarks/dilated_conv.py, small ones and low rates too, and each direction
(forward, input's and weight's gradient): PyTorch and our kernels take turns, and the raw operators'
medians are printed beside what segfast/ops/_dilated_conv_plan.py chooses. A line ends in "!" where
another kernel is faster than the choice by more than 5 %: its rules are to be changed then. Exit
code: 1 where that happens, 0 otherwise.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks import _common
from benchmarks._dilated_conv.workloads import CPU, Workload, inputs_of
from segfast.ops import _dilated_conv_kernels as kernels
from segfast.ops._dilated_conv_plan import DIRECTIONS, Direction, Problem, Strides, candidates

TOLERATED = 1.05


def single_convolutions(device: str) -> Iterator[Workload]:
    """Every convolution of the benchmark's CPU rows once, by itself."""
    seen = set()
    for row in CPU:
        for rate in row.rates:
            shape = (row.channels, row.outputs, row.side, rate, row.groups, row.layout)
            if shape not in seen:
                seen.add(shape)
                name = f"{row.channels}-{row.outputs}x{row.side}r{rate}g{row.groups}{row.layout}"
                yield replace(row, name=name, kind="conv", rates=(rate,), device=device)


def jobs(
    workload: Workload, direction: Direction
) -> tuple[Problem, dict[str, Callable[[], Tensor]]]:
    """The problem, and a job for every kernel that can serve it, PyTorch's last."""
    inputs, rate, side = inputs_of(workload), workload.rates[0], workload.side
    x, weight = inputs.x, inputs.weights[0].contiguous()
    grad = inputs.grad
    strides = Strides(1, 1, rate, rate, rate, rate, workload.groups)
    geometry = strides.geometry((side, side), (side, side), (3, 3))
    problem = kernels.problem(x, weight.shape, geometry, workload.groups)
    arguments: dict[Direction, tuple[Any, ...]] = {
        "forward": (x, weight, None, geometry, strides),
        "grad_input": (grad, weight, geometry, strides),
        "grad_weight": (grad, x, geometry, strides),
    }
    found = {}
    for kernel in candidates(direction, problem, kernels.available(workload.device)):
        compute = getattr(kernels.KERNELS[kernel], direction)
        found[kernel] = functools.partial(compute, *arguments[direction])
    return problem, found


def medians(found: dict[str, Callable[[], Tensor]], seconds: float) -> dict[str, float]:
    """Milliseconds, kernels taking turns."""
    once = sum(_common.timed(job) for job in found.values())  # warms up, too
    rounds = _common.number_of_rounds(once, seconds, 5, 50)
    samples = _common.interleaved(found, rounds)
    return {name: 1e3 * _common.quantiles(times)[1] for name, times in samples.items()}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's (default 2)")
    parser.add_argument("--seconds", type=float, default=0.5, help="per line (default 0.5)")
    parser.add_argument("-k", default="", help="only convolutions whose name contains this")
    parser.add_argument("-o", type=Path, help="write all figures as JSON")
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    for workload in single_convolutions(options.device):
        if options.k not in workload.name:
            continue
        for direction in DIRECTIONS:
            problem, found = jobs(workload, direction)
            times = medians(found, options.seconds)
            chosen = kernels.choose(direction, problem).kernel
            late = times[chosen] / min(times.values())
            text = ", ".join(f"{name} {ms:.3g} ms" for name, ms in times.items())
            flag = " !" if late > TOLERATED else ""
            print(f"{workload.name:28} {direction:11} {chosen:7} {text}{flag}", flush=True)
            row = {"workload": workload.name, "direction": direction, "chosen": chosen}
            rows.append(row | {"ms": times, "chosen_over_best": late})
    if options.o is not None:
        facts = _common.facts() | {"threads": options.threads, "device": options.device}
        options.o.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")
    return int(any(row["chosen_over_best"] > TOLERATED for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
