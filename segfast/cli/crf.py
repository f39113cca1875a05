"""``segfast crf IMAGE LABELS -o OUT``: refine label maps, scribbles, probabilities or logits."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from segfast._native import native, why_not_native
from segfast._version import __version__
from segfast._warn import warn
from segfast.cli import picture
from segfast.cli.arrays import ARRAY_SUFFIXES
from segfast.cli.crf_options import CONFIDENCE, MODEL, PENALTY, add_options
from segfast.cli.files import (
    UserError,
    Writer,
    files_by_stem,
    make_folder,
    name_some,
    require_extra,
    require_writable,
    same_file,
    show,
    write_all,
)
from segfast.cli.images import (
    MAP_SUFFIXES,
    MAX_LABELS,
    PHOTO_SUFFIXES,
    Array,
    LabelStyle,
    array_writer,
    label_map_writer,
    png_writer,
    read_photo,
)
from segfast.cli.labels import (
    UNKNOWN,
    Evidence,
    label_logits,
    parse_unknown,
    read_map,
    read_planes,
    scribble_logits,
)
from segfast.cli.progress import progress
from segfast.nn.dense_crf import DenseCRF
from segfast.ops import mean_field
from segfast.ops._dense_crf_check import MEAN_FIELD_COLOR_SIGMA

MAX_STEP_BYTES = 4 << 30
MOSTLY = 0.9  # of a label map that has strokes on a background
OPTIONAL_OUTPUTS = ("save_probs", "overlay", "steps")


@dataclass(frozen=True)
class Job:
    """One photo with its labelling, and where each result goes (None: not wanted)."""

    image: Path
    labels: Path
    output: Path
    save_probs: Path | None = None
    overlay: Path | None = None
    steps: Path | None = None

    def results(self) -> list[Path]:
        every = [self.output, self.save_probs, self.overlay, self.steps]
        return [path for path in every if path is not None]


def add_parser(commands: Any) -> None:
    add_options(commands, run)


def run(args: argparse.Namespace) -> int:
    require_extra("PIL.Image", "Pillow")
    require_extra("tqdm", "tqdm")
    _check_options(args)
    model = _model(args)
    jobs, skipped = _plan(args)
    if args.image.is_dir():
        for job in jobs:  # a bad pair stops everything before anything is written
            _load(job, args)
        for folder in {path.parent for job in jobs for path in job.results()}:
            make_folder(folder)
    for job in jobs:
        for path in job.results():
            require_writable(path)
    files = []
    with progress(len(jobs), "image") as advance:
        for job in jobs:
            files.append(_refine(job, args, model))
            advance()
    _report(args, model, files, skipped)
    return 0


# --- what is asked ------------------------------------------------------------------------------


def _check_options(args: argparse.Namespace) -> None:
    args.unknown_value = parse_unknown(args.unknown)
    if args.input in ("probs", "logits"):
        given = {
            "--unknown": args.unknown != "auto",
            "--num-labels": args.num_labels is not None,
            "--confidence": args.confidence is not None,
            "--scribbles": args.scribbles,
        }
        for option, used in given.items():
            if used:
                raise UserError(f"{option} is for label maps, not for --input {args.input}")
    elif args.layout is not None:
        raise UserError("--layout is for --input probs and --input logits")
    if args.scribbles and args.confidence is not None:
        raise UserError("--confidence is for label maps; with --scribbles use --scribble-penalty")
    if args.scribble_penalty is not None:
        if not args.scribbles:
            raise UserError("--scribble-penalty needs --scribbles")
        if not args.scribble_penalty > 0:
            raise UserError(f"--scribble-penalty must be positive, got {args.scribble_penalty:g}")
    if args.num_labels is not None and args.num_labels > MAX_LABELS:
        raise UserError(f"--num-labels must be at most {MAX_LABELS}, got {args.num_labels}")
    if args.confidence is not None and not 0 < args.confidence < 1:
        raise UserError(f"--confidence must lie in (1/L, 1), got {args.confidence:g}")
    for name in ("image", "labels"):
        if not getattr(args, name).exists():
            raise UserError(f"{getattr(args, name)} does not exist")


def _model(args: argparse.Namespace) -> dict[str, Any]:
    """The arguments of segfast.ops.mean_field: the preset's, then the options'."""
    given = {name: getattr(args, name) for name in MODEL if getattr(args, name) is not None}
    try:
        crf = DenseCRF.from_preset(args.preset, **given) if args.preset else DenseCRF(**given)
    except (ValueError, TypeError) as error:
        raise UserError(_as_option(error)) from None
    model = {name: getattr(crf, name) for name in MODEL}
    if model["color_sigma"] is None:
        model["color_sigma"] = MEAN_FIELD_COLOR_SIGMA
    return model


def _as_option(error: Exception) -> str:
    """An operator's message about its argument, as one about ours."""
    name, _, rest = str(error).partition(" ")
    return f"--{name.replace('_', '-')} {rest}" if name in MODEL else str(error)


