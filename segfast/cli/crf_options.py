"""The options of ``segfast crf``, and the defaults that are the command's own."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segfast.cli.images import MAX_PIXELS
from segfast.nn.dense_crf import PRESETS
from segfast.ops import mean_field
from segfast.ops._dense_crf_check import MEAN_FIELD_COLOR_SIGMA
from segfast.ops.dense_crf import METHODS, NORMALIZATIONS, SPATIAL

CONFIDENCE, PENALTY = 0.7, 20.0
MODEL = (  # options that are arguments of segfast.ops.mean_field
    "iterations", "spatial_weight", "spatial_sigma", "bilateral_weight", "bilateral_sigma",
    "color_sigma", "normalization", "method", "spatial", "tolerance",
)  # fmt: skip

EXAMPLES = """\
examples:
  segfast crf photo.jpg labels.png -o refined.png --overlay overlay.png
  segfast crf photo.jpg scribbles.png -o mask.png --scribbles
  segfast crf photo.jpg net.npy --input logits -o refined.png --preset deeplab-v2-resnet101
  segfast crf photos/ labels/ -o refined/ --json

label maps: the distinct numbers, palette entries or colours in LABELS are the labels, and the
result is written with the same ones. Unknown pixels get their label from the CRF: 255 in maps of
numbers (VOC's void; but a mask of 0 and 255 has two labels), none in colour-coded maps but what is
transparent; with --scribbles 0 or black, and whatever is transparent.
probabilities and logits: [L, H, W] or [H, W, L]; a single map [H, W] is the foreground's.
pydensecrf's example scribbles: --unknown 0 --preset pydensecrf.
"""


def add_options(commands: Any, run: Callable[[argparse.Namespace], int]) -> None:
    """Adds the parser of ``segfast crf`` to the subcommands."""
    parser = commands.add_parser(
        "crf",
        help="refine a segmentation of a photo with a dense CRF",
        description="Refines a segmentation of a photo (or a folder of them) with a dense CRF.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=run)
    add = parser.add_argument
    add("image", type=Path, metavar="IMAGE", help="photo, 8-bit or 16-bit grey; or a folder")
    add("labels", type=Path, metavar="LABELS", help="PNG label map, .npy or .npz; or a folder")
    add("-o", "--output", type=Path, required=True, metavar="OUT",
        help=".png label map, .npy or .npz probabilities [L, H, W]; or a folder")  # fmt: skip
    add("--force", action="store_true", help="allow OUT to replace an input")
    add("--skip-missing", action="store_true", help="folders: pass over files without a partner")
    add("--max-pixels", type=_count, default=MAX_PIXELS, metavar="N", help="default: %(default)s")
    add("--json", action="store_true", help="print a machine-readable summary")

    group = parser.add_argument_group("what LABELS holds")
    add = group.add_argument
    add("--input", choices=("labels", "probs", "logits"),
        help="must be given for floating-point .npy and .npz; default: labels")  # fmt: skip
    add("--layout", choices=("LHW", "HWL"), help="of arrays; default: told by the shape")
    add("--key", metavar="NAME", help="array inside a .npz with several")
    add("--unknown", default="auto", metavar="VALUE",
        help="pixels without a label: a number, a colour (0,0,0), none, or auto")  # fmt: skip
    add("--num-labels", type=_count, metavar="L",
        help="labels are 0..L-1, occurring or not; default: those that occur")  # fmt: skip
    add("--confidence", type=float, metavar="P",
        help=f"how sure a given label is, in (1/L, 1); default: {CONFIDENCE}")  # fmt: skip
    add("--scribbles", action="store_true",
        help="LABELS is strokes (foreground, background, ...) on empty (0 or black)")  # fmt: skip
    add("--scribble-penalty", type=float, metavar="E",
        help=f"energy of disregarding a stroke; inf forbids it; default: {PENALTY:g}")  # fmt: skip

    group = parser.add_argument_group("model (defaults are segfast.ops.mean_field's)")
    add = group.add_argument
    given = inspect.signature(mean_field).parameters
    default = {name: f"default: {_number(given[name].default)}" for name in MODEL}
    add("--preset", choices=tuple(PRESETS), metavar="NAME",
        help=f"published parameters: {', '.join(PRESETS)}")  # fmt: skip
    add("--iterations", type=int, metavar="N", help=default["iterations"])
    add("--spatial-weight", type=float, metavar="W", help=default["spatial_weight"])
    add("--spatial-sigma", type=float, metavar="PIXELS", help=default["spatial_sigma"])
    add("--bilateral-weight", type=float, metavar="W", help=default["bilateral_weight"])
    add("--bilateral-sigma", type=float, metavar="PIXELS", help=default["bilateral_sigma"])
    add("--color-sigma", type=float, metavar="GREY",
        help="in units of a 0 to 255 image (16-bit grey is scaled to it); "
        f"default: {_number(MEAN_FIELD_COLOR_SIGMA)}")  # fmt: skip
    add("--normalization", choices=NORMALIZATIONS, help=default["normalization"])
    add("--method", choices=METHODS, help=default["method"])
    add("--spatial", choices=SPATIAL, help=default["spatial"])
    add("--tolerance", type=float, metavar="T", help=f"of --method exact; {default['tolerance']}")

    group = parser.add_argument_group("more results (for folders: each a folder)")
    add = group.add_argument
    add("--save-probs", type=Path, metavar="PATH", help=".npy or .npz probabilities [L, H, W]")
    add("--overlay", type=Path, metavar="PATH", help="PNG of the photo tinted by its labels")
    add("--steps", type=Path, metavar="PATH",
        help="PNG of the score and belief maps after each iteration")  # fmt: skip


def _number(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text}")
    return int(text)
