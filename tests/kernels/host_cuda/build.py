"""Compiles kernels, their driver and the scheduler into one sanitized program."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BUILD = ROOT / "build/host_cuda"

SANITIZE = ["-fsanitize=address,undefined,float-cast-overflow", "-fno-sanitize-recover=all"]
FLAGS = {  # of everything, by what is watched
    "memory": ["-std=c++17", "-Og", "-g1", "-fno-omit-frame-pointer", *SANITIZE],
    "races": ["-std=c++17", "-Og", "-g1", "-fno-pie"],
}
LINK_FLAGS = {"memory": SANITIZE, "races": ["-no-pie"]}
INCLUDE = [f"-I{path}" for path in (HERE / "include", HERE, ROOT / "kernels/include", ROOT)]
# Without weak symbols the __shared__ variables of templates lie in .bss like all others.
KERNEL_FLAGS = ["-x", "c++", "-include", "cuda_runtime.h", "-fno-weak", "-fno-common"]
WATCH_FLAGS = {"memory": [], "races": ["-fsanitize=thread"]}  # races.cpp takes its calls
SHARED = ".bss=cuda_shared,alloc,load,data,contents"


@cache
def why_not() -> str | None:
    """Why kernels cannot be run here, or None."""
    tools = [tool for tool in ("g++", "objcopy", "nm", "addr2line") if shutil.which(tool) is None]
    if tools:
        return f"there is no {' and no '.join(tools)}"
    trial = [f"g++ {' '.join(FLAGS['memory'])} -x c++ - -o {os.devnull}"]
    source = "int main() { _Float16 x = 1; return static_cast<int>(x) - 1; }"
    done = subprocess.run(trial, shell=True, input=source, capture_output=True, text=True)
    return f"g++ >= 12 and its sanitizers are needed:\n{done.stderr}" if done.returncode else None


def run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout + done.stderr


@cache
def compiler() -> str:
    return run(["g++", "-v"])


def key(files: Iterable[Path], flags: list[str]) -> str:
    """Of the compiler, its flags, and the names and contents of the files."""
    found = hashlib.sha256("\0".join([compiler(), *flags]).encode())
    for path in sorted(files):
        found.update(str(path).encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:20]


def kept(folder: str, name: str, make: Callable[[Path], None]) -> Path:
    """build/host_cuda/<folder>/<name>, made once; what has another name there is out of date."""
    path = BUILD / folder / name
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with (path.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # other processes of the test run want it at the same time
        if path.exists():
            return path
        unfinished = path.with_name("unfinished")
        make(unfinished)
        unfinished.replace(path)
        for old in path.parent.iterdir():
            if old != path and re.fullmatch(r"[0-9a-f]{20}", old.name):
                old.unlink(missing_ok=True)
    return path


def headers(*folders: Path) -> list[Path]:
    return [p for folder in folders for p in folder.rglob("*") if p.suffix in {".h", ".cuh"}]


def flags(source: Path, watch: str) -> list[str]:
    of_kernels = [*KERNEL_FLAGS, *WATCH_FLAGS[watch]] if source.suffix == ".cu" else []
    return [*FLAGS[watch], *INCLUDE, *of_kernels]


def compile_object(source: Path, watch: str, unfinished: Path) -> None:
    run(["g++", *flags(source, watch), "-c", str(source), "-o", str(unfinished)])
    if source.suffix == ".cu":
        check_static_data(source, unfinished)
        run(["objcopy", "--rename-section", SHARED, str(unfinished)])


def check_static_data(source: Path, compiled: Path) -> None:
    """All that is in .bss is taken for shared memory: only functions may have variables there."""
    for line in run(["nm", str(compiled)]).splitlines():
        kind, name = line[17:].split(" ", 1)
        if kind in "bB" and not name.startswith(("_ZZ", "__odr_asan")):
            raise RuntimeError(f"{source}: the host run has no __device__ variables: {name}")


def object_file(source: Path, watch: str) -> Path:
    """The compiled source; compiled again when a header that it may include has changed."""
    folders = [HERE, ROOT / "kernels/include"]
    if source.is_relative_to(ROOT / "kernels"):
        folders.append(source.parent)
    elif source.parent.name == "drivers":
        folders.append(ROOT / "kernels")
    name = key([source, *headers(*folders)], flags(source, watch))
    where = "-".join([watch, *source.relative_to(ROOT).parts])
    return kept(where, name, lambda unfinished: compile_object(source, watch, unfinished))


def program(name: str, kernels: list[Path], watch: str) -> Path:
    """The executable of drivers/<name>.cpp with these kernels."""
    if not kernels:
        raise ValueError(f"{name} has no .cu file")
    shared = [p for p in sorted(HERE.glob("*.cpp")) if watch == "races" or p.stem != "races"]
    sources = [*kernels, HERE / f"drivers/{name}.cpp", *shared]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda source: object_file(source, watch), sources))

    def link(unfinished: Path) -> None:
        run(["g++", *LINK_FLAGS[watch], *map(str, objects), "-o", str(unfinished)])

    return kept(f"{watch}-program-{name}", key(objects, LINK_FLAGS[watch]), link)


def lines(program: Path, report: str) -> str:
    """The report with the source line of every 'pc 0x...': the innermost that is a kernel's."""

    def line(found: re.Match[str]) -> str:
        address = hex(int(found[1], 16) - 1)  # of the call, not of what follows it
        frames = run(["addr2line", "-i", "-e", str(program), address]).splitlines()
        best = next((f for f in frames if str(HERE / "include") not in f), frames[0])
        return best.partition(" (discriminator")[0]

    return re.sub(r"pc (0x[0-9a-f]+)", line, report)