def _plan(args: argparse.Namespace) -> tuple[list[Job], list[str]]:
    """The jobs, every input paired and no result in the way of another; names passed over."""
    folders = args.image.is_dir()
    if folders != args.labels.is_dir():
        one, other = ("IMAGE", "LABELS") if folders else ("LABELS", "IMAGE")
        raise UserError(
            f"{one} is a folder and {other} is a file: expected two files or two folders"
        )
    jobs, skipped = _folder_jobs(args) if folders else ([_file_job(args)], [])
    if args.key is not None and all(job.labels.suffix.lower() != ".npz" for job in jobs):
        raise UserError(f"--key is for arrays in a .npz, got {args.labels}")
    for job in jobs:
        _check_results(job, args.force)
    return jobs, skipped


def _file_job(args: argparse.Namespace) -> Job:
    output = args.output
    if output.is_dir():
        output = output / f"{args.labels.stem}.png"
    if output.suffix.lower() not in (".png", *ARRAY_SUFFIXES):
        raise UserError(f"OUT must end in .png, .npy or .npz, got {output}")
    if args.save_probs and args.save_probs.suffix.lower() not in ARRAY_SUFFIXES:
        raise UserError(f"--save-probs must end in .npy or .npz, got {args.save_probs}")
    for name in ("overlay", "steps"):
        path = getattr(args, name)
        if path and path.suffix.lower() != ".png":
            raise UserError(f"--{name} must end in .png, got {path}")
    return Job(args.image, args.labels, output, args.save_probs, args.overlay, args.steps)


def _folder_jobs(args: argparse.Namespace) -> tuple[list[Job], list[str]]:
    images = files_by_stem(args.image, PHOTO_SUFFIXES, "images")
    arrays_only = args.input in ("probs", "logits")
    suffixes = ARRAY_SUFFIXES if arrays_only else MAP_SUFFIXES + ARRAY_SUFFIXES
    labels = files_by_stem(args.labels, suffixes, "label maps")
    without_labels, without_image = images.keys() - labels.keys(), labels.keys() - images.keys()
    lonely = {
        f"{args.labels} has no partner for": [images[stem].name for stem in without_labels],
        f"{args.image} has no partner for": [labels[stem].name for stem in without_image],
    }
    problems = [f"{where} {name_some(names)}" for where, names in lonely.items() if names]
    if problems and not args.skip_missing:
        raise UserError(f"{'; '.join(problems)} (--skip-missing passes over them)")
    stems = sorted(images.keys() & labels.keys())
    if not stems:
        raise UserError(f"no image in {args.image} has a partner in {args.labels}")
    folders = {"output": args.output}
    folders |= {name: getattr(args, name) for name in OPTIONAL_OUTPUTS if getattr(args, name)}
    for name, folder in folders.items():
        if folder.suffix.lower() in (".png", *ARRAY_SUFFIXES) and not folder.exists():
            option = "OUT" if name == "output" else f"--{name.replace('_', '-')}"
            raise UserError(f"{option} must be a folder, as IMAGE and LABELS are, got {folder}")
    extension = {"save_probs": "npz"}
    jobs = []
    for stem in stems:
        results = {n: f / f"{stem}.{extension.get(n, 'png')}" for n, f in folders.items()}
        jobs.append(Job(images[stem], labels[stem], **results))
    return jobs, [name for names in lonely.values() for name in names]


def _check_results(job: Job, force: bool) -> None:
    results = job.results()
    for number, path in enumerate(results):
        for other in results[:number]:
            if same_file(path, other):
                raise UserError(f"two results would be written to {path}")
        for source in (job.image, job.labels):
            if same_file(path, source) and not force:
                raise UserError(f"{path} is an input; --force allows to replace it")


# --- the work -----------------------------------------------------------------------------------


def _load(job: Job, args: argparse.Namespace) -> tuple[Array, Evidence]:
    photo = read_photo(job.image, args.max_pixels)
    height, width = photo.shape[1:]
    suffix = job.labels.suffix.lower()
    if args.input in ("probs", "logits"):
        if suffix not in ARRAY_SUFFIXES:
            raise UserError(f"--input {args.input} expects .npy or .npz, got {job.labels}")
        evidence = read_planes(
            job.labels, args.input, (height, width),
            layout=args.layout, key=args.key, max_pixels=args.max_pixels,
        )  # fmt: skip
        return photo, evidence
    indices, style = read_map(
        job.labels,
        unknown=args.unknown_value,
        scribbles=args.scribbles,
        num_labels=args.num_labels,
        key=args.key,
        max_pixels=args.max_pixels,
    )
    if indices.shape != (height, width):
        raise UserError(
            f"{job.labels} is {indices.shape[1]} x {indices.shape[0]} but {job.image} is "
            f"{width} x {height}: expected the same size"
        )
    if args.scribbles:
        penalty = PENALTY if args.scribble_penalty is None else args.scribble_penalty
        logits = scribble_logits(indices, style.count, penalty)
    else:
        confidence = CONFIDENCE if args.confidence is None else args.confidence
        logits = label_logits(indices, style.count, confidence)
    return photo, Evidence(logits, indices, style)


