"""pydensecrf's interface on segfast's kernels: a user changes one import line.

    import segfast.compat.pydensecrf.densecrf as dcrf
    from segfast.compat.pydensecrf import utils

Modules, classes, argument order and conventions are those of `pydensecrf` (Lucas Beyer's wrapper
of Philipp Kraehenbuehl's dense CRF code); what differs, and why, is in docs/pydensecrf.md.
"""

from segfast.compat.pydensecrf import densecrf, eigen, utils

__all__ = ["densecrf", "eigen", "utils"]
