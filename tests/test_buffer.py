"""Scratch memory of the bindings (csrc/buffer.h), in a program of its own."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
COMPILER = shutil.which("c++") or shutil.which("g++") or ""

pytestmark = pytest.mark.skipif(not COMPILER, reason="no C++ compiler")

PROGRAM = """
#include "csrc/buffer.h"

#include <cstdio>

using segfast::make_buffer;

uintptr_t address_of(int64_t bytes) {
  return reinterpret_cast<uintptr_t>(make_buffer<char>(bytes).get());
}

#define CHECK(what) if (!(what)) return std::puts(#what), 1

int main(int argc, char**) {
  // The last block that fits comes back, none that is more than twice as large.
  const uintptr_t large = address_of(3 << 20), small = address_of(100 << 10);
  CHECK(large % segfast::kHugePage == 0);
  CHECK(address_of(90 << 10) == small);
  CHECK(address_of(2 << 20) == large);
  CHECK(address_of(1 << 20) != large);
  {
    auto held = make_buffer<char>(100 << 10);
    CHECK(reinterpret_cast<uintptr_t>(held.get()) == small);
    CHECK(address_of(100 << 10) != small);
  }
  // No more is kept than it says.
  for (int i = 0; i < 3; ++i) {
    auto a = make_buffer<char>(40 << 20), b = make_buffer<char>(40 << 20);
    CHECK(a.get() != b.get());
  }
  // Every one is poisoned where a test asks for it.
  for (const int64_t bytes : {1, 1000, 100 << 10, 3 << 20}) {
    for (const bool on : {false, true}) {
      make_buffer<char>(bytes)[0] = 1;
      segfast::poisoning() = on;
      const auto buffer = make_buffer<char>(bytes);
      bool filled = true;
      for (int64_t i = 0; i < bytes && on; ++i) filled &= buffer[i] == char(0xff);
      CHECK(filled);
    }
    segfast::poisoning() = false;
  }
  if (argc > 1) {
    segfast::poisoning() = true;
    make_buffer<char>(1000)[1024] = 1;
  }
  return 0;
}
"""


def run(folder: Path, flags: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    program = folder / "buffer"
    (folder / "buffer.cpp").write_text(PROGRAM)
    command = [COMPILER, "-std=c++20", "-O1", *flags, f"-I{ROOT}"]
    subprocess.run([*command, "-o", str(program), f"{program}.cpp"], check=True)
    return subprocess.run([str(program), *arguments], capture_output=True, text=True, check=False)


def test_blocks_are_kept_and_poisoned(tmp_path: Path) -> None:
    done = run(tmp_path, ["-fsanitize=address,undefined"])
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.skipif(sys.platform != "linux", reason="signals as Linux has them")
def test_writing_past_the_end_ends_a_poisoned_process(tmp_path: Path) -> None:
    assert run(tmp_path, [], "past the end").returncode == -signal.SIGSEGV