def _infer(
    photo: Array, logits: Array, model: dict[str, Any], steps: bool
) -> tuple[Array, list[tuple[Array, Array]], float]:
    """Beliefs [L, H, W] float32, (scores, belief) before and after each iteration, seconds."""
    if steps and (size := 2 * model["iterations"] * logits.nbytes) > MAX_STEP_BYTES:
        raise UserError(
            f"--steps would hold {size / 2**30:.1f} GiB of maps, more than "
            f"{MAX_STEP_BYTES / 2**30:.0f}: use fewer --iterations or a smaller image"
        )
    unary, image = torch.from_numpy(logits), torch.from_numpy(photo)
    start = time.perf_counter()
    try:
        result = mean_field(unary, image, **model, return_steps=steps, return_belief=True)
    except (ValueError, TypeError) as error:
        raise UserError(_as_option(error)) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "memory" not in str(error):
            raise
        labels, height, width = logits.shape
        raise UserError(f"not enough memory for {labels} labels on {width} x {height}") from None
    seconds = time.perf_counter() - start
    states = [(unary, unary.softmax(0)), *result[1]] if steps else []
    belief = result[0] if steps else result
    if not bool(belief.isfinite().all()):
        raise UserError(
            f"the result is not finite: logits of {np.abs(logits).max():.3g}, --spatial-weight "
            f"{model['spatial_weight']:g} and --bilateral-weight {model['bilateral_weight']:g} are "
            f"too much for float32"
        )
    return belief.numpy(), [(s.numpy(), q.numpy()) for s, q in states], seconds


def _refine(job: Job, args: argparse.Namespace, model: dict[str, Any]) -> dict[str, Any]:
    photo, before = _load(job, args)
    style = before.style
    belief, states, seconds = _infer(photo, before.logits, model, job.steps is not None)
    after = belief.argmax(0)
    known = before.labels != UNKNOWN
    if not args.scribbles and args.input not in ("probs", "logits"):
        _warn_of_strokes(job.labels, before.labels[known], after, style)
    writers: dict[Path, Writer] = {}
    if job.output.suffix.lower() == ".png":
        writers[job.output] = label_map_writer(after, style)
    else:
        writers[job.output] = array_writer(job.output, belief, style)
    if job.save_probs:
        writers[job.save_probs] = array_writer(job.save_probs, belief, style)
    if job.overlay:
        writers[job.overlay] = png_writer(picture.overlay(photo, after, style.colors()))
    if job.steps:
        names = [str(name) for name in style.names()]
        writers[job.steps] = png_writer(picture.steps_grid(states, names))
    write_all(writers)
    return {
        "image": str(job.image),
        "labels": str(job.labels),
        "outputs": [str(path) for path in writers],
        "width": photo.shape[2],
        "height": photo.shape[1],
        "label_values": style.names(),
        "unknown_pixels": int((~known).sum()),
        "changed_fraction": float((after != before.labels)[known].mean()),
        "seconds": seconds,
    }


def _warn_of_strokes(path: Path, before: Array, after: Array, style: LabelStyle) -> None:
    """Strokes on a background that was taken for a label: it covers nearly all, and wins all."""
    share = np.bincount(before, minlength=style.count) / before.size
    winner = int(share.argmax())
    if np.count_nonzero(share) > 1 and share[winner] > MOSTLY and (after == winner).all():
        warn(
            f"of {path} only label {style.names()[winner]} is left, which covered "
            f"{100 * share[winner]:.1f} % of it; if the others are strokes, pass --scribbles"
        )


def _report(
    args: argparse.Namespace, model: dict[str, Any], files: list[dict[str, Any]], skipped: list[str]
) -> None:
    if native() is None:
        print(f"segfast: the slow reference computed: {why_not_native()}", file=sys.stderr)
    if skipped:
        print(f"segfast: no partner for {name_some(skipped)}: passed over", file=sys.stderr)
    if args.json:
        parameters = {"preset": args.preset, **model}
        if args.scribbles:
            parameters["scribble_penalty"] = _json_number(args.scribble_penalty or PENALTY)
        elif args.input in (None, "labels"):
            parameters["confidence"] = args.confidence or CONFIDENCE
        summary = {
            "command": "crf",
            "version": __version__,
            "parameters": parameters,
            "seconds": sum(file["seconds"] for file in files),
            "skipped": skipped,
            "files": files,
        }
        show(json.dumps(summary, indent=2, allow_nan=False))
        return
    for file in files:
        unknown = f", {file['unknown_pixels']} unknown pixels" if file["unknown_pixels"] else ""
        show(
            f"{file['image']}: {file['width']} x {file['height']}, {len(file['label_values'])} "
            f"labels{unknown}; {100 * file['changed_fraction']:.1f} % of labelled pixels changed "
            f"in {file['seconds']:.2f} s -> {', '.join(file['outputs'])}"
        )


def _json_number(value: float) -> float | str:
    return value if np.isfinite(value) else str(value)
