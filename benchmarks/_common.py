"""What every benchmark shares: interleaved timing, peak memory, facts about the machine.

Peers run in one process on the same inputs, one after the other in every round, so that a busy
machine slows all of them alike. A ratio is the median over rounds of ``peer / ours`` within the
round; times are medians with the 20 and 80 % quantiles.
"""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import functools
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
MEMORY_TIMEOUT = 300  # seconds one fresh process may take
FEW, PATIENCE, MANY = 9, 30.0, 99  # rounds a median needs, unless they take seconds; enough
Job = Callable[[], object]


def quantiles(samples: list[float]) -> tuple[float, float, float]:
    """20 %, 50 % and 80 % quantiles (linear between the samples)."""
    if len(samples) < 2:
        return samples[0], samples[0], samples[0]
    fifths = statistics.quantiles(samples, n=10, method="inclusive")
    return fifths[1], statistics.median(samples), fifths[7]


def ratio(peer: list[float], ours: list[float]) -> tuple[float, float, float]:
    """Quantiles of peer / ours, each pair taken from one round."""
    return quantiles([a / b for a, b in zip(peer, ours, strict=True)])


def number_of_rounds(once: float, budget: float, least: int = FEW, most: int = MANY) -> int:
    """Rounds that fit into ``budget`` seconds when one round takes ``once`` seconds.

    ``least`` is for patience, too: fewer, but three, where those would take PATIENCE seconds.
    """
    once = max(once, 1e-9)
    least = min(least, max(3, int(PATIENCE / once)))
    return max(least, min(most, int(budget / once)))


def timed(job: Job) -> float:
    """Seconds of one call; the result is freed after the clock has stopped."""
    begin = time.perf_counter()
    result = job()
    seconds = time.perf_counter() - begin
    del result
    return seconds


def waiting(job: Callable[[], Any], device: str) -> Callable[[], Any]:
    """The same, until the device has done it."""
    if device != "cuda":
        return job

    def wait() -> Any:
        result = job()
        torch.cuda.synchronize()
        return result

    return wait


def interleaved(jobs: Mapping[str, Job], rounds: int) -> dict[str, list[float]]:
    """Seconds per job and round; every round runs every job once, the order rotating."""
    names = list(jobs)
    samples: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            samples[name].append(timed(jobs[name]))
    return samples


def interleaved_benchmark(
    benchmark: Any, jobs: Mapping[str, Job], budget: float
) -> dict[str, list[float]]:
    """Times the first job through pytest-benchmark, and every peer once a round.

    The peers run before it in one round and after it in the next, so that neither always finds
    what the other left in caches and heap. Returns seconds per job and round; empty under
    ``--benchmark-disable``, where each job runs once and nothing is timed.
    """
    (ours, job), *peers = jobs.items()
    once = sum(timed(each) for each in jobs.values())  # warms up, too
    samples: dict[str, list[float]] = {name: [] for name in jobs}
    held: list[object] = []
    begun = 0

    def run_peers(times: int = 1) -> None:
        for _ in range(times):
            for name, peer in peers:
                samples[name].append(timed(peer))
            peers[:] = peers[1:] + peers[:1]  # another order in the next round

    def run_ours() -> None:
        # pytest-benchmark would keep a result until the next one is there: no peer's does.
        held.append(job())

    def begin_round() -> None:
        nonlocal begun
        held.clear()
        if begun % 2 == 0:
            run_peers(2 if begun else 1)  # the last round's, which ours began, and this one's
        begun += 1

    rounds = number_of_rounds(once, budget)
    benchmark.pedantic(run_ours, setup=begin_round, rounds=rounds, iterations=1)
    held.clear()
    if benchmark.stats is None:
        return {}
    if begun % 2 == 0:
        run_peers()
    samples[ours] = list(benchmark.stats.stats.data)
    return samples


# ------------------------------------------------------------------------------------------------
# memory
# ------------------------------------------------------------------------------------------------


def peak_memory(operator: str, workload: str, provider: str, threads: int) -> dict[str, Any]:
    """Peak resident memory of one job over the memory before it, in a fresh process.

    Returns {"mb": float, "how": str}, or {"mb": None, "how": why it could not be measured}.
    """
    command = [sys.executable, "-m", "benchmarks._memory", operator, workload, provider]
    try:
        done = subprocess.run(
            [*command, str(threads)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=MEMORY_TIMEOUT,
        )
        return dict(json.loads(done.stdout.splitlines()[-1]))
    except subprocess.TimeoutExpired:
        return {"mb": None, "how": f"not measured: over {MEMORY_TIMEOUT} s"}
    except (IndexError, ValueError):
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"mb": None, "how": f"not measured: {reason}"}


def device_memory(job: Job) -> dict[str, Any]:
    """Peak memory of one job on the GPU over what was held there before it."""
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    job()
    peak = torch.cuda.max_memory_allocated() - before
    return {"mb": peak / 1e6, "how": "torch.cuda.max_memory_allocated"}


