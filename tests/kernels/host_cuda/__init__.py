"""Runs .cu files on the processor, and watches them.

    fold = host_cuda.operator("fold")  # compiles kernels/fold/*.cu with drivers/fold.cpp
    code = fold("fold", x, out, sizes, run=run)  # calls a launcher; `out` is written in place

A block's threads are fibers: barriers, shuffles and atomics are real, shared memory holds poison
when a block begins, and the order of threads and blocks is drawn from a seed, so that a missing
barrier shows. What a kernel does wrong raises KernelFault with a report. A test goes through RUNS:

- watch "memory": AddressSanitizer and UndefinedBehaviorSanitizer, with three orders (and poisons);
- watch "races": two threads at one byte, one of them writing, with nothing between that orders
  them. The order does not matter here; g++ has to keep every access (-fsanitize=thread), and
  races.cpp, not ThreadSanitizer, looks at them.

Why a program per operator, talked to through pipes, and not a library loaded into Python: the
sanitizers see the kernels and nothing of Python's or PyTorch's, C++ checks the arguments against
the launcher's own header, and a crash ends that program alone. It serves call after call, since
starting one takes longer than most kernels.

What this cannot show: a spin that waits without atomic or fence (it times out), weak memory order,
inline PTX, the arithmetic of the device's approximations, and speed. Threads change only at
barriers, warp collectives, atomics and fences. Watching races takes 60 bytes per byte and about
0.1 us per access: give it small arrays.
"""

from host_cuda.build import why_not
from host_cuda.process import KernelFault
from host_cuda.program import Program, Run, demos, operator

RUNS = (Run("memory", 0), Run("memory", 1), Run("memory", 2), Run("races", 0))

__all__ = ["RUNS", "KernelFault", "Program", "Run", "demos", "operator", "why_not"]
