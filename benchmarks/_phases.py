"""Commands run one after the other inside a fixed time, their results kept on disk.

For `benchmarks.gpu`. Needs the standard library alone.
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

ROOT = Path(__file__).resolve().parent.parent
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
    always: run again by a session that goes on with another's results.
    """

    name: str
    command: tuple[str, ...]
    most: int
    least: int = SHORTEST
    tools: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    file: str = ""
    after: tuple[str, ...] = ()
    always: bool = False
    environment: dict[str, str] = field(default_factory=dict)


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


def passed_before(out: Path, commit: str) -> dict[str, Result]:
    """Of a session whose status is in `out`, if it was of the same commit: what passed there."""
    try:
        before = json.loads((out / "status.json").read_text(encoding="utf-8"))
        if commit == "unknown" or before["commit"] != commit:
            return {}
        results = [Result(**result) for result in before["phases"]]
    except (OSError, ValueError, TypeError, KeyError):
        return {}
    return {result.name: result for result in results if result.status == "passed"}


class Session:
    """Runs phases one after the other inside a budget.

    Keeps `status.json` in the folder `out` up to date, and `archive`, all that the folder holds.
    done: results of phases that are not run again.
    """

    def __init__(
        self,
        out: Path,
        budget: float,
        facts: dict[str, Any],
        archive: Path | None = None,
        done: Mapping[str, Result] | None = None,
    ) -> None:
        self.out, self.budget, self.facts, self.archive = out, budget, facts, archive
        self.begin = time.monotonic()
        self.before = dict(done or {})
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
        if self.archive is not None:
            draft = self.archive.with_name(self.archive.name + ".new")
            with tarfile.open(draft, "w:gz") as tar:
                tar.add(self.out, arcname=".")
            draft.replace(self.archive)

    def run(self, phases: Sequence[Phase]) -> int:
        """All phases; returns the exit code."""
        number = len(phases)
        phases = [phase for phase in phases if not self.known(phase)]
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
            self.write(done=len(self.results) == number)
        return 0 if all(result.status in FINE for result in self.results) else 1

    def known(self, phase: Phase) -> bool:
        """Whether it passed before and need not run again; then that is its result.

        What is made of a file is made again: the file may be new.
        """
        if phase.always or phase.file or phase.name not in self.before:
            return False
        self.results.append(self.before[phase.name])
        return True

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
