"""Builds segfast._C where it can; elsewhere installs the pure-Python reference, and says so.

Environment: CXX, CXXFLAGS, SEGFAST_CPP=0 (no extension), SEGFAST_CUDA=0/1 (default: when nvcc is
there), SEGFAST_CUDA_ARCHITECTURES ("90" or "80;90": quick builds), SEGFAST_TORCH_INCLUDE (headers
of another torch, 2.11 or newer; default: those of the one installed), MAX_JOBS.
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).parent
TORCH_TARGET = "0x020b000000000000"  # the stable ABI of torch 2.11: serves every newer torch too
FLAGS = ["-O3", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wno-psabi"]
FLAGS += ["-Wno-ignored-attributes", "-Wno-maybe-uninitialized"]
KERNEL_FLAGS = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]
KERNEL_FLAGS += ["-fno-tree-slp-vectorize"]
AVX512 = ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl"]
INSTRUCTION_SETS = {  # the CPU kernels are compiled once for each, and chosen at run time
    "baseline": [],
    "avx2": ["-mavx2", "-mfma"],
    "avx512": [*AVX512, "-mfma", "-mprefer-vector-width=512"],
}
CUDA_ARCHITECTURES = "75;80;90;100;120"
PTXAS_REPORT = re.compile(r"^(ptxas info|    \d+ bytes stack frame).*\n?", re.MULTILINE)
PACKAGES = {"segfast": "segfast", "segfast.kernels": "kernels", "segfast.benchmarks": "benchmarks"}


def packages() -> list[str]:
    """Every folder with an __init__.py, under the name it is installed as."""
    return [
        ".".join([name, *found.parent.relative_to(ROOT / folder).parts])
        for name, folder in PACKAGES.items()
        for found in sorted((ROOT / folder).rglob("__init__.py"))
    ]


def compiler() -> list[str]:
    """The command, several words where CXX has them ("ccache g++"); none without a compiler."""
    if not (given := os.environ.get("CXX", "").strip()):
        return [found] if (found := shutil.which("c++") or shutil.which("g++")) else []
    command = [given] if shutil.which(given) else shlex.split(given)
    if shutil.which(command[0]) is None:
        raise SystemExit(f"segfast: CXX={given!r} is set but there is no {command[0]}")
    return command


def cannot_build() -> str | None:
    """Why the extension cannot be built here, or None."""
    if os.environ.get("SEGFAST_CPP") == "0":
        return "SEGFAST_CPP=0 is set"
    if not compiler():
        return "there is no C++ compiler (install g++ >= 11 or clang >= 15, or set CXX)"
    missing = [name for name in ("torch", "pybind11") if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not found: pip install them, then add --no-build-isolation"
    return None


def sources(*patterns: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for p in patterns for path in ROOT.glob(p))


def nvcc() -> str | None:
    found = shutil.which("nvcc")
    wanted = os.environ.get("SEGFAST_CUDA")
    if wanted == "1" and found is None:
        raise SystemExit("SEGFAST_CUDA=1 is set but nvcc is not on PATH")
    return found if wanted != "0" and sources("kernels/*/*.cu") else None


def cuda_home(nvcc_path: str) -> Path:
    """The toolkit behind an nvcc, which may be a wrapper elsewhere on PATH."""
    plan = subprocess.run(
        [nvcc_path, "--dryrun", "-x", "cu", "-c", os.devnull], capture_output=True, text=True
    )
    found = re.search(r"TOP=(\S+)", plan.stderr)
    return Path(found[1]) if found else Path(nvcc_path).resolve().parents[1]


class BuildKernels(build_ext):
    def run(self) -> None:
        if reason := cannot_build():
            print(
                f"segfast: no compiled kernels: {reason}. Installing the reference.",
                file=sys.stderr,
            )
            return
        super().run()

    def get_outputs(self) -> list[str]:
        return [] if cannot_build() else super().get_outputs()

    def build_extension(self, ext: Extension) -> None:
        import pybind11
        import torch

        if not sources("csrc/module.cpp"):
            raise SystemExit(
                "segfast: the C++ sources are not here (SEGFAST_CPP=0 installs without)"
            )

        torch_home = Path(torch.__file__).parent
        include = [f"-I{ROOT / 'kernels/include'}", f"-I{ROOT}"]
        # pybind11 first: torch 2.11 brings one of its own, which the stable ABI may not include.
        headers = os.environ.get("SEGFAST_TORCH_INCLUDE") or torch_home / "include"
        torch_include = [
            f"-isystem{path}" for path in (pybind11.get_include(), headers, *self.include_dirs)
        ]
        x86 = platform.machine().lower() in ("x86_64", "amd64")
        isas = INSTRUCTION_SETS if x86 else {"baseline": []}
        base = [*compiler(), *FLAGS, *shlex.split(os.environ.get("CXXFLAGS", "")), *include]
        dispatch = [] if x86 else ["-DSEGFAST_BASELINE_ONLY"]
        described = f'-DSEGFAST_FLAGS="{" ".join(FLAGS + KERNEL_FLAGS)}"'
        binding = [
            *base,
            *dispatch,
            *torch_include,
            f"-DTORCH_TARGET_VERSION={TORCH_TARGET}",
            described,
        ]

        # (source, command, suffix of the object). Kernels never see torch's headers.
        jobs = [
            (source, [*base, *KERNEL_FLAGS, *flags, f"-DSEGFAST_ISA={isa}"], f".{isa}.o")
            for source in sources("kernels/*/*_cpu.cpp")
            for isa, flags in isas.items()
        ]
        isa_objects = [self.object_path(source, suffix) for source, _, suffix in jobs]
        once = [s for s in sources("kernels/*/*.cpp") if not s.stem.endswith("_cpu")]
        jobs += [(s, [*base, *dispatch], ".o") for s in once]
        libraries = [f"-L{torch_home / 'lib'}", "-ltorch_cpu", "-ltorch", "-lc10"]
        if (nvcc_path := nvcc()) is not None:
            home = cuda_home(nvcc_path)
            architectures = os.environ.get("SEGFAST_CUDA_ARCHITECTURES", CUDA_ARCHITECTURES)
            targets = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in architectures.split(";")]
            targets.append("-gencode=arch=compute_80,code=compute_80")
            host = ["-Xcompiler", "-fPIC,-fvisibility=hidden", "-Xptxas", "-v"]
            jobs += [
                (s, [nvcc_path, "-O3", "-std=c++17", *host, *targets, *include], ".o")
                for s in sources("kernels/*/*.cu")
            ]
            binding += [f"-isystem{home / 'include'}", f'-DSEGFAST_CUDA="{architectures}"']
            jobs += [(s, binding, ".o") for s in sources("csrc/cuda/*.cpp")]
            libraries += [str(home / "lib64/libcudart_static.a"), "-lrt", "-ldl", "-lpthread"]
        jobs += [(s, binding, ".o") for s in sources("csrc/*.cpp", "csrc/cpu/*.cpp")]

        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS", os.cpu_count() or 1))) as pool:
            objects = list(pool.map(lambda job: self.compile(*job), jobs))
        reject_weak_symbols(isa_objects)
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        shared = ["-undefined", "dynamic_lookup"] if sys.platform == "darwin" else []
        self.call(
            [*compiler(), "-shared", *shared, *map(str, objects), "-o", str(target), *libraries]
        )

    def object_path(self, source: Path, suffix: str) -> Path:
        return Path(self.build_temp) / source.with_suffix(suffix)

    def compile(self, source: Path, command: list[str], suffix: str) -> Path:
        target = self.object_path(source, suffix)
        target.parent.mkdir(parents=True, exist_ok=True)
        inputs = [
            source,
            Path("setup.py"),
            *sources("kernels/**/*.h", "csrc/**/*.h", "kernels/**/*.cuh"),
        ]
        newest = max((ROOT / path).stat().st_mtime for path in inputs)
        # Other flags (architectures, with or without CUDA), another object.
        said = target.with_name(target.name + ".command")
        text = " ".join(command).replace(sys.prefix, "$prefix").replace(str(ROOT), ".")
        same = said.exists() and said.read_text() == text
        if self.force or not same or not target.exists() or target.stat().st_mtime < newest:
            report = self.call([*command, "-c", str(ROOT / source), "-o", str(target)])
            if source.suffix == ".cu":  # the tests read it instead of compiling all again
                target.with_suffix(".ptxas").write_text(report)
            said.write_text(text)
        return target

    def call(self, command: list[str]) -> str:
        """Prints what the command says, but for ptxas's report; returns all."""
        done = subprocess.run(command, capture_output=True, text=True)
        if rest := PTXAS_REPORT.sub("", done.stderr).strip():
            print(rest, file=sys.stderr)
        if done.returncode != 0:
            remedy = "SEGFAST_CPP=0 installs without it"
            if nvcc() is not None:
                remedy = f"SEGFAST_CUDA=0 leaves CUDA out, {remedy}"
            raise SystemExit(f"segfast: this failed ({remedy}):\n{' '.join(command)}")
        return done.stderr


def reject_weak_symbols(objects: list[Path]) -> None:
    """An inline function compiled with AVX-512 must never be the linker's pick for everybody."""
    nm = shutil.which("nm")
    for path in objects if nm and sys.platform != "darwin" else []:
        names = subprocess.run(
            [nm, "-C", str(path)], capture_output=True, text=True, check=True
        ).stdout
        # But DW.ref: objects with -fsanitize point to the exceptions' handler so, the same for all.
        weak = re.findall(r"^[0-9a-f ]{16} [WVu] (?!DW\.ref\.).*$", names, re.MULTILINE)
        if weak:
            raise SystemExit(f"segfast: {path} defines weak symbols:\n" + "\n".join(weak))


setup(
    package_dir=PACKAGES,
    packages=packages(),
    ext_modules=[Extension("segfast._C", sources=[])],
    cmdclass={"build_ext": BuildKernels},
)
