"""Peak memory of one benchmark job, measured in this (fresh) process.

    python -m benchmarks._memory OPERATOR WORKLOAD PROVIDER THREADS

prints one line of JSON: {"mb": peak over the memory held before the job, "how": the method}.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import torch

from benchmarks._common import Job

STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")


def resident(field: str) -> int:
    """Bytes of a field of /proc/self/status: VmRSS (now) or VmHWM (highest so far)."""
    for line in STATUS.read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{STATUS} has no field {field}")


def peak_over_baseline(job: Job) -> dict[str, Any]:
    """Bytes that ``job`` holds at its peak beyond what the process held before it."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)  # gives free pages back: their reuse counts, too
    try:
        how = "VmHWM reset before the job"
        try:
            CLEAR_REFS.write_text("5")
        except OSError:  # the peak may be older than the job: an upper bound
            how = "VmHWM not resettable: upper bound"
        before = resident("VmRSS")
        result = job()
        peak = resident("VmHWM")
        del result
    except OSError as error:
        return {"mb": None, "how": f"not measured: {error}"}
    return {"mb": max(0, peak - before) / 1e6, "how": how}


def main(arguments: list[str]) -> int:
    operator, workload, provider, threads = arguments
    torch.set_num_threads(int(threads))
    module = importlib.import_module(f"benchmarks.{operator}")
    module.prepare_tiny(workload, provider)()  # libraries and code pages are not the job's
    print(json.dumps(peak_over_baseline(module.prepare(workload, provider))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
