"""The one-go GPU script: what it runs, when it stops, and what is on disk then."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _phases, gpu
from benchmarks._phases import Phase, Session, passed_before

ROOT = Path(__file__).resolve().parents[2]
GPU = {"device": "Fake GPU", "architecture": "90", "torch": "2.13.0"}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_phases, "SHORTEST", 0.05)
    monkeypatch.setattr(_phases, "GRACE", 3)


def python(name: str, code: str, most: float = 20, least: float = 0, **more: Any) -> Phase:
    return Phase(name, ("{python}", "-c", code), most, least, **more)  # type: ignore[arg-type]


def run(out: Path, *phases: Phase, budget: float = 30) -> tuple[int, dict[str, dict[str, Any]]]:
    code = Session(out, budget, GPU).run(phases)
    return code, {phase["name"]: phase for phase in status(out)["phases"]}


def status(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "status.json").read_text()))


def alive(pid: int) -> bool:
    """Running: neither gone nor a zombie that nobody has waited for yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def gone(pid: int, seconds: float = 5.0) -> bool:
    deadline = time.monotonic() + seconds
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    return not alive(pid)


SLEEP = "import time; time.sleep(60)"


# ------------------------------------------------------------------------------------- outcomes


def test_all_passes(tmp_path: Path) -> None:
    code, phases = run(tmp_path, python("one", "print('hello')"), python("two", ""))
    assert code == 0
    assert [p["status"] for p in phases.values()] == ["passed", "passed"]
    assert status(tmp_path)["done"] is True
    assert status(tmp_path)["device"] == "Fake GPU"
    log = (tmp_path / "log.txt").read_text()
    assert "===== one" in log
    assert "hello" in log


def test_a_failure_is_told_and_the_next_phase_still_runs(tmp_path: Path) -> None:
    code, phases = run(tmp_path, python("bad", "raise SystemExit(7)"), python("good", ""))
    assert code == 1
    assert phases["bad"]["status"] == "failed"
    assert phases["bad"]["exit_code"] == 7
    assert phases["good"]["status"] == "passed"


def test_a_command_that_cannot_start_is_a_failure(tmp_path: Path) -> None:
    code, phases = run(tmp_path, Phase("none", ("/no/such/program",), 5))
    assert code == 1
    assert phases["none"]["status"] == "failed"
    assert "cannot start" in phases["none"]["why"]


def test_what_depends_on_a_failure_is_skipped(tmp_path: Path) -> None:
    code, phases = run(
        tmp_path,
        python("build", "raise SystemExit(1)"),
        python("tests", "", after=("build",)),
        python("more", "", after=("tests",)),
    )
    assert code == 1
    assert phases["tests"]["status"] == phases["more"]["status"] == "skipped"
    assert "build did not pass" in phases["tests"]["why"]


@pytest.mark.parametrize(
    ("needs", "named"),
    [
        ({"tools": ("no-such-sanitizer",)}, "no-such-sanitizer"),
        ({"modules": ("no_such_module",)}, "no_such_module"),
        ({"file": "{out}/results.json"}, "results.json"),
    ],
)
def test_what_is_not_here_is_reported_and_not_fatal(
    tmp_path: Path, needs: dict[str, Any], named: str
) -> None:
    code, phases = run(tmp_path, python("optional", "raise SystemExit(1)", **needs))
    assert code == 0
    assert phases["optional"]["status"] == "missing"
    assert named in phases["optional"]["why"]


def test_but_what_depends_on_something_missing_is_skipped(tmp_path: Path) -> None:
    missing = python("build", "", tools=("no-such-compiler",))
    code, phases = run(tmp_path, missing, python("tests", "", after=("build",)))
    assert code == 1
    assert phases["tests"]["status"] == "skipped"


def test_no_matching_test_is_neither_passed_nor_failed(tmp_path: Path) -> None:
    command = ("{python}", "-c", "raise SystemExit(5)", "pytest")
    code, phases = run(tmp_path, Phase("tests", command, 20))
    assert (code, phases["tests"]["status"]) == (0, "empty")
    code, phases = run(tmp_path, python("tests", "raise SystemExit(5)"))  # 5 is pytest's alone
    assert (code, phases["tests"]["status"]) == (1, "failed")


def test_environment_and_places_are_filled_in(tmp_path: Path) -> None:
    code = "import os, sys; print(os.environ['ARCHITECTURE'], sys.argv[1])"
    environment = {"ARCHITECTURE": "sm_{architecture}"}
    phase = Phase("fill", ("{python}", "-c", code, "{out}"), 20, environment=environment)
    assert run(tmp_path, phase)[0] == 0
    assert f"sm_90 {tmp_path.resolve()}" in (tmp_path / "log.txt").read_text()


