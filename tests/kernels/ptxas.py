"""What the device compiler says about the kernels of a .cu file; no GPU is needed.

python tests/kernels/ptxas.py kernels/max_unpool/*.cu    # registers of every kernel
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]

_ARCHITECTURES = re.search(
    r'^CUDA_ARCHITECTURES = "(.+)"', (ROOT / "setup.py").read_text(), re.MULTILINE
)
assert _ARCHITECTURES
ARCHITECTURES = tuple(_ARCHITECTURES[1].split(";"))

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads.*?Used (?P<registers>\d+) registers(?P<more>[^\n]*)",
    re.DOTALL,
)


@dataclass(frozen=True)
class Kernel:
    """What one thread takes (a block, of shared memory): bytes, but for the registers."""

    name: str
    architecture: str
    registers: int
    stack: int
    spills: int
    shared: int


def parse(report: str) -> list[Kernel]:
    """The kernels in the output of nvcc -Xptxas -v."""
    kernels = []
    for found in _KERNEL.finditer(report):
        shared = re.search(r"(\d+) bytes smem", found["more"])
        kernels.append(
            Kernel(
                name=found["name"],
                architecture=found["architecture"],
                registers=int(found["registers"]),
                stack=int(found["stack"]),
                spills=int(found["stores"]) + int(found["loads"]),
                shared=int(shared[1]) if shared else 0,
            )
        )
    return kernels


def kernels(source: Path, architecture: str) -> list[Kernel]:
    """Of a .cu file, for one of ARCHITECTURES: as its build reported them, or compiled now."""
    of_build = [k for k in built(source) if k.architecture == architecture]
    return of_build or compiled(source, architecture)


@cache
def built(source: Path) -> list[Kernel]:
    """What nvcc told setup.py of the source as it is now; nothing where it was not asked."""
    if not source.is_relative_to(ROOT):
        return []
    headers = [p for p in (ROOT / "kernels").rglob("*") if p.suffix in {".h", ".cuh"}]
    newest = max(path.stat().st_mtime for path in (source, ROOT / "setup.py", *headers))
    report = source.relative_to(ROOT).with_suffix(".ptxas")
    reports = [(p.stat().st_mtime, p) for p in ROOT.glob(f"build/temp.*/{report}")]
    when, last = max(reports, default=(0.0, source))
    return parse(last.read_text()) if when > newest else []


def compiled(source: Path, architecture: str) -> list[Kernel]:
    """The same from a compilation with setup.py's flags."""
    command = ["nvcc", "-O3", "-std=c++17", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v"]
    command += [f"-I{path}" for path in (ROOT / "kernels/include", ROOT)]
    done = subprocess.run([*command, "-o", os.devnull, str(source)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return parse(done.stdout + done.stderr)


def table(sources: list[Path]) -> str:
    """A line per kernel: registers by architecture, then stack and spills in bytes."""
    rows: dict[str, list[Kernel]] = {}
    for source in sources:
        for architecture in ARCHITECTURES:
            for kernel in kernels(source.resolve(), architecture):
                rows.setdefault(kernel.name, []).append(kernel)
    names = subprocess.run(
        ["c++filt", "--no-params"],
        input="\n".join(rows),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    lines = ["".join(f"{head:>7}" for head in (*ARCHITECTURES, "stack", "spills")) + "  kernel"]
    for name, found in zip(names, rows.values(), strict=True):
        numbers = [k.registers for k in found] + [sum(k.stack for k in found)]
        numbers += [sum(k.spills for k in found)]
        lines.append("".join(f"{n:7}" for n in numbers) + "  " + name.rsplit("::", 1)[-1])
    return "\n".join(lines)


if __name__ == "__main__":
    print(table([Path(argument) for argument in sys.argv[1:]]))
