"""segfast: fast, exact, deterministic kernels for semantic segmentation in PyTorch.

``segfast.ops`` holds the operators, ``segfast.nn`` their modules, ``segfast.losses`` what networks
are trained with; ``import segfast.models`` gets published networks, ``import segfast.compat``
drop-in replacements for other packages; ``segfast.swap()`` puts the modules into a model that is
there; ``segfast.info()`` says what was built and what serves what,
``segfast.explain()`` what serves one call, and why.
"""

from segfast import losses, nn, ops
from segfast._version import __version__
from segfast.explain import explain
from segfast.info import info
from segfast.ops._dilated_conv_winograd import allow_winograd
from segfast.swap import swap

__all__ = ["__version__", "allow_winograd", "explain", "info", "losses", "nn", "ops", "swap"]
