"""Arrays of .npy and .npz files: the header is judged before anything is unpacked; no pickles."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from segfast.cli.files import UserError, require_readable
from segfast.cli.images import MAX_LABELS, Array

ARRAY_SUFFIXES = (".npy", ".npz")
SAVED = ("probabilities", "values")  # what `segfast crf` writes into a .npz

# Raises UserError of a shape and dtype that are not wanted.
Admit = Callable[[tuple[int, ...], "np.dtype[Any]"], None]


def read_array(path: Path, key: str | None, max_numbers: int, admit: Admit) -> Array:
    """One array of a .npy or .npz file, the one called ``key`` if it holds several."""

    def read(file: IO[bytes]) -> Array:
        _check_header(file, path, max_numbers, admit)
        file.seek(0)
        return np.asarray(np.lib.format.read_array(file, allow_pickle=False))

    return _open_and(read, path, key)


def saved_values(path: Path, labels: int) -> Array | None:
    """The values [L], or colours [L, 3], that a .npz of `segfast crf` keeps of its labels."""
    if path.suffix.lower() != ".npz":
        return None

    def admit(shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        if shape not in ((labels,), (labels, 3)) or dtype.kind not in "iu":
            raise UserError(
                f"{path} holds values {dtype} of shape {shape}; expected integers "
                f"[{labels}] or [{labels}, 3], one for each of its probabilities"
            )

    with zipfile.ZipFile(path) as archive:
        if sorted(archive.namelist()) != sorted(f"{name}.npy" for name in SAVED):
            return None
    values = read_array(path, SAVED[1], 3 * MAX_LABELS, admit)
    largest = 65535 if values.ndim == 1 else 255
    distinct = len(np.unique(values, axis=0)) == labels
    if values.min() < 0 or values.max() > largest or not distinct:
        raise UserError(f"{path} holds values that are not distinct, from 0 to {largest}")
    return values.astype(np.int64)


def _open_and(read: Callable[[IO[bytes]], Array], path: Path, key: str | None) -> Array:
    require_readable(path)
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return read(file)
        with zipfile.ZipFile(path) as archive:
            names = [n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy")]
            with archive.open(f"{_chosen(names, key, path)}.npy") as member:
                return read(member)
    except UserError:
        raise
    except MemoryError:
        raise UserError(f"{path} does not fit into memory") from None
    except Exception as error:  # numpy, zipfile and zlib each raise their own for damage
        raise UserError(
            f"{path} is damaged, truncated or not a {path.suffix} file: {error}"
        ) from None


def _chosen(names: list[str], key: str | None, path: Path) -> str:
    listed = ", ".join(names) or "none"
    if key is None and sorted(names) == sorted(SAVED):
        return SAVED[0]
    if key is None and len(names) != 1:
        raise UserError(f"{path} holds {len(names)} arrays ({listed}): choose one with --key NAME")
    if key is not None and key not in names:
        raise UserError(f"{path} has no array named {key}; it holds {listed}")
    return names[0] if key is None else key


def _check_header(file: Any, path: Path, max_numbers: int, admit: Admit) -> None:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:  # 3.0 is for field names that are not Latin-1: structured arrays only
        raise UserError(f"{path} is a .npy of version {version}; expected a plain array")
    shape, _, dtype = read(file)
    if dtype.hasobject or dtype.names or dtype.kind not in "iubf":
        raise UserError(
            f"{path} holds {dtype}; expected plain numbers, no Python objects, records or text"
        )
    if math.prod(shape) > max_numbers:
        raise UserError(
            f"{path} claims {math.prod(shape)} numbers (shape {shape}), more than {max_numbers} "
            f"allowed (--max-pixels raises the limit)"
        )
    admit(shape, dtype)
