"""What the device compiler says about the kernels of a .cu file; no GPU is needed."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
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
    """Of a .cu file compiled as setup.py does, for one of ARCHITECTURES."""
    command = ["nvcc", "-O3", "-std=c++17", f"-arch=sm_{architecture}", "-cubin", "-Xptxas", "-v"]
    command += [f"-I{path}" for path in (ROOT / "kernels/include", ROOT)]
    done = subprocess.run([*command, "-o", os.devnull, str(source)], capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(done.stdout + done.stderr)
    return parse(done.stdout + done.stderr)