# ------------------------------------------------------------------------------------------ time


def test_a_phase_over_its_limit_is_stopped_with_all_it_started(tmp_path: Path) -> None:
    grandchild = (
        "import pathlib, subprocess, sys, time; "
        f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}]); "
        f"pathlib.Path({str(tmp_path / 'pid')!r}).write_text(str(child.pid)); time.sleep(60)"
    )
    begin = time.monotonic()
    code, phases = run(tmp_path, python("slow", grandchild, most=1.5), python("next", ""))
    assert time.monotonic() - begin < 15
    assert code == 1
    assert phases["slow"]["status"] == "timed out"
    assert phases["next"]["status"] == "passed"
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_phase_is_asked_before_it_is_killed(tmp_path: Path) -> None:
    """pytest writes the benchmarks measured so far when it is interrupted."""
    polite = (
        "import pathlib, time\ntry:\n time.sleep(60)\nexcept KeyboardInterrupt:\n"
        f" pathlib.Path({str(tmp_path / 'saved')!r}).write_text('results')"
    )
    _, phases = run(tmp_path, python("slow", polite, most=1))
    assert phases["slow"]["status"] == "timed out"
    assert (tmp_path / "saved").read_text() == "results"


def test_a_phase_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    deaf = f"import signal; signal.signal(signal.SIGINT, signal.SIG_IGN); {SLEEP}"
    begin = time.monotonic()
    _, phases = run(tmp_path, python("deaf", deaf, most=1))
    assert phases["deaf"]["status"] == "timed out"
    assert time.monotonic() - begin < 15


def test_time_is_left_for_later_phases(tmp_path: Path) -> None:
    begin = time.monotonic()
    code, phases = run(
        tmp_path, python("slow", SLEEP, most=100), python("last", "", least=4), budget=6
    )
    assert phases["slow"]["status"] == "timed out"
    assert phases["slow"]["limit"] == pytest.approx(2, abs=0.3)  # 6 - 4
    assert phases["last"]["status"] == "passed"
    assert code == 1
    assert time.monotonic() - begin < 8


def test_nothing_starts_without_time(tmp_path: Path) -> None:
    code, phases = run(tmp_path, python("one", SLEEP, least=1), python("two", ""), budget=0.8)
    assert phases["one"]["status"] == "timed out"  # the first, riskiest, gets what there is
    assert phases["two"]["status"] == "skipped"
    assert "no time left" in phases["two"]["why"]
    assert code == 1


# ------------------------------------------------------------------------------ results on disk


def test_status_is_written_after_every_phase(tmp_path: Path) -> None:
    look = (
        f"import json; s = json.load(open({str(tmp_path / 'status.json')!r})); "
        "assert not s['done'] and [p['status'] for p in s['phases']] == ['failed'], s"
    )
    code, phases = run(tmp_path, python("bad", "raise SystemExit(1)"), python("look", look))
    assert phases["look"]["status"] == "passed", (tmp_path / "log.txt").read_text()
    assert code == 1
    assert not list(tmp_path.glob("*.new"))


