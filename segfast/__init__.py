"""segfast: fast, exact, deterministic kernels for semantic segmentation in PyTorch.

``segfast.ops`` holds the operators, ``segfast.nn`` their modules, ``segfast.compat`` drop-in
replacements for other packages; ``segfast.info()`` says what was built and what serves what.
"""

from segfast import nn, ops
from segfast._version import __version__
from segfast.info import info

__all__ = ["__version__", "info", "nn", "ops"]
