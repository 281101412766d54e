"""Arrays that took long to compute, kept in the folder of measure/cache.py: each set in a file named by its key's hash.

    curve = cached_arrays("reference", {"model": "gpt2", "steps": 200}, {"loss": (200,)}, compute)

A file holds its key too, and a checksum of each array: one that is broken, or another's, is computed anew and replaced.
The KEPT newest files of a kind stay.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from blockshock.measure.cache import cache_folder
from blockshock.ranks import distributed
from blockshock.run_folder.files import write_atomically

log = logging.getLogger("blockshock")
KEPT = 16
Arrays = dict[str, np.ndarray]


def cached_arrays(
    kind: str, key: dict[str, Any], shapes: dict[str, tuple[int, ...]], compute: Callable[[], Arrays]
) -> Arrays:
    """What `compute` returned for `key`, now or at an earlier time: float64 arrays of these names and shapes.

    A collective, as `cached_measurement`: rank 0's view of the disk decides for all ranks whether to compute, all ranks
    do, and rank 0's result is everyone's. `key` must have all that the result depends on, as JSON. Raises ValueError
    where `compute` returns other arrays.
    """
    path, text = array_path(kind, key), _text(key)
    known = distributed.from_rank_0(_read(path, text, shapes) if distributed.rank() == 0 else None)
    if known is not None:
        log.info("%s: read from %s", _said(kind, key), path)
        return dict(known)
    log.info("%s: computing", _said(kind, key))
    result = compute()
    if problem := _problem(result, shapes):
        raise ValueError(f"{_said(kind, key)}: {problem}")
    result = dict(distributed.from_rank_0(result))
    if distributed.rank() == 0:
        _keep(path, text, result)
    return result


def array_path(kind: str, key: dict[str, Any]) -> Path:
    """The file of `key`."""
    return cache_folder() / f"{kind}-{hashlib.blake2b(_text(key).encode(), digest_size=12).hexdigest()}.npz"


def _text(key: dict[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)


def _said(kind: str, key: dict[str, Any]) -> str:
    """The key's first entries say what it is of."""
    first = list(key.items())[:3]
    return f"{kind} {' '.join(f'{name}={value}' for name, value in first)}"


def _read(path: Path, text: str, shapes: dict[str, tuple[int, ...]]) -> Arrays | None:
    """None where there is none, or none to be trusted."""
    try:
        with np.load(path, allow_pickle=False) as file:  # reading an array to its end checks its CRC-32
            found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        return None
    except Exception as error:  # what a file's bytes make of zipfile, zlib and NumPy: a dozen types, none documented
        log.warning("%s can't be read (%s: %s): computing it again", path, type(error).__name__, error)
        return None
    key = found.pop("key", None)
    own = key is not None and key.dtype == np.uint8 and key.tobytes() == text.encode()
    if problem := _problem(found, shapes) if own else "it is of another key":
        log.warning("%s is not what was kept there (%s): computing it again", path, problem)
        return None
    return found


def _problem(arrays: Arrays, shapes: dict[str, tuple[int, ...]]) -> str:
    """What is wrong with them; empty: nothing."""
    if arrays.keys() != shapes.keys():
        return f"it has {', '.join(arrays) or 'nothing'} in place of {', '.join(shapes)}"
    for name, shape in shapes.items():
        if arrays[name].shape != shape or arrays[name].dtype != np.float64:
            return f"{name} is {arrays[name].dtype} {arrays[name].shape} in place of float64 {shape}"
    return ""


def _keep(path: Path, text: str, arrays: Arrays) -> None:
    content = io.BytesIO()
    np.savez(content, key=np.frombuffer(text.encode(), dtype=np.uint8), **arrays)  # type: ignore[arg-type]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())
        for old in kept_arrays(path.name.split("-")[0])[:-KEPT]:
            old.unlink(missing_ok=True)
    except OSError as error:  # it is known all the same; the next job computes it again
        log.warning("%s can't be kept: %s", path, error.strerror or error)


def kept_arrays(kind: str = "*") -> list[Path]:
    """The files of a kind, or of all, the newest last."""
    files = []
    for path in cache_folder().glob(f"{kind}-*.npz"):
        try:
            files.append((path.stat().st_mtime, path))
        except FileNotFoundError:  # another job has just deleted it
            continue
    return [path for _, path in sorted(files)]
