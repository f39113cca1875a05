"""Everything that needs a GPU, in one go, inside a fixed time.

    python -m benchmarks.gpu --out DIR [--archive FILE.tar.gz] [--resume] [--commit SHA]
                             [--budget SECONDS] [--only PHASE ...] [--list]

Builds for this GPU, runs the CUDA tests, the same under compute-sanitizer, the benchmarks, their
figures, the choice of kernels and other tiles for them (`benchmarks.tune`). Every phase has a limit
and leaves time for those after it; `status.json` is rewritten after every phase and all output goes
to `log.txt`, so whatever happens the results so far are on disk, and in FILE.tar.gz. Newest
operator first. What failed and a line per measured row stand last in what is printed. Needs the
standard library, torch and pytest; what else a phase needs and does not find is reported and not
fatal.

All of it takes more than BUDGET. In three calls of that length:
--only tests memcheck; --only benchmark figures; --only racecheck initcheck tune tiles.

--resume goes on where a session of the same commit stopped, whose archive lies unpacked in DIR:
what passed there is not run again. --commit names the commit of a tree without its history.

Tests take part when marked ``cuda`` and named after their operator; those whose name contains
``sanitize`` (small ones) also run under compute-sanitizer. Benchmarks take part with ``cuda`` in
their name.

Exit code: 0 all phases passed (or had nothing to run, or lacked an optional tool); 1 some phase
failed, ran out of time or was skipped for that reason; 2 wrong usage; 3 no CUDA GPU here.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ._phases import ROOT, Phase, Session, passed_before

OPERATORS = ("dilated_conv", "linear_attention", "max_unpool", "dense_crf")  # newest first
BENCHMARKS = (*OPERATORS, "models")
BUDGET = 540  # seconds
# What fits into a call of that length: `--only` of each, one call after the other.
CALLS = (
    ("tests", "memcheck"),
    ("benchmark", "figures"),
    ("racecheck", "initcheck", "tune", "tiles"),
)
NO_GPU = 3
BUILT = ("build", "kernels")
NEEDS_BUILD = {"max_unpool", "dense_crf", "models"}  # the others' kernels are Triton's
NO_SHARED_MEMORY = {"max_unpool"}  # in its kernels, so that nothing can race there
WORKERS = 8  # each compiles Triton's kernels and has a context of half a gigabyte on the GPU


def _after(operator: str) -> tuple[str, ...]:
    return BUILT if operator in NEEDS_BUILD else ()


def _sanitizer(operator: str, tool: str, most: int, least: int, **environment: str) -> Phase:
    # Without PyTorch's caching allocator every tensor is its own allocation, so that a read past
    # its end is seen and not hidden by a neighbour.
    sanitizer = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "99")
    tests = ("{python}", "-m", "pytest", "-q", "-m", "cuda", "-k", "sanitize")
    files = sorted((ROOT / "tests/ops").glob(f"test_{operator}*_cuda.py"))
    return Phase(
        f"{tool}:{operator}",
        (*sanitizer, *tests, *(str(file.relative_to(ROOT)) for file in files)),
        most=most,
        least=least,
        tools=("compute-sanitizer",),
        modules=("pytest",),
        after=_after(operator),
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"} | environment,
    )


def _tests(operator: str) -> Phase:
    pytest = ("{python}", "-m", "pytest", "-q", "-m", "cuda", "-k", operator, "tests/ops")
    # A kernel that never ends holds its worker up: the thread ends the process.
    limits = ("--timeout", "100", "--timeout-method", "thread")
    return Phase(
        f"tests:{operator}",
        (*pytest, "--numprocesses", str(WORKERS), "--dist", "loadgroup", *limits),
        most=300,
        least=60,
        modules=("pytest", "xdist", "pytest_timeout"),
        after=_after(operator),
    )


def _benchmark(operator: str) -> tuple[Phase, ...]:
    pytest = ("{python}", "-m", "pytest", "-q", f"benchmarks/{operator}.py", "-k", "cuda")
    return (
        Phase(
            f"benchmark:{operator}",
            (*pytest, f"--benchmark-json={{out}}/{operator}.json"),
            most=240,
            least=70,
            modules=("pytest", "pytest_benchmark"),
            after=_after(operator),
        ),
        Phase(
            f"figures:{operator}",
            ("{python}", "-m", "benchmarks.report", f"{{out}}/{operator}.json", "-o", "{out}"),
            most=30,
            least=10,
            file=f"{{out}}/{operator}.json",
        ),
    )


_KERNELS = (
    "import segfast._native as n; why = n.why_not_native(); "
    "print(why or 'compiled kernels loaded'); raise SystemExit(why is not None)"
)
_INSTALL = ("{python}", "-m", "pip", "install", "--no-build-isolation", "--no-deps", "-e", ".")
PHASES: tuple[Phase, ...] = (
    Phase("machine", ("nvidia-smi", "-q"), most=20, tools=("nvidia-smi",), always=True),
    Phase(
        "build",
        _INSTALL,
        most=240,
        least=60,
        tools=("nvcc", "c++"),
        modules=("setuptools", "pybind11"),
        always=True,
        environment={"SEGFAST_CUDA": "1", "SEGFAST_CUDA_ARCHITECTURES": "{architecture}"},
    ),
    Phase("kernels", ("{python}", "-c", _KERNELS), 60, 10, after=("build",), always=True),
    *(_tests(operator) for operator in OPERATORS),
    *(_sanitizer(operator, "memcheck", 150, 40) for operator in OPERATORS),
    *(phase for name in BENCHMARKS for phase in _benchmark(name)),
    *(
        _sanitizer(operator, "racecheck", 150, 50)
        for operator in OPERATORS
        if operator not in NO_SHARED_MEMORY
    ),
    # Memory that tests fill on purpose is not uninitialised.
    *(_sanitizer(name, "initcheck", 100, 25, SEGFAST_UNPOISONED="1") for name in OPERATORS),
    Phase(
        "tune:dilated_conv",
        ("{python}", "-m", "benchmarks.tune", "--device", "cuda", "-o", "{out}/tune.json"),
        most=150,
        least=40,
    ),
    Phase(
        "tiles",
        ("{python}", "-m", "benchmarks.tune", "--tiles", "-o", "{out}/tiles.json"),
        most=400,
        least=100,
        modules=("triton",),
    ),
)

_PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda}
if torch.cuda.is_available():
    major, minor = torch.cuda.get_device_capability()
    found |= {"device": torch.cuda.get_device_name(), "architecture": f"{major}{minor}"}
else:
    found["why"] = "torch.cuda.is_available() is False"
print(json.dumps(found))
"""


