"""Triton's kernels in its interpreter: test_triton.py runs this folder in a process of its own.

TRITON_INTERPRET=1 python -m pytest tests/kernels/interpreted
"""

import os
from typing import Any

collect_ignore_glob = ["test_*.py"]

if os.environ.get("TRITON_INTERPRET") == "1":
    import functools

    import numpy as np
    import triton.language as tl
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    collect_ignore_glob = []
    patch = interpreter._patch_lang
    np_dtype = interpreter._get_np_dtype
    np_dtype_of_scalars = functools.cache(np_dtype)

    def patch_once(fn: Any) -> Any:
        """Triton looks through its language at every call of a device function, which takes a
        fifth of the time: mostly the launch that calls it has patched all there is."""
        modules = [m for m in (tl, tl.core) if any(m is value for value in fn.__globals__.values())]
        if any(tl.core.is_builtin(m.load) for m in modules):
            return patch(fn)
        return interpreter._LangPatchScope()

    def check_overflow(self: Any, lhs: Any, rhs: Any, operation: Any) -> None:
        """What Triton asserts of sums, differences and products of integers, in one step of NumPy:
        in a dozen of the interpreter's it takes two fifths of the time."""
        kind = lhs.type.scalar
        if kind.int_bitwidth < 64:
            exact = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[operation.__name__]
            found = exact(lhs.handle.data, rhs.handle.data, dtype=np.int64)
            inside = (found >= kind.get_int_min_value()) & (found <= kind.get_int_max_value())
            assert inside.all(), f"{operation.__name__} overflows {kind}"

    interpreter._patch_lang = patch_once
    interpreter._get_np_dtype = lambda t: (
        np_dtype_of_scalars if type(t) is tl.dtype else np_dtype
    )(t)
    TritonSemantic.binary_op_sanitize_overflow_impl = check_overflow
