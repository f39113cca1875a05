"""Runs .cu files on the processor, under AddressSanitizer and UndefinedBehaviorSanitizer.

    fold = host_cuda.operator("fold")  # compiles kernels/fold/*.cu with drivers/fold.cpp
    code = fold("fold", x, out, sizes, seed=seed)  # calls a launcher; `out` is written in place

A block's threads are fibers: barriers, shuffles and atomics are real, shared memory holds poison
when a block begins, and the order of threads and blocks is drawn from `seed`, so that a missing
barrier shows. What a kernel does wrong raises KernelFault with the sanitizer's report.

Why a program per operator, talked to through pipes, and not a library loaded into Python: the
sanitizers see the kernels and nothing of Python's or PyTorch's, C++ checks the arguments against
the launcher's own header (no struct is described twice), and a crash ends that program alone. It
serves call after call, since starting one takes longer than most kernels.

What this cannot show: races that need two threads inside one statement (a sum without an atomic;
the order changes only at barriers, warp collectives, atomics and fences), a spin that waits without
any of those (it times out), weak memory order, inline PTX, and speed.
"""

from host_cuda.build import why_not
from host_cuda.program import KernelFault, Program, demos, operator

SEEDS = (0, 1, 2)  # each with another poison, too

__all__ = ["SEEDS", "KernelFault", "Program", "demos", "operator", "why_not"]
