"""What Triton's compiler makes of the kernels: registers, spills, shared memory, matrix units.

    python -m segfast._triton_resources [--sample] [--json]    # also `segfast info --kernels`

No GPU is needed. Registers and spills are not in the metadata (the driver fills them in): machine
code goes through cuobjdump and nvdisasm, which Triton's wheel carries. `report` runs this in a
process of its own, since Triton decides once per process whether it interprets or compiles.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

OPERATORS = (
    "linear_attention",
    "dilated_conv",
    "dense_crf",
)  # each has segfast.ops._<operator>_cases
SHARED_KIB = {80: 163, 90: 227, 100: 227}  # per block, by target; a multiprocessor has 1 more
MATRIX = r"HGMMA|HMMA|UTC\w*MMA"


@dataclass(frozen=True)
class Case:
    """A kernel with everything but its arguments' values.

    types: of the arguments in order, Triton's names ("*bf16", "i32"), constants left out; aligned:
    arguments that are multiples of 16. matrix: whether it is to use the matrix units. resident:
    programs that are to run at once on a multiprocessor.
    """

    name: str
    kernel: Any
    types: Mapping[str, str]
    constants: Mapping[str, Any]
    aligned: frozenset[str]
    options: Mapping[str, int]
    matrix: bool
    resident: int = 1


@dataclass(frozen=True)
class Resources:
    """Of one case on one target: registers and stack per thread, the rest per program, in bytes."""

    name: str
    target: int
    registers: int = 0
    stack: int = 0
    local: int = 0
    shared: int = 0
    matrix: int = 0  # instructions for the matrix units
    copies: int = 0  # asynchronous copies to shared memory, LDGSTS
    spills: int = 0  # STL and LDL
    resident: int = 0  # programs that a multiprocessor has room for
    problem: str = ""


@functools.cache
def cases() -> tuple[Case, ...]:
    found: list[Case] = []
    for operator in OPERATORS:
        found += importlib.import_module(f"segfast.ops._{operator}_cases").cases()
    return tuple(found)


def compiled(case: Case, target: int) -> Resources:
    """Compiles, and reads what came out; a compiler's error is a problem in the result."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    signature = {name: case.types.get(name, "constexpr") for name in names}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in case.aligned}
    source = ASTSource(
        fn=case.kernel, signature=signature, constexprs=dict(case.constants), attrs=aligned
    )
    try:
        made = triton.compile(
            source, target=GPUTarget("cuda", target, 32), options=dict(case.options)
        )
    except Exception as error:  # whatever passes of the compiler raise
        return Resources(case.name, target, problem=f"{type(error).__name__}: {error}")
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(made.asm["cubin"])
        tools = Path(triton.__file__).parent / "backends/nvidia/bin"
        usage = _output(tools / "cuobjdump", "-res-usage", cubin)
        code = _output(tools / "nvdisasm", cubin)
    columns = getattr(made.metadata, "tmem_size", 0)
    return read(case, target, usage, code, made.metadata.shared, columns)