def commit() -> str:
    """Of this checkout, or unknown."""
    git = ("git", "-C", str(ROOT), "rev-parse", "HEAD")
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(git, capture_output=True, text=True, check=True, timeout=20)
        return done.stdout.strip()
    return "unknown"


def probe() -> dict[str, Any]:
    """Facts about the GPU, asked in a process of its own so that this one holds no context.

    With a GPU there is a key "device", without one a key "why".
    """
    facts: dict[str, Any] = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat()}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=90
        )
        return facts | json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return facts | {"why": "torch did not answer within 90 s"}
    except (IndexError, ValueError):
        return facts | {"why": (done.stderr.strip().splitlines() or ["torch said nothing"])[-1]}


def failures(log: Path, most: int = 40) -> list[str]:
    """What pytest says in short of tests that failed."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    found = [line[:200] for line in lines if line.startswith(("FAILED ", "ERROR "))]
    return found[:most] + [f"and {len(found) - most} more"] * (len(found) > most)


def print_rows(out: Path) -> None:
    """A line per row that was measured."""
    for name in BENCHMARKS:
        if (file := out / f"{name}.json").exists():
            with contextlib.suppress(subprocess.TimeoutExpired):
                command = [sys.executable, "-m", "benchmarks.report", str(file), "--brief"]
                subprocess.run(command, cwd=ROOT, timeout=30)


def _kind(phase: Phase) -> str:
    return phase.name.split(":")[0]


def _chosen(phase: Phase, only: Sequence[str] | None) -> bool:
    """With what others stand on."""
    return not only or phase.always or phase.name in only or _kind(phase) in only


def _interrupted(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # through `finally`: children stopped, status written


def main(arguments: Sequence[str] | None = None, phases: Sequence[Phase] = PHASES) -> int:
    """Command line; see the module's documentation for the exit codes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go")
    parser.add_argument("--archive", type=Path, metavar="FILE", help="all of DIR, as .tar.gz")
    parser.add_argument("--resume", action="store_true", help="do not repeat what passed")
    parser.add_argument("--commit", metavar="SHA", help="of the tree, where git cannot tell")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="in all")
    parser.add_argument(
        "--only", nargs="+", metavar="PHASE", help="these, or all with this name before the colon"
    )
    parser.add_argument("--list", action="store_true", help="print the phases and stop")
    options = parser.parse_args(arguments)
    if options.list:
        for phase in phases:
            print(f"{phase.name:24} at most {phase.most:4} s   {' '.join(phase.command)}")
        return 0
    if options.out is None:
        parser.error("--out DIR is required")
    names = {name for phase in phases for name in (phase.name, _kind(phase))}
    if unknown := set(options.only or ()) - names:
        parser.error(f"no phase named {', '.join(sorted(unknown))}; --list prints them")
    chosen = [phase for phase in phases if _chosen(phase, options.only)]
    if shutil.which("nvcc") is None:  # where CUDA is not on PATH
        os.environ["PATH"] += f"{os.pathsep}/usr/local/cuda/bin"
    facts = probe() | {"commit": options.commit or commit()}
    if options.commit:
        os.environ["SEGFAST_COMMIT"] = options.commit  # for the benchmarks
    done = passed_before(options.out, facts["commit"]) if options.resume else {}
    session = Session(options.out, options.budget, facts, options.archive, done)
    if "device" not in facts:
        session.write(done=True)
        print(f"no CUDA GPU here: {facts['why']}; nothing was run", file=sys.stderr)
        return NO_GPU
    print(f"{facts['device']}, sm_{facts['architecture']}, torch {facts['torch']}", flush=True)
    code = session.run(chosen)
    print(f"results: {options.archive or options.out}: status.json, log.txt", flush=True)
    print("\n".join(failures(options.out / "log.txt")), flush=True)
    print_rows(options.out.resolve())
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupted)
    sys.exit(main())
