"""From workloads and providers to rows of a report: gates, timing, memory, in one place.

A benchmark names its workloads (subclasses of `Workload`), its `Provider`s and its gates in a
`Suite`; `measure` does the rest for one workload at one thread count.
"""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch

from benchmarks import _common, report
from benchmarks._common import Job
from benchmarks._targets import Mean, Target, contributions, judge


@dataclass(frozen=True)
class Workload:
    """What every row says.

    providers: ours first.  allocator: "default" or "warm".  memory: ask for peak memory, in fresh
    processes.  detail: one of many, not in the plot.  means: averages the row takes part in.
    """

    name: str
    _: KW_ONLY
    providers: tuple[str, ...] = ("segfast", "torch")
    threads: tuple[int, ...] = (2,)
    dtype: torch.dtype = torch.float32
    device: str = "cpu"
    allocator: str = "warm"
    memory: bool = False
    detail: bool = False
    seconds: float = 5.0  # of timing
    targets: tuple[Target, ...] = ()
    means: tuple[Mean, ...] = ()

    @property
    def size(self) -> str:
        """For the table."""
        return ""

    @property
    def repeat(self) -> int:
        """Calls per timed job: a single one of a small map is too short to time."""
        return 1

    @property
    def bytes_moved(self) -> int | None:
        """Compulsory traffic of one call; None where that says nothing."""
        return None

    @property
    def flops(self) -> int | None:
        """Additions and multiplications of one call that no algorithm here can leave out."""
        return None

    @property
    def result_bytes(self) -> int | None:
        """What one call must hold at its end; memory beyond it is extra. None: not told apart."""
        return None


@dataclass(frozen=True)
class Provider:
    """Who computes, and what serves it.

    compiled: by torch.compile.  needs: a module.  foreign: others' kernels; where they fail here,
    or fail their gate, the row goes without them and says so.
    """

    functions: Any
    served_by: Callable[[Any], str]  # of a workload
    compiled: bool = False
    needs: str = ""
    foreign: bool = False


@dataclass(frozen=True)
class Suite:
    """One operator's benchmark.

    prepare(provider, workload): a job, inputs ready.  gates(workload, jobs): raises where a job's
    result is wrong, returns what was checked.
    """

    operator: str
    notes: str
    providers: Mapping[str, Provider]
    prepare: Callable[[str, Any], Job]
    gates: Callable[[Any, dict[str, Job]], list[dict[str, Any]]]


def suite(operator: str, notes: str, workloads: Any, providers: Any, gates: Any) -> Suite:
    """Of a benchmark's modules."""

    def prepare(provider: str, workload: Any) -> Job:
        return providers.prepare(provider, workload, workloads.inputs_of(workload))

    return Suite(operator, notes, providers.PROVIDERS, prepare, gates.run_gates)


def each(workloads: Iterable[Workload]) -> Any:
    """Parametrises a test's `workload` and `threads`; needs a GPU where the workload says so."""
    import pytest

    no_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    marks = {"cuda": no_gpu}
    parameters = [
        pytest.param(w, threads, id=f"{w.name}-{threads}t", marks=marks.get(w.device, ()))
        for w in workloads
        for threads in w.threads
    ]
    return pytest.mark.parametrize(("workload", "threads"), parameters, indirect=["threads"])


def absent(provider: Provider) -> str | None:
    """None when the provider can run here, else why not."""
    if provider.needs and importlib.util.find_spec(provider.needs) is None:
        return f"{provider.needs} is not installed here"
    if provider.compiled:
        if shutil.which("c++") is None:
            return "torch.compile needs a C++ compiler"
        if " " in torch.__file__:
            return "torch.compile cannot link torch in a path with a space"
    return None


def repeated(once: Job, workload: Workload) -> Job:
    """`workload.repeat` calls, the device waited for; returns the last result."""

    def job() -> Any:
        result = None
        for _ in range(workload.repeat):
            del result  # of two calls, one result at a time: peak memory is asked for
            result = once()
        return result

    return _common.waiting(job, workload.device)