def _output(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def room(target: int, warps: int, registers: int, shared: int, columns: int) -> int:
    """Programs of a multiprocessor; columns: of tensor memory (sm_100), which waits when full."""
    of_a_warp = -(-registers // 8) * 8 * 32  # given out in steps of 8 for each thread
    limits = [
        64 // warps,
        65536 // (warps * of_a_warp),
        (SHARED_KIB[target] + 1) * 1024 // (shared + 1024),
    ]
    return min([*limits, 512 // columns] if columns else limits)


def read(
    case: Case, target: int, usage: str, code: str, shared: int, columns: int = 0
) -> Resources:
    """From what the tools say."""
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", usage)
    if found is None:
        return Resources(case.name, target, problem="cuobjdump names no registers")
    registers, stack, local = map(int, found.groups())
    matrix, copies, spills = (
        len(re.findall(rf"\b(?:{instructions})\b", code))
        for instructions in (MATRIX, "LDGSTS", "STL|LDL")
    )
    problems = [
        f"{title} {number}"
        for title, number in (("stack", stack), ("local", local), ("spills", spills))
        if number
    ]
    if shared > SHARED_KIB[target] * 1024:
        problems.append(f"shared memory above {SHARED_KIB[target]} KiB")
    resident = room(target, case.options.get("num_warps", 4), registers, shared, columns)
    if resident < case.resident > 1:
        problems.append(f"room for {resident} programs, not {case.resident}")
    if case.matrix and not matrix:
        problems.append("no matrix instructions")
    return Resources(
        case.name,
        target,
        registers,
        stack,
        local,
        shared,
        matrix,
        copies,
        spills,
        resident,
        ", ".join(problems),
    )


def selected(sample: bool) -> list[tuple[int, int]]:
    """(case, target) pairs: all, or a sample in which every two of a pair's traits occur together.

    Chosen one by one: the pair with most that is new, of equals the rarest target, then tiles.
    """
    every = [(i, target) for i in range(len(cases())) for target in SHARED_KIB]
    if not sample:
        return every
    shown = {pair: traits(cases()[pair[0]], pair[1]) for pair in every}
    missing = set().union(*shown.values())
    chosen: list[tuple[int, int]] = []
    taken: Counter[int | str] = Counter()

    def gain(pair: tuple[int, int]) -> tuple[int, int, int]:
        return len(shown[pair] & missing), -taken[pair[1]], -taken[tile(cases()[pair[0]])]

    while missing:
        best = max(every, key=gain)
        chosen.append(best)
        missing -= shown[best]
        taken.update((best[1], tile(cases()[best[0]])))
    return sorted(chosen)


def traits(case: Case, target: int) -> set[tuple[str, ...]]:
    """What a compilation shows: the kernel; every two of operation, dtype and variant, which with
    tiles are a case's name; and the target beside the first two where there are products.
    """
    operation, *words = case.name.split()
    dtype, variant = (words[0], words[-1]) if words else ("", "")
    shown: set[tuple[str, ...]] = {("kernel", repr(case.kernel)), ("", dtype, variant)}
    shown |= {("dtype", operation, dtype), ("variant", operation, variant)}
    if case.matrix:
        shown |= {("target", operation, str(target)), ("target", dtype, str(target))}
    return shown


def tile(case: Case) -> str:
    """The numbers in the name of a case with products, as 64x32x32."""
    return case.name.split()[2] if case.matrix else ""


def _measure(pair: tuple[int, int]) -> Resources:
    case, target = pair
    return compiled(cases()[case], target)


def measure(sample: bool, jobs: int) -> Iterator[Resources]:
    with ProcessPoolExecutor(jobs) as pool:
        yield from pool.map(_measure, selected(sample))


TITLES = {
    "regs": 5, "stack": 6, "local": 6, "shared": 8, "matrix": 7, "copies": 7, "spills": 7, "room": 5
}  # fmt: skip
HEAD = "".join(f"{title:>{width}}" for title, width in TITLES.items())


def line(r: Resources) -> str:
    counts = (
        r.registers, r.stack, r.local, r.shared, r.matrix, r.copies, r.spills, r.resident
    )  # fmt: skip
    numbers = "".join(f"{n:{w}}" for n, w in zip(counts, TITLES.values(), strict=True))
    return f"{numbers}  sm_{r.target:<4}{r.name}{f'  <- {r.problem}' if r.problem else ''}"


def environment() -> dict[str, str]:
    """This process's, but Triton compiles."""
    return {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}


def show(options: Sequence[str]) -> int:
    """The table, printed as it grows by a process of its own; its exit code."""
    command = [sys.executable, "-m", "segfast._triton_resources", *options]
    return subprocess.run(command, env=environment()).returncode


def report(sample: bool = False) -> list[Resources]:
    """Of the selected cases and targets, compiled in a process of its own."""
    command = [sys.executable, "-m", "segfast._triton_resources", "--json"]
    done = subprocess.run(
        command + ["--sample"] * sample, env=environment(), capture_output=True, text=True
    )
    if not done.stdout:
        raise RuntimeError(done.stderr)
    return [Resources(**json.loads(text)) for text in done.stdout.splitlines()]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints as it goes; exit code 1 where there is a problem."""
    parser = argparse.ArgumentParser(description="resources of the Triton kernels")
    parser.add_argument("--sample", action="store_true", help="every pair of their traits")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args(arguments)
    show: Callable[[Resources], str] = (lambda r: json.dumps(asdict(r))) if args.json else line
    if not args.json:
        print(f"{HEAD}  target  kernel", flush=True)
    bad = 0
    for resources in measure(args.sample, args.jobs):
        print(show(resources), flush=True)
        bad += bool(resources.problem)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
