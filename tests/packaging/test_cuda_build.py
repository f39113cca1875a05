"""CUDA sources compile with nvcc alone, and the module that holds them loads without a GPU.

A copy of the project that has one small kernel alone shows it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from segfast import _native

ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.packaging,
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("nvcc") is None, reason="there is no nvcc"),
]
module = _native.native()
if module is not None and module.build_info()["cuda_architectures"]:
    # nvcc made the module of this environment, too, and tests/kernels/test_max_unpool_cuda.py
    # finds its kernels in it.
    pytestmark.append(pytest.mark.thorough)

KERNEL = """
#include <cuda_runtime.h>
__global__ void twice_kernel(float* x, long n) {
  long i = blockIdx.x * long{blockDim.x} + threadIdx.x;
  if (i < n) x[i] *= 2;
}
int twice(float* x, long n, CUstream_st* stream) {
  twice_kernel<<<(n + 255) / 256, 256, 0, stream>>>(x, n);
  return cudaGetLastError();
}
"""
BINDING = """
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/tensor.h>
#include <cuda_runtime.h>
int twice(float* x, long n, CUstream_st* stream);
static torch::stable::Tensor run(const torch::stable::Tensor& x) {
  twice(static_cast<float*>(x.mutable_data_ptr()), x.numel(), nullptr);
  return x;
}
STABLE_TORCH_LIBRARY(segfast_trial, m) { m.def("twice(Tensor x) -> Tensor"); }
STABLE_TORCH_LIBRARY_IMPL(segfast_trial, CUDA, m) { m.impl("twice", TORCH_BOX(&run)); }
"""
LOADED = """
import torch, segfast._C as module
print(module.build_info()["cuda_architectures"])
print(torch._C._dispatch_has_kernel_for_dispatch_key("segfast_trial::twice", "CUDA"))
"""


def test_a_cuda_kernel_builds_and_registers(tmp_path: Path) -> None:
    copy = tmp_path / "a copy"
    for file in (
        "setup.py",
        "pyproject.toml",
        "README.md",
        "csrc/module.cpp",
        "csrc/poison.h",
        "segfast/_version.py",
    ):
        (copy / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, copy / file)
    shutil.copytree(ROOT / "kernels/include", copy / "kernels/include")
    for name, text in {"kernels/twice/twice.cu": KERNEL, "csrc/cuda/twice.cpp": BINDING}.items():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_text(text)
    (copy / "segfast/__init__.py").touch()
    settings = {"SEGFAST_CUDA": "1", "SEGFAST_CUDA_ARCHITECTURES": "90"}
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | settings

    def python(*arguments: str) -> str:
        done = subprocess.run(
            [sys.executable, *arguments], cwd=copy, env=environment, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    python("setup.py", "-q", "build_ext", "--inplace")
    assert python("-c", LOADED).split() == ["90", "True"]