def measure(
    suite: Suite, workload: Workload, threads: int, benchmark: Any, capsys: Any, **more: Any
) -> None:
    """Gates, then all providers interleaved; into `extra_info` with `more`, and printed."""
    missing = {n: why for n in workload.providers if (why := absent(suite.providers[n]))}
    jobs: dict[str, Job] = {}
    passed = []
    for name in workload.providers:
        if name in missing or not suite.providers[name].foreign:
            continue
        try:
            passed += suite.gates(workload, {name: suite.prepare(name, workload)})
        except Exception as error:
            missing[name] = "failed here: " + (str(error) or repr(error)).splitlines()[0]
    for name in workload.providers:
        if name not in missing:
            jobs[name] = suite.prepare(name, workload)
    own = {name: job for name, job in jobs.items() if not suite.providers[name].foreign}
    passed += suite.gates(workload, own)

    with _common.allocator(workload.allocator) as allocator:
        samples = _common.interleaved_benchmark(benchmark, jobs, workload.seconds)
        if not samples:  # --benchmark-disable: the gates and one run each were all
            return
        clocks = _common.gpu(workload.device)
        copy = _common.copy_bandwidth(threads, workload.device)
        product = None
        if workload.flops is not None:
            product = _common.product_rate(threads, workload.device, workload.dtype)

    names = list(jobs)
    rows = []
    for name in names:
        row = figures(workload, samples[name], samples[names[0]])
        if workload.device == "cuda":
            busy = _common.device_ms(jobs[name])
            row["device_ms"] = None if busy is None else busy / workload.repeat
        row |= {"name": name, "served_by": suite.providers[name].served_by(workload)}
        memory = _memory(suite, workload, name, threads)
        row |= {"peak_mb": memory["mb"], "peak_how": memory["how"]}
        if workload.result_bytes is not None:
            peak, held = memory["mb"], workload.result_bytes / 1e6
            row |= {"result_mb": held, "extra_mb": None if peak is None else max(0, peak - held)}
        rows.append(row)
    ours = rows[0]
    if workload.means:
        more["means"] = contributions(workload.means, threads, rows)
    benchmark.extra_info.update(
        operator=suite.operator,
        workload=workload.name,
        size=workload.size,
        dtype=str(workload.dtype).removeprefix("torch."),
        threads=threads,
        allocator=allocator,
        detail=workload.detail,
        notes=suite.notes,
        load_average=_common.load_average(),
        copy_gb_s=copy,
        product_gflop_s=product,
        gpu=clocks,
        gates=passed,
        absent=missing,
        providers=rows,
        targets=judge(workload.targets, threads, rows, copy, product),
        **{key: ours[key] for key in ("ms", "gb_per_s", "peak_mb", "served_by")},
        ratio={row["name"]: row["ratio"] for row in rows[1:]},
        **more,
        **_common.facts(),
    )
    with capsys.disabled():
        print("\n\n" + report.summary(benchmark.extra_info))


def _memory(suite: Suite, workload: Workload, provider: str, threads: int) -> dict[str, Any]:
    if not workload.memory or suite.providers[provider].compiled:
        return {"mb": None, "how": "not measured for this row"}
    if workload.device == "cuda":
        return _common.device_memory(suite.prepare(provider, workload))
    return _common.peak_memory(suite.operator, workload.name, provider, threads)


def figures(workload: Workload, seconds: list[float], ours: list[float]) -> dict[str, Any]:
    """Times and rates of one provider. Lists hold seconds per round."""
    row, moved, flops = times(seconds, ours, workload.repeat), workload.bytes_moved, workload.flops
    return row | {
        "gb_per_s": None if moved is None else moved / row["ms"] / 1e6,
        "gflop_per_s": None if flops is None else flops / row["ms"] / 1e6,
    }


def times(seconds: list[float], ours: list[float], calls: int = 1) -> dict[str, Any]:
    """Times of one provider. Lists hold seconds per round of `calls` calls."""
    low, median, high = (1e3 * s / calls for s in _common.quantiles(seconds))
    ratio_low, ratio, ratio_high = _common.ratio(seconds, ours)
    return {
        "ms": median,
        "ms_q20": low,
        "ms_q80": high,
        "rounds": len(seconds),
        "ratio": ratio,  # this provider's time over ours
        "ratio_q20": ratio_low,
        "ratio_q80": ratio_high,
    }