def test_when_it_is_terminated_results_are_on_disk_and_nothing_is_left(tmp_path: Path) -> None:
    """As `timeout` or a machine's owner ends it."""
    sleeper = f"import os; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); {SLEEP}"
    script = (
        "import signal, pathlib\nfrom benchmarks import gpu\n"
        "from benchmarks._phases import Phase, Session\n"
        "signal.signal(signal.SIGTERM, gpu._interrupted)\n"
        "phases = [Phase('one', ('{python}', '-c', ''), 20),"
        f" Phase('two', ('{{python}}', '-c', {sleeper!r}), 60)]\n"
        f"Session(pathlib.Path({str(tmp_path)!r}), 100, {GPU!r}).run(phases)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 20
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert gone(int((tmp_path / "pid").read_text()))
    found = status(tmp_path)
    assert [p["status"] for p in found["phases"]] == ["passed", "interrupted"]


def test_benchmarks_measured_before_the_limit_are_on_disk(tmp_path: Path) -> None:
    pytest.importorskip("pytest_benchmark")
    (tmp_path / "test_two.py").write_text(
        "import time\n"
        "def test_done(benchmark): benchmark.pedantic(int, rounds=3)\n"
        "def test_endless(benchmark): benchmark.pedantic(lambda: time.sleep(60), rounds=3)\n"
    )
    pytest_ = ("{python}", "-m", "pytest", "-q", "-p", "no:cacheprovider")
    files = (f"--rootdir={tmp_path}", "-p", "benchmarks.conftest", str(tmp_path / "test_two.py"))
    json_ = "--benchmark-json={out}/results.json"
    # Most of the limit is for importing torch on a machine that does other things beside.
    _, phases = run(tmp_path, Phase("slow", (*pytest_, *files, json_), 15))
    assert phases["slow"]["status"] == "timed out"
    results = json.loads((tmp_path / "results.json").read_text())
    assert [each["name"] for each in results["benchmarks"]] == ["test_done"]


def test_everything_is_in_one_archive_after_every_phase(tmp_path: Path) -> None:
    out, archive = tmp_path / "out", tmp_path / "all.tar.gz"
    look = (
        f"import json, tarfile; tar = tarfile.open({str(archive)!r}); "
        "status = json.load(tar.extractfile('./status.json')); "
        "assert [p['name'] for p in status['phases']] == ['one'], status"
    )
    make = "import sys; open(sys.argv[1] + '/made.json', 'w')"
    phases = [Phase("one", ("{python}", "-c", make, "{out}"), 20), python("look", look)]
    assert Session(out, 30, GPU, archive).run(phases) == 0, (out / "log.txt").read_text()
    with tarfile.open(archive) as tar:
        assert {"./status.json", "./log.txt", "./made.json"} <= set(tar.getnames())
    assert not list(tmp_path.glob("*.new"))


def test_what_passed_is_not_run_again(tmp_path: Path) -> None:
    """But for what is gone with the machine: the build."""
    facts = GPU | {"commit": "abc"}
    build, good = python("build", "", always=True), python("good", "", after=("build",))
    assert Session(tmp_path, 30, facts).run([build, good, python("bad", "raise SystemExit(1)")])
    before = passed_before(tmp_path, "abc")
    assert set(before) == {"build", "good"}
    assert passed_before(tmp_path, "another") == {}
    never = python("good", "raise SystemExit(1)", after=("build",))
    session = Session(tmp_path, 30, facts, done=before)
    assert session.run([build, never, python("bad", "")]) == 0
    found = status(tmp_path)
    assert {p["name"]: p["status"] for p in found["phases"]} == dict.fromkeys(
        ("build", "good", "bad"), "passed"
    )
    assert found["done"] is True
    assert (tmp_path / "log.txt").read_text().count("===== good") == 1
    assert (tmp_path / "log.txt").read_text().count("===== build") == 2


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", '{"commit": "unknown", "phases": []}', '{"commit": "abc"}',
             '{"commit": "abc", "phases": [{"nmae": 1}]}'],
)  # fmt: skip
def test_nothing_passed_in_a_session_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    assert passed_before(tmp_path, "abc") == {}
    (tmp_path / "status.json").write_text(text)
    assert passed_before(tmp_path, "abc") == passed_before(tmp_path, "unknown") == {}


# -------------------------------------------------------------------------------- command line


def test_a_session_is_told_its_commit_and_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "probe", lambda: GPU)
    monkeypatch.setenv("SEGFAST_COMMIT", "")  # restored afterwards
    told = "import os; assert os.environ['SEGFAST_COMMIT'] == 'abc'"
    arguments = ["--out", str(tmp_path), "--commit", "abc"]
    assert gpu.main(arguments, phases=[python("one", told)]) == 0
    assert status(tmp_path)["commit"] == "abc"
    never = python("one", "raise SystemExit(1)")
    assert gpu.main([*arguments, "--resume"], phases=[never]) == 0
    assert gpu.main(arguments, phases=[never]) == 1


def test_what_failed_is_said(tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    assert gpu.failures(log) == []
    lines = ["E   FAILED", *(f"FAILED tests/a.py::test_{i} - no" for i in range(5)), "ERROR b"]
    log.write_text("\n".join(lines))
    assert gpu.failures(log)[::5] == ["FAILED tests/a.py::test_0 - no", "ERROR b"]
    assert gpu.failures(log, most=2)[1:] == ["FAILED tests/a.py::test_1 - no", "and 4 more"]


def test_a_group_of_phases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "probe", lambda: GPU)
    phases = [python("build", "", always=True), python("a:x", ""), python("a:y", ""),
              python("b:x", "")]  # fmt: skip
    assert gpu.main(["--out", str(tmp_path), "--only", "a"], phases=phases) == 0
    assert [p["name"] for p in status(tmp_path)["phases"]] == ["build", "a:x", "a:y"]


