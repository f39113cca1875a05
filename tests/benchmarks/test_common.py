"""What the benchmarks share: timing, memory, facts, pictures."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import _common, _memory, _pictures

linux = pytest.mark.skipif(not _memory.STATUS.exists(), reason="needs /proc")


def test_quantiles() -> None:
    assert _common.quantiles([3.0]) == (3.0, 3.0, 3.0)
    assert _common.quantiles([5.0, 1.0, 4.0, 2.0, 3.0, 6.0]) == pytest.approx((2.0, 3.5, 5.0))


def test_ratio_pairs_within_a_round() -> None:
    """A machine that slows down by 10 in the second round changes no ratio."""
    ours, peer = [1.0, 10.0, 1.0], [3.0, 30.0, 3.0]
    assert _common.ratio(peer, ours) == pytest.approx((3.0, 3.0, 3.0))
    with pytest.raises(ValueError, match="shorter"):
        _common.ratio(peer, ours[:2])


@pytest.mark.parametrize(
    ("once", "rounds"), [(0.0, 99), (0.5, 16), (1.0, 9), (2.5, 9), (5.0, 6), (100.0, 3)]
)
def test_number_of_rounds(once: float, rounds: int) -> None:
    assert _common.number_of_rounds(once, budget=8.0) == rounds


def test_interleaved_runs_everyone_in_every_round_and_rotates() -> None:
    order: list[str] = []
    jobs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    samples = _common.interleaved(jobs, rounds=3)
    assert "".join(order) == "abc" + "bca" + "cab"
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 3, "b": 3, "c": 3}


def test_timed_measures_the_job() -> None:
    assert 0.02 <= _common.timed(lambda: time.sleep(0.02)) < 2


class FakeBenchmark:
    """As much of pytest-benchmark's fixture as is used; not enabled: --benchmark-disable."""

    def __init__(self, enabled: bool) -> None:
        self.enabled, self.stats = enabled, None

    def pedantic(self, job, setup, rounds, iterations):  # type: ignore[no-untyped-def]
        assert iterations == 1
        data, result = [], None
        for _ in range(rounds if self.enabled else 1):
            setup()
            begin = time.perf_counter()
            result = job()  # the one before lives until here
            data.append(time.perf_counter() - begin)
        if self.enabled:
            self.stats = type("", (), {"stats": type("", (), {"data": data})})  # type: ignore
        return result


@pytest.mark.parametrize("peers", [0, 2])
def test_interleaved_benchmark(peers: int) -> None:
    order: list[str] = []
    jobs = {n: (lambda n=n: order.append(n)) for n in ["ours", "p", "q"][: 1 + peers]}
    samples = _common.interleaved_benchmark(FakeBenchmark(True), jobs, budget=1.0)
    assert samples.keys() == jobs.keys()
    assert {len(seconds) for seconds in samples.values()} == {_common.MANY}
    timed = "".join(name[0] for name in order[len(jobs) :])  # after the warm-up
    assert timed == ("o" * 99 if peers == 0 else "pqo" + "oqppqo" * 49)


def test_no_result_lives_while_another_is_made() -> None:
    """It would hold the memory that the next one takes, warm, where there is none."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    def job() -> object:
        assert not alive
        result = type("Result", (), {})()
        alive.add(result)
        return result

    _common.interleaved_benchmark(FakeBenchmark(True), {"ours": job, "peer": job}, budget=1.0)


def test_interleaved_benchmark_disabled_times_nothing() -> None:
    assert _common.interleaved_benchmark(FakeBenchmark(False), {"ours": list}, 1.0) == {}


# ---------------------------------------------------------------------------------------- memory


@linux
def test_peak_memory_sees_what_is_held_only_for_a_moment() -> None:
    megabytes = 64
    words = megabytes * 10**6 // 8
    kept = _memory.peak_over_baseline(lambda: np.ones(words))
    freed = _memory.peak_over_baseline(lambda: np.ones(words).sum())
    for result in (kept, freed):
        # the kernel counts pages per thread in batches: a few hundred KB of slack
        assert result["mb"] == pytest.approx(megabytes, rel=0.1)
        assert result["how"] == "VmHWM reset before the job"
    nothing = _memory.peak_over_baseline(lambda: None)
    assert nothing["mb"] < 3  # the earlier peak is forgotten


@linux
def test_peak_memory_says_when_it_is_only_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "CLEAR_REFS", Path("/no/such/file"))
    result = _memory.peak_over_baseline(lambda: np.ones(8 * 10**6))
    assert result["how"] == "VmHWM not resettable: upper bound"
    assert result["mb"] >= 0.9 * 64


def test_peak_memory_without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_memory, "STATUS", Path("/no/such/file"))
    result = _memory.peak_over_baseline(lambda: None)
    assert result["mb"] is None
    assert "not measured" in result["how"]


def test_peak_memory_in_a_fresh_process_says_why_it_failed() -> None:
    result = _common.peak_memory("dense_crf", "no-such-workload", "segfast", 1)
    assert result["mb"] is None
    assert "no-such-workload" in result["how"]


FAULTS = """
import resource
import torch
from benchmarks import _common