def device_ms(job: Job) -> float | None:
    """Milliseconds that a GPU works in one job, without what lies between its kernels; else None.

    What a launch costs the CPU is in the clock's time alone: the difference tells which of both
    bounds a small map.
    """
    activity = torch.profiler.ProfilerActivity
    if activity.CUDA not in torch.profiler.supported_activities():
        return None
    job()
    with torch.profiler.profile(activities=[activity.CUDA]) as profile:
        job()
    microseconds = sum(
        event.self_device_time_total
        for event in profile.key_averages()
        if event.device_type == torch.autograd.DeviceType.CUDA  # not what the CPU did for them
    )
    return microseconds / 1e3 if microseconds else None


def _libc() -> Any:
    """The C library if it is glibc's, whose allocator takes options at run time; else None."""
    try:
        libc = ctypes.CDLL(None)
        _ = libc.mallopt, libc.malloc_trim
    except (AttributeError, OSError, TypeError):
        return None
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, (ctypes.c_size_t,)
    libc.free.argtypes = (ctypes.c_void_p,)
    return libc


# <malloc.h>: option, value that keeps freed memory with the process, glibc's default
_MALLOPT = {
    "trim_threshold": (-1, 2**31 - 1, 128 * 1024),
    "mmap_max": (-4, 0, 65536),
    "mxfast": (1, 0, 128),
}


@contextlib.contextmanager
def allocator(mode: str) -> Iterator[str]:
    """``"default"``: as users meet it.  ``"warm"``: freed memory stays with the process.

    Large fresh buffers cost page faults that can hide a kernel; warm takes them out for all peers
    alike. Yields what was really done.
    """
    libc = _libc()
    if mode == "default" or libc is None:
        yield "default" if mode == "default" else "default (not glibc)"
        return
    for option, warm, _ in _MALLOPT.values():
        libc.mallopt(option, warm)
    # An aligned block leaves snippets of up to 128 bytes around it. Were they kept apart, for
    # reuse by small requests, the block would be too small to be its own successor: fill those
    # caches (seven per size), and snippets merge with their neighbours again.
    for size in range(24, 200, 16):
        for block in [libc.malloc(size) for _ in range(8)]:
            libc.free(block)
    try:
        yield "warm"
    finally:
        for option, _, default in _MALLOPT.values():
            libc.mallopt(option, default)
        libc.malloc_trim(0)


# ------------------------------------------------------------------------------------------------
# facts
# ------------------------------------------------------------------------------------------------


def version_of(*distributions: str) -> str | None:
    """``name version`` of the first distribution that is installed."""
    for name in distributions:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return f"{name} {importlib.metadata.version(name)}"
    return None


def cpu_name() -> str:
    """The processor as the kernel names it."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    name = fields.get("model name") or platform.processor() or platform.machine()
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def commit() -> str:
    """The commit of this checkout, with ``+changes`` when tracked files differ; else unknown.

    SEGFAST_COMMIT is it where the tree came without its history.
    """
    if told := os.environ.get("SEGFAST_COMMIT"):
        return told

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def gpu(device: str) -> dict[str, str]:
    """Name, driver and clocks of the moment, as nvidia-smi tells them; empty for a CPU."""
    fields = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw")
    if device != "cuda":
        return {}
    found = {"name": torch.cuda.get_device_name()}
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        first = done.stdout.splitlines()[torch.cuda.current_device()]
        found |= dict(zip(fields, (value.strip() for value in first.split(",")), strict=True))
    return found


@functools.cache
def facts() -> dict[str, Any]:
    """Machine, versions and commit, as plain values ready for JSON."""
    import segfast

    info = segfast.info()
    return {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "os": platform.platform(terse=True),
        "instruction_set": info["instruction_set"] or "none: the reference serves",
        "versions": {
            "segfast": segfast.__version__,
            "torch": torch.__version__,
            "numpy": importlib.metadata.version("numpy"),
            "python": platform.python_version(),
            "pydensecrf": version_of("pydensecrf", "pydensecrf2"),
        },
        "commit": commit(),
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


@functools.cache
def copy_bandwidth(threads: int, device: str = "cpu") -> float:
    """GB/s of a large warm copy, bytes read plus bytes written, at ``threads`` threads.

    The caller has set the thread count; it is an argument so that each is measured once.
    """
    source = torch.ones(32 << 20, device=device)  # 128 MB: beyond any cache here
    target = torch.empty_like(source)

    times = 10 if device == "cuda" else 1  # waiting for the device takes as long as a copy

    def copies() -> None:
        for _ in range(times):
            target.copy_(source)

    job = waiting(copies, device)
    job()
    seconds = statistics.median(timed(job) for _ in range(5)) / times
    return 2 * 4 * source.numel() / seconds / 1e9


@functools.cache
def product_rate(threads: int, device: str, dtype: torch.dtype) -> float:
    """GFLOP/s of PyTorch's product of two large matrices: what a peak is worth here."""
    size = 8192 if device == "cuda" else 1024
    a, b = (torch.ones(size, size, device=device, dtype=dtype) for _ in range(2))

    multiply = waiting(lambda: a @ b, device)
    multiply()
    return 2 * size**3 / statistics.median(timed(multiply) for _ in range(5)) / 1e9


def load_average() -> float | None:
    """Mean number of runnable processes over the last minute: how noisy the machine was."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None