def test_rows_stand_last(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    row = {"workload": "voc", "threads": 1, "copy_gb_s": None, "extra": 0, "providers": [
        {"name": "segfast", "ms": 2.0, "served_by": "lattice.cu"},
        {"name": "torch", "ms": 5.0, "served_by": "torch", "ratio": 2.5},
    ]}  # fmt: skip
    text = json.dumps({"benchmarks": [{"extra_info": row}]})
    (tmp_path / "dense_crf.json").write_text(text)
    gpu.print_rows(tmp_path)
    assert capfd.readouterr().out == "voc, 1t: 2 ms (lattice.cu), torch 2.5x\n"


def test_without_a_gpu_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "probe", lambda: {"why": "no such luck"})
    ran = python("never", f"open({str(tmp_path / 'ran')!r}, 'w')")
    assert gpu.main(["--out", str(tmp_path)], phases=[ran]) == gpu.NO_GPU == 3
    assert "no CUDA GPU here: no such luck" in capsys.readouterr().err
    assert status(tmp_path)["why"] == "no such luck"
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("code", "expected"), [("", 0), ("raise SystemExit(2)", 1)])
def test_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, expected: int
) -> None:
    monkeypatch.setattr(gpu, "probe", lambda: GPU)
    phases = [python("wanted", code), python("unwanted", "raise SystemExit(9)")]
    assert gpu.main(["--out", str(tmp_path), "--only", "wanted"], phases=phases) == expected
    assert [p["name"] for p in status(tmp_path)["phases"]] == ["wanted"]


def test_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ([], "--out DIR is required"),
        (["--out", str(tmp_path), "--only", "tset"], "no phase named tset"),
    ):
        with pytest.raises(SystemExit) as stop:
            gpu.main(arguments)
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_probe_tells_a_gpu_from_none() -> None:
    import torch

    facts = gpu.probe()
    assert ("device" in facts) == torch.cuda.is_available()
    assert ("why" in facts) != torch.cuda.is_available()


# ------------------------------------------------------------------------------------ the table


@pytest.mark.parametrize("call", gpu.CALLS, ids=" ".join)
def test_a_call_fits(call: tuple[str, ...]) -> None:
    chosen = [phase for phase in gpu.PHASES if gpu._chosen(phase, call)]
    assert sum(phase.least for phase in chosen) <= gpu.BUDGET
    assert {"machine", "build", "kernels"} < {phase.name for phase in chosen}


def test_table_holds_together() -> None:
    names = [phase.name for phase in gpu.PHASES]
    assert len(set(names)) == len(names)
    for i, phase in enumerate(gpu.PHASES):
        assert phase.least <= phase.most
        assert set(phase.after) <= set(names[:i])
    kinds = {name.split(":")[0] for name in names} - {"machine", "build", "kernels"}
    assert kinds == {kind for call in gpu.CALLS for kind in call}


def test_sanitizers_find_their_tests() -> None:
    """Of every operator, files that exist: pytest collects nothing else."""
    for phase in gpu.PHASES:
        if phase.tools == ("compute-sanitizer",):
            files = [ROOT / part for part in phase.command if part.startswith("tests/")]
            assert files
            assert any("sanitize" in file.read_text() for file in files)


def test_every_operator_is_in_the_table() -> None:
    stems = {path.stem for path in (ROOT / "segfast" / "ops").glob("*.py")}
    assert set(gpu.OPERATORS) == {stem for stem in stems if not stem.startswith("_")}
    names = {phase.name for phase in gpu.PHASES}
    for operator in gpu.OPERATORS:
        for check in ("tests", "memcheck", "racecheck", "initcheck", "benchmark", "figures"):
            racing = check != "racecheck" or operator not in gpu.NO_SHARED_MEMORY
            assert (f"{check}:{operator}" in names) == racing
    for operator in gpu.NO_SHARED_MEMORY:
        for source in (ROOT / "kernels" / operator).glob("*.cu*"):
            assert "__shared__" not in source.read_text()


def test_runs_on_a_bare_machine() -> None:
    """Imports nothing but the standard library (torch is asked in a process of its own)."""
    imported = set()
    sources = [(ROOT / "benchmarks" / f"{name}.py").read_text() for name in ("gpu", "_phases")]
    for node in (node for source in sources for node in ast.walk(ast.parse(source))):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            imported.add(str(node.module).split(".")[0])
    assert imported <= set(sys.stdlib_module_names)
    done = subprocess.run(
        [sys.executable, "-S", "-m", "benchmarks.gpu", "--list"],  # -S: no site-packages
        cwd=ROOT, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "memcheck:dense_crf" in done.stdout
