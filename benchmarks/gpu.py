"""Everything that needs a GPU, in one go, inside a fixed time.

    python -m benchmarks.gpu --out DIR [--budget SECONDS] [--only PHASE ...] [--list]

Builds for this GPU, runs the CUDA tests, the same under compute-sanitizer, the benchmarks and
their figures. Every phase has a limit and leaves time for those after it; `status.json` is
rewritten after every phase and all output goes to `log.txt`, so whatever happens the results so
far are on disk. Newest operator first. Needs the standard library, torch and pytest; what else a
phase needs and does not find is reported, not fatal.

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
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
OPERATORS = ("dilated_conv", "linear_attention", "max_unpool", "dense_crf")  # newest first
BENCHMARKS = ("models", *OPERATORS)
BUDGET = 540  # seconds
NO_GPU = 3
NO_TESTS = 5  # pytest's exit code when everything was deselected
SHORTEST = 5  # seconds below which a phase is not started
GRACE = 8  # seconds between asking a phase to stop (pytest then writes its results) and killing it
FINE = {"passed", "empty", "missing"}


@dataclass(frozen=True)
class Phase:
    """One command. {python}, {out} and {architecture} are filled in.

    most: its limit in seconds; least: what earlier phases leave for it.
    tools, modules, file: needed; when absent the phase is "missing".
    after: phases that must have passed if they were run; otherwise this one is "skipped".
    """

    name: str
    command: tuple[str, ...]
    most: int
    least: int = SHORTEST
    tools: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    file: str = ""
    after: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


def _sanitizer(operator: str, tool: str, most: int) -> Phase:
    # Without PyTorch's caching allocator every tensor is its own allocation, so that a read past
    # its end is seen and not hidden by a neighbour.
    sanitizer = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "99")
    tests = ("{python}", "-m", "pytest", "-q", "-m", "cuda", "-k", f"{operator} and sanitize")
    return Phase(
        f"{tool}:{operator}",
        (*sanitizer, *tests, "tests"),
        most=most,
        least=most // 8,
        tools=("compute-sanitizer",),
        modules=("pytest",),
        after=("build", "kernels"),
        environment={"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"},
    )


def _checks(operator: str) -> tuple[Phase, ...]:
    tests = ("{python}", "-m", "pytest", "-q", "-m", "cuda", "-k", operator, "tests")
    return (
        Phase(
            f"tests:{operator}",
            tests,
            most=150,
            least=30,
            modules=("pytest",),
            after=("build", "kernels"),
        ),
        _sanitizer(operator, "memcheck", 80),
        _sanitizer(operator, "racecheck", 80),
        _sanitizer(operator, "initcheck", 40),
    )


def _benchmark(operator: str) -> tuple[Phase, ...]:
    pytest = ("{python}", "-m", "pytest", "-q", f"benchmarks/{operator}.py", "-k", "cuda")
    return (
        Phase(
            f"benchmark:{operator}",
            (*pytest, f"--benchmark-json={{out}}/{operator}.json"),
            most=180,
            least=35,
            modules=("pytest", "pytest_benchmark"),
            after=("build", "kernels"),
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
    Phase("machine", ("nvidia-smi",), most=20, tools=("nvidia-smi",)),
    Phase(
        "build",
        _INSTALL,
        most=240,
        least=60,
        tools=("nvcc", "c++"),
        modules=("setuptools", "pybind11"),
        environment={"SEGFAST_CUDA": "1", "SEGFAST_CUDA_ARCHITECTURES": "{architecture}"},
    ),
    Phase("kernels", ("{python}", "-c", _KERNELS), most=60, least=10, after=("build",)),
    *(phase for operator in OPERATORS for phase in _checks(operator)),
    *(phase for name in BENCHMARKS for phase in _benchmark(name)),
)

# ------------------------------------------------------------------------------------------ run


@dataclass
class Result:
    """What became of a phase: passed, failed, timed out, empty, missing, skipped, interrupted."""

    name: str
    status: str
    why: str = ""
    exit_code: int | None = None
    seconds: float = 0.0
    limit: float = 0.0
    command: str = ""


class Session:
    """Runs phases one after the other inside a budget and keeps `status.json` up to date."""

    def __init__(self, out: Path, budget: float, facts: dict[str, Any]) -> None:
        self.out, self.budget, self.facts = out, budget, facts
        self.begin = time.monotonic()
        self.results: list[Result] = []
        self.fill = {
            "python": sys.executable,
            "out": str(out.resolve()),
            "architecture": str(facts.get("architecture", "")),
        }
        out.mkdir(parents=True, exist_ok=True)
        self.write(done=False)

    def write(self, done: bool) -> None:
        """Replaces status.json in one step: a reader never finds half of it."""
        content = {
            **self.facts,
            "budget_s": self.budget,
            "spent_s": round(time.monotonic() - self.begin, 1),
            "done": done,
            "phases": [asdict(result) for result in self.results],
        }
        draft = self.out / "status.json.new"
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        draft.replace(self.out / "status.json")

    def run(self, phases: Sequence[Phase]) -> int:
        """All phases; returns the exit code."""
        try:
            for i, phase in enumerate(phases):
                reserved = sum(later.least for later in phases[i + 1 :])
                left = self.budget - (time.monotonic() - self.begin)
                # When even the reserves do not fit, the earlier (riskier) phase goes first.
                limit = min(phase.most, max(left - reserved, min(phase.least, left)))
                result = Result(phase.name, "interrupted", limit=round(limit, 1))
                self.results.append(result)
                self.one(phase, limit, result)
                self.write(done=False)
                why = f" ({result.why})" if result.why else ""
                print(
                    f"{result.name:24} {result.status:10} {result.seconds:6.1f} s{why}", flush=True
                )
        finally:
            self.write(done=len(self.results) == len(phases))
        return 0 if all(result.status in FINE for result in self.results) else 1

    def one(self, phase: Phase, limit: float, result: Result) -> None:
        """One phase, if it can run; what it does ends in `result` and never raises."""
        command = [part.format(**self.fill) for part in phase.command]
        result.command = " ".join(command)
        before = [r for r in self.results if r.name in phase.after]
        if broken := [r.name for r in before if r.status not in {"passed", "empty"}]:
            result.status, result.why = "skipped", f"{broken[0]} did not pass"
            return
        if absent := self.absent(phase):
            result.status, result.why = "missing", f"not here: {', '.join(absent)}"
            return
        if limit < SHORTEST:
            result.status, result.why = "skipped", f"no time left ({max(0, limit):.0f} s)"
            return
        with (self.out / "log.txt").open("a", encoding="utf-8") as log:
            log.write(f"\n===== {phase.name}: {result.command}\n")
            log.flush()
            extra = {key: value.format(**self.fill) for key, value in phase.environment.items()}
            begin = time.monotonic()
            try:
                result.exit_code, in_time = execute(command, extra, limit, log)
            except OSError as error:
                result.status, result.why = "failed", f"cannot start: {error}"
                return
            result.seconds = round(time.monotonic() - begin, 1)
        if not in_time:
            result.status, result.why = "timed out", f"over {limit:.0f} s"
        elif result.exit_code == 0:
            result.status = "passed"
        elif result.exit_code == NO_TESTS and "pytest" in phase.command:
            result.status, result.why = "empty", "no test matches"
        else:
            result.status, result.why = "failed", f"exit code {result.exit_code}, see log.txt"

    def absent(self, phase: Phase) -> list[str]:
        """What the phase needs and this machine lacks."""
        absent = [tool for tool in phase.tools if shutil.which(tool) is None]
        absent += [name for name in phase.modules if importlib.util.find_spec(name) is None]
        if phase.file and not Path(phase.file.format(**self.fill)).exists():
            absent.append(Path(phase.file).name)
        return absent


def _hear_interrupts() -> None:
    """A shell's background jobs (`... &`) ignore interrupts, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def execute(
    command: Sequence[str], environment: dict[str, str], limit: float, log: IO[str]
) -> tuple[int, bool]:
    """Runs a command in its own process group; returns (exit code, finished within the limit).

    At the limit the whole group gets SIGINT, GRACE seconds later SIGKILL, and so it does when
    this process is interrupted: nothing is left running.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_hear_interrupts,
    )

    def stop(number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)

    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return process.wait(limit), True
        stop(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
        return -1 if process.poll() is None else process.returncode, False
    finally:
        stop(signal.SIGKILL)
        process.wait()


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


def probe() -> dict[str, Any]:
    """Facts about the GPU, asked in a process of its own so that this one holds no context.

    With a GPU there is a key "device", without one a key "why".
    """
    facts: dict[str, Any] = {"date": datetime.datetime.now(datetime.timezone.utc).isoformat()}
    git = ("git", "-C", str(ROOT), "rev-parse", "HEAD")
    facts["commit"] = "unknown"
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        facts["commit"] = subprocess.run(
            git, capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PROBE], capture_output=True, text=True, timeout=90
        )
        return facts | json.loads(done.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        return facts | {"why": "torch did not answer within 90 s"}
    except (IndexError, ValueError):
        return facts | {"why": (done.stderr.strip().splitlines() or ["torch said nothing"])[-1]}


def _interrupted(number: int, frame: object) -> None:
    raise SystemExit(128 + number)  # through `finally`: children stopped, status written


def main(arguments: Sequence[str] | None = None, phases: Sequence[Phase] = PHASES) -> int:
    """Command line; see the module's documentation for the exit codes."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where results go")
    parser.add_argument("--budget", type=float, default=BUDGET, metavar="SECONDS", help="in all")
    parser.add_argument("--only", nargs="+", metavar="PHASE", help="run these phases alone")
    parser.add_argument("--list", action="store_true", help="print the phases and stop")
    options = parser.parse_args(arguments)
    if options.list:
        for phase in phases:
            print(f"{phase.name:24} at most {phase.most:4} s   {' '.join(phase.command)}")
        return 0
    if options.out is None:
        parser.error("--out DIR is required")
    if unknown := set(options.only or ()) - {phase.name for phase in phases}:
        parser.error(f"no phase named {', '.join(sorted(unknown))}; --list prints them")
    chosen = [phase for phase in phases if not options.only or phase.name in options.only]
    facts = probe()
    session = Session(options.out, options.budget, facts)
    if "device" not in facts:
        session.write(done=True)
        print(f"no CUDA GPU here: {facts['why']}; nothing was run", file=sys.stderr)
        return NO_GPU
    print(f"{facts['device']}, sm_{facts['architecture']}, torch {facts['torch']}", flush=True)
    code = session.run(chosen)
    print(f"results: {options.out}/status.json, log.txt", flush=True)
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _interrupted)
    sys.exit(main())
