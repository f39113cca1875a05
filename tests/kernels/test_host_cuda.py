"""The host run of CUDA kernels: what is right passes, and what is wrong is found."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import host_cuda
from host_cuda import KernelFault, Program, Run, build

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2  # demos::Dtype

DEMOS = build.HERE / "demos"
_FAULTS = re.search(r"enum class Fault : int \{(.*?)\}", (DEMOS / "demos.h").read_text(), re.DOTALL)
assert _FAULTS
FAULTS = re.findall(r"^ *(\w+),", _FAULTS[1], re.MULTILINE)

N = 64
ORDER = host_cuda.RUNS[0]


@pytest.fixture(scope="module")
def demos() -> Program:
    return host_cuda.demos()


@pytest.fixture(params=host_cuda.RUNS, ids=str)
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


@pytest.fixture(params=[run for run in host_cuda.RUNS if run.watch == "memory"], ids=str)
def order(request: pytest.FixtureRequest) -> Run:
    return request.param


def matrix(x: Tensor) -> bytes:
    return np.array([*x.shape, x.stride(0)], np.int64).tobytes()


def nan(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, float("nan"), dtype=dtype)


# ------------------------------------------------------------------------- kernels that are right


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 127), (2, 1000), (0, 5)])
def test_row_sums(demos: Program, run: Run, rows: int, columns: int) -> None:
    x = torch.arange(rows * (columns + 3)).reshape(rows, columns + 3).float()[:, 2 : 2 + columns]
    sums = nan(rows)
    assert demos("row_sums", x, matrix(x), sums, run=run) == 0
    assert torch.equal(sums, x.sum(1))


@pytest.mark.parametrize("count", [1, 31, 64, 1000, 1024])
def test_inclusive_scan(demos: Program, run: Run, count: int) -> None:
    x = torch.arange(count, dtype=torch.int32) % 7 - 3
    scan = torch.full_like(x, -99)
    assert demos("inclusive_scan", x, scan, count, run=run) == 0
    assert torch.equal(scan, x.cumsum(0, dtype=torch.int32))


@pytest.mark.parametrize(("count", "bins"), [(1, 1), (1500, 13), (700, 300)])
def test_histogram(demos: Program, run: Run, count: int, bins: int) -> None:
    x = np.random.default_rng(run.seed).integers(0, bins, count, dtype=np.int32)
    found = np.zeros(bins, np.uint32)
    assert demos("histogram", x, count, found, bins, run=run) == 0
    assert np.array_equal(found, np.bincount(x, minlength=bins))


def test_distinct(demos: Program, run: Run) -> None:
    x = np.random.default_rng(run.seed).integers(0, 90, 500, dtype=np.int32)
    slots, count = np.full(128, -1, np.int32), np.zeros(1, np.int32)
    assert demos("distinct", x, len(x), slots, len(slots), count, run=run) == 0
    expected = np.unique(x)
    assert count[0] == len(expected)
    assert np.array_equal(np.sort(slots[slots >= 0]), expected)


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (32, 32), (33, 70), (100, 5)])
def test_transpose(demos: Program, run: Run, rows: int, columns: int) -> None:
    x = torch.arange(rows * columns).reshape(rows, columns).float()
    y = nan(columns, rows)
    assert demos("transpose", x, matrix(x), y, run=run) == 0
    assert torch.equal(y, x.T)


@pytest.mark.parametrize("count", [1, 8, 77, 1024])
@pytest.mark.parametrize(
    ("dtype", "code"),
    [(torch.float32, FLOAT32), (torch.float16, FLOAT16), (torch.bfloat16, BFLOAT16)],
)
def test_vector_loads(demos: Program, run: Run, count: int, dtype: torch.dtype, code: int) -> None:
    x = torch.linspace(-3, 70000, count).to(dtype)
    x[0] = float("nan") if run.seed else 1e-7
    y = nan(count, dtype=dtype)
    assert demos("twice", x, y, count, code, run=run) == 0
    torch.testing.assert_close(y, x * 2, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_of_small_floats(demos: Program, dtype: torch.dtype) -> None:
    """Doubling is exact but for overflow; every finite value, subnormals and infinities."""
    x = torch.arange(2**16).to(torch.uint16).view(dtype)
    y = torch.zeros_like(x)
    assert demos("twice", x, y, len(x), FLOAT16 if dtype == torch.float16 else BFLOAT16) == 0
    torch.testing.assert_close(y, x * 2, rtol=0, atol=0, equal_nan=True)


def test_warp_functions(demos: Program, run: Run) -> None:
    threads = 70
    facts = np.zeros((threads, 8), np.uint32)
    assert demos("warp_facts", facts, threads, run=run) == 0
    for t, fact in enumerate(facts.tolist()):
        lane, first = t % 32, t - t % 32
        lanes = range(min(32, threads - first))
        assert fact[0] == sum(1 << k for k in lanes if k % 3 == 0)
        assert fact[1] == (7 in lanes) + 2
        group = t - lane % 4  # lane 2 of it may not exist: then the value is poison
        if group + 2 < threads:
            assert fact[2] == group + 2
        if t + 1 < threads:
            assert fact[3] == (t if lane % 8 == 7 else t + 1)
        assert fact[4] == sum(1 << k for k in lanes if k // 5 == lane // 5)
        assert fact[5] == threads // 2
        assert fact[6] == 1
        assert fact[7] == (len(lanes) // 2 if lane % 2 else 32 - lane)


@pytest.mark.parametrize("count", [1, 70, 1000])
def test_integer_atomics(demos: Program, run: Run, count: int) -> None:
    """All of them, each on one word: results that no order changes."""
    x = torch.arange(count, dtype=torch.int32) * 7919 % 1009 + 1
    found = torch.tensor([2**31 - 1, 0, 2**31 - 1, 0, -1, 0, 0, 5, 0], dtype=torch.int32)
    assert demos("integer_atomics", x, count, found, run=run) == 0
    exact = x.tolist()
    wrapped = (2**31 - 1 + sum(exact) + 2**31) % 2**32 - 2**31
    all_and, all_or, all_xor = -1, 0, 0
    for v in exact:
        all_and, all_or, all_xor = all_and & v, all_or | v, all_xor ^ v
    sums = [wrapped, -sum(exact), min(exact), max(exact), all_and, all_or, all_xor]
    assert found.tolist()[:7] == sums
    assert found[7] in x
    assert found[8] == count % 11


# ------------------------------------------------------------------------- kernels that are wrong


def run_fault(
    demos: Program, name: str, run: Run = ORDER, timeout: float = 60
) -> tuple[int, Tensor]:
    x, y = torch.arange(N).float(), nan(N)
    y[N - 1] = 0
    return demos("fault", FAULTS.index(name), x, y, N, run=run, timeout=timeout), y


@pytest.mark.parametrize(
    "name",
    [
        "missing_barrier",
        "missing_second_barrier",
        "missing_warp_barrier",
        "uninitialised_shared",
        "shared_of_the_last_block",
        "order_of_blocks",
    ],
)
def test_wrong_results_show(demos: Program, order: Run, name: str) -> None:
    code, y = run_fault(demos, name, order)
    assert code == 0
    right = torch.zeros(N) if name == "order_of_blocks" else torch.arange(N).flip(0).float()
    assert not torch.equal(y, right)


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("missing_barrier", "shared memory:.*: (read|write) at .*faults.cu"),
        ("missing_second_barrier", "shared memory:.*: (read|write) at .*faults.cu"),
        ("missing_warp_barrier", "shared memory:.*: (read|write) at .*faults.cu"),
        ("sum_without_atomic", "shared memory:.*: (read|write) at .*faults.cu"),
        ("order_of_blocks", r"global memory:.* of block \(\d+,0,0\): (read|write) at .*faults.cu"),
        ("message_without_fence", "global memory:.*: (read|write) at .*faults.cu"),
        ("plain_and_atomic", "shared memory:.*atomic write at .*faults.cu"),
    ],
)
def test_races_are_reported(demos: Program, name: str, report: str) -> None:
    for seed in range(8):
        with pytest.raises(KernelFault, match="data race at byte") as raised:
            run_fault(demos, name, Run("races", seed))
        assert re.search(report, str(raised.value), re.DOTALL), raised.value


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    ("name", "right"),
    [("message", torch.full((5,), N)), ("message_in_a_warp", torch.arange(N).flip(0))],
)
def test_what_is_ordered_is_no_race(demos: Program, name: str, right: Tensor, seed: int) -> None:
    for watch in build.FLAGS:
        code, y = run_fault(demos, name, Run(watch, seed))
        assert code == 0
        assert torch.equal(y[: len(right)], right.float())


@pytest.mark.parametrize(
    ("name", "report"),
    [
        ("read_past_the_end", "heap-buffer-overflow.*READ of size 4.*0 bytes (to the right|after)"),
        ("write_past_the_end", "heap-buffer-overflow.*WRITE of size 4"),
        ("read_before_the_start", "heap-buffer-overflow.*READ of size 4.*4 bytes.*(left|before)"),
        ("shared_past_the_end", "global-buffer-overflow.*WRITE of size 4"),
        ("shared_index", r"index 8 out of bounds for type 'float \[8\]'"),
        ("dynamic_past_the_end", "heap-buffer-overflow.*WRITE of size 4"),
        (
            "divergent_barrier",
            "divergent barrier.* wait in __syncthreads at .*faults.cu:.* wait in __syncthreads at",
        ),
        (
            "deadlock",
            r"(?=.*deadlock)(?=.* 1 wait in __shfl_sync at .*faults.cu:\d+: \(40,0,0\))"
            r"(?=.* 63 wait in __syncthreads at )",
        ),
        ("foreign_mask", r"lane \d+, is not in its own mask 0000ffff: __shfl_sync at .*faults.cu"),
        ("misaligned_load", "misaligned address .* for type 'const struct float4'"),
        ("signed_overflow", "signed integer overflow"),
    ],
)
def test_faults_are_reported(demos: Program, order: Run, name: str, report: str) -> None:
    with pytest.raises(KernelFault) as raised:
        run_fault(demos, name, order)
    assert re.search(report, str(raised.value), re.DOTALL), raised.value
    assert "faults.cu" in str(raised.value)


def test_a_spin_without_end_times_out(demos: Program) -> None:
    with pytest.raises(KernelFault, match="killed, after 1 s"):
        run_fault(demos, "endless_spin", timeout=1)


@pytest.mark.parametrize(
    ("name", "code"), [("too_much_shared", 1), ("too_many_threads", 9), ("grid_too_large", 9)]
)
def test_launches_that_a_device_refuses(demos: Program, name: str, code: int) -> None:
    found, y = run_fault(demos, name)
    assert found == code
    assert y[:-1].isnan().all()


def test_a_seed_repeats(demos: Program) -> None:
    results = [run_fault(demos, "missing_barrier", Run("memory", 5))[1] for _ in range(2)]
    assert torch.equal(results[0], results[1])


# ---------------------------------------------------------------------------- what tests may pass


def test_arguments_are_checked(demos: Program) -> None:
    x = torch.zeros(4)
    for launcher, args, message in [
        ("fold", (), "there is no launcher fold"),
        ("divided", (x,), "too few arguments"),
        ("divided", (x, 2, 3), "3 arguments, expected 2"),
        ("divided", (x.double(), 2), "argument 1 has elements of 8 bytes, expected 4"),
        ("divided", (x, b"x"), "argument 2 is not a number"),
        ("row_sums", (x, b"123", torch.zeros(1)), "argument 2 has 3 bytes, expected 24"),
        ("histogram", (None, 1, None, 2**40), "argument 4 does not fit its type"),
    ]:
        with pytest.raises(TypeError, match=message):
            demos(launcher, *args)
    x[0] = 3
    assert demos("divided", x, 2) == 0
    assert x.tolist() == [1.5, 0, 0, 0]


def test_strided_and_offset_tensors_keep_their_place(demos: Program) -> None:
    x = torch.arange(12).float()
    assert demos("divided", x[3::4], 2.0) == 0
    assert x.tolist() == [0, 1, 2, 1.5, 4, 5, 6, 7, 8, 9, 10, 11]
    y = torch.zeros(9)
    with pytest.raises(KernelFault, match="misaligned address"):
        demos("twice", x[1:9], y[1:], 8, FLOAT32)
    with pytest.raises(ValueError, match="share memory"):
        demos("twice", x[:8], x[4:], 8, FLOAT32)


# ------------------------------------------------------------------------------------ compilation


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("__device__ int counter; int next() { return ++counter; }", "no __device__ variables"),
        ("__global__ void k() { extern __shared__ int s[]; s[0] = 1; }", "conflicting specifiers"),
        ("void f(unsigned long* x) { atomicAdd(x, 1ul); }", "CUDA has no atomicAdd of this type"),
    ],
)
def test_sources_that_cannot_be_run(
    demos: Program, tmp_path: Path, text: str, message: str
) -> None:
    source = tmp_path / "trial.cu"
    source.write_text(text)
    with pytest.raises(RuntimeError, match=message):
        build.compile_object(source, "memory", tmp_path / "trial.o")


def test_nothing_is_compiled_twice(demos: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [build.program("demos", demos.kernels, watch) for watch in build.FLAGS]
    monkeypatch.setattr(build, "run", lambda command: pytest.fail(f"ran {command}"))
    assert paths == [build.program("demos", demos.kernels, watch) for watch in build.FLAGS]