def faults(mode, megabytes, calls):
    counts = []
    with _common.allocator(mode) as really:
        for _ in range(calls):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            torch.empty(megabytes << 18).fill_(1.0)
            counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    return really, counts

really, counts = faults("warm", 64, 20)
print(really, max(counts[-8:]))
really, counts = faults("default", 256, 2)
print(really, min(counts))
"""


@pytest.mark.skipif(_common._libc() is None, reason="glibc's allocator")
def test_warm_allocator_takes_page_faults_out() -> None:
    # In a process of its own: an allocation that fails, as other tests provoke them, moves the
    # thread to one of glibc's secondary arenas, which serves large blocks by fresh pages only.
    out = subprocess.run(
        [sys.executable, "-c", FAULTS], cwd=_common.ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    assert (out[0], out[2]) == ("warm", "default")
    # 64 MB fresh are 32 faults with huge pages, 16384 without. It takes some calls until the
    # allocator's caches are full and snippets merge: where the heap begins decides how many (up to
    # four in forty heaps). Afterwards the default is restored; more is asked for then, which does
    # not fit into what the heap may have kept.
    assert int(out[1]) < 16 < int(out[3])


# ------------------------------------------------------------------------------ facts, pictures


def test_facts_are_complete_and_plain() -> None:
    import json

    facts = _common.facts()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["cores"] == os.cpu_count()
    assert facts["versions"]["torch"] == torch.__version__
    for key in ("cpu", "os", "instruction_set", "commit", "date"):
        assert facts[key]


def test_version_of_takes_the_first_that_is_there() -> None:
    found = _common.version_of("no-such-distribution", "pytest", "torch")
    assert found == f"pytest {pytest.__version__}"
    assert _common.version_of("no-such-distribution") is None


def test_copy_bandwidth_is_plausible() -> None:
    assert 0.5 < _common.copy_bandwidth(torch.get_num_threads()) < 10_000


@pytest.mark.parametrize("name", list(_pictures.PICTURES))
def test_pictures(name: str) -> None:
    if name != "noise":
        pytest.importorskip("skimage")
    image = _pictures.PICTURES[name](64, 128)
    assert image.shape == (3, 64, 128)
    assert image.dtype == torch.uint8
    assert image.float().std() > 20  # something to see
    assert torch.equal(image, _pictures.PICTURES[name](64, 128))


def test_logits_are_log_probabilities_and_not_trivial() -> None:
    image = _pictures.noise(41, 67)
    logits = _pictures.network_logits(image, labels=7)
    assert logits.shape == (7, 41, 67)
    assert logits.is_contiguous()
    torch.testing.assert_close(
        logits.logsumexp(0), torch.zeros(41, 67), rtol=0, atol=2e-6
    )  # 20 ulp
    assert torch.equal(logits, _pictures.network_logits(image, labels=7))
    confidence = logits.exp().amax(0).mean()
    assert 0.3 < confidence < 0.95  # unsure, as a network is before a CRF
    assert len(logits.argmax(0).unique()) > 2


def test_what_a_row_says_of_the_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert _common.gpu("cpu") == {}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A GPU")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _common.gpu("cuda") == {"name": "A GPU"}
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        "#!/bin/sh\necho 'B, 1, 2 MHz, 3 MHz, 4 MHz, 5 W'\necho 'C, 6, 7 MHz, 8, 9, 0 W'"
    )
    smi.chmod(0o755)
    found = _common.gpu("cuda")
    assert (found["name"], found["driver_version"], found["clocks.sm"]) == ("C", "6", "7 MHz")
