"""Times every kernel that could serve a dilated convolution, and judges the plan's choice.

    python -m benchmarks.tune [--device cpu] [--threads 2] [--seconds 0.5] [--winograd] [-k NAME]
                              [-o FILE.json]
    python -m benchmarks.tune --tiles [-k NAME] [-o FILE.json]

For the convolutions of benchmarks/_dilated_conv/singles.py and each direction (forward, input's
and weight's gradient): PyTorch and our kernels take turns, and the raw operators' medians are
printed beside what segfast/ops/_dilated_conv_plan.py chooses by the rules for this kind of device,
segfast/ops/_dilated_conv_rules.py. Where another kernel is faster than the choice by more than 5 %
it is measured again, and the line ends in "!" if that holds: the rules are to be changed then.
Exit code: 1 where that happens, 0 otherwise.

--tiles times other tiles of Triton's kernels than those of their tables instead (`_tiles`).
"""

from __future__ import annotations

import argparse
import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import segfast
from benchmarks import _common, _tiles
from benchmarks._dilated_conv.singles import Single, singles
from segfast.ops import _dilated_conv_kernels as kernels
from segfast.ops._dilated_conv_plan import DIRECTIONS, Direction, Problem, candidates

TOLERATED = 1.05
AGAIN = 4  # times as long


def jobs(
    single: Single, direction: Direction, device: str
) -> tuple[Problem, dict[str, Callable[[], Tensor]]]:
    """The problem, and a job for every kernel that can serve it, PyTorch's last."""
    x, weight, grad = single.tensors(device)
    problem = kernels.problem(x, weight.shape, single.geometry, single.groups)
    arguments: dict[Direction, tuple[Any, ...]] = {
        "forward": (x, weight, None),
        "grad_input": (grad, weight),
        "grad_weight": (grad, x),
    }
    found = {}
    for kernel in candidates(direction, problem, kernels.available(device)):
        compute = getattr(kernels.KERNELS[kernel], direction)(problem, single.strides)
        once = functools.partial(compute, *arguments[direction])
        found[kernel] = _common.waiting(once, device)
    return problem, found


def medians(found: dict[str, Callable[[], Tensor]], seconds: float) -> dict[str, float]:
    """Milliseconds, kernels taking turns; fresh pages would cost more than some of them."""
    with _common.allocator("warm"):
        once = sum(_common.timed(job) for job in found.values())  # warms up, too
        rounds = _common.number_of_rounds(once, seconds, 5, 100)
        samples = _common.interleaved(found, rounds)
    return {name: 1e3 * _common.quantiles(times)[1] for name, times in samples.items()}


def save(path: Path | None, rows: list[dict[str, Any]], **more: Any) -> None:
    if path is not None:
        facts = _common.facts() | {"gpu": _common.gpu(more["device"])} | more
        path.write_text(json.dumps({"facts": facts, "rows": rows}, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--threads", type=int, default=2, help="PyTorch's (default 2)")
    parser.add_argument("--seconds", type=float, default=0.5, help="per line (default 0.5)")
    parser.add_argument("--winograd", action="store_true", help="segfast.allow_winograd")
    parser.add_argument("-k", default="", help="only convolutions whose name contains this")
    parser.add_argument("-o", type=Path, help="write all figures as JSON")
    parser.add_argument("--tiles", action="store_true", help="of Triton's kernels, on a GPU")
    options = parser.parse_args(argv)
    if options.tiles:
        if not torch.cuda.is_available():
            parser.error("--tiles needs a GPU")
        save(options.o, _tiles.run(options.k, os.cpu_count() or 1), device="cuda")
        return 0
    torch.set_num_threads(options.threads)
    segfast.allow_winograd(options.winograd)
    rows: list[dict[str, Any]] = []
    for single in singles(options.device):
        if options.k not in single.name:
            continue
        for direction in DIRECTIONS:
            problem, found = jobs(single, direction, options.device)
            if len(found) == 1:
                continue  # nothing to choose
            chosen = kernels.choose(direction, problem).kernel
            times = medians(found, options.seconds)
            if times[chosen] > TOLERATED * min(times.values()):
                times = medians(found, AGAIN * options.seconds)
            late = times[chosen] / min(times.values())
            text = ", ".join(f"{name} {ms:.3g} ms" for name, ms in times.items())
            flag = " !" if late > TOLERATED else ""
            print(f"{single.name:32} {direction:11} {chosen:7} {text}{flag}", flush=True)
            row = {"workload": single.name, "direction": direction, "chosen": chosen}
            rows.append(row | {"ms": times, "chosen_over_best": late})
    save(options.o, rows, threads=options.threads, device=options.device)
    return int(any(row["chosen_over_best"] > TOLERATED for row in rows))


if __name__ == "__main__":
    raise SystemExit(main())
