"""Where measured costs are kept between processes: one file of JSON lines per device, which only ever grows.

append_cost(path, where, "aten.mm.default(...)", OperatorCost(1.2e-4, 0))
read_costs(path, where)        # {"aten.mm.default(...)": OperatorCost(seconds=0.00012, inside_bytes=0)}

`where` names the device, the versions and the settings that a time depends on. A line is appended by a single write,
so processes that write at once need no lock; each line has a checksum, and what does not match it is skipped. Of two
lines for one operator the first counts, so processes that measured it at the same time agree once both have read again.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any
from zlib import crc32

log = logging.getLogger("checkpointing")


@dataclass(frozen=True)
class OperatorCost:
    """What one run of an operator takes: seconds, and on a GPU the bytes that it allocates and frees inside, beyond its
    results (cuDNN's workspace of a convolution, say)."""

    seconds: float
    inside_bytes: int = 0


def cost_path(device_name: str) -> Path:
    """The file of a device, in $XDG_CACHE_HOME/blockshock, ~/.cache/blockshock or (no home) a temporary folder."""
    return _cache_folder() / f"operators-{''.join(c if c.isalnum() else '-' for c in device_name)}.jsonl"


def _cache_folder() -> Path:
    """The folder of `blockshock.measure.cache`, which this library does not import."""
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given) / "blockshock"
    home = Path(os.path.expanduser("~"))  # "~" itself where nobody knows this user's
    if home.is_absolute() and home.is_dir():
        return home / ".cache" / "blockshock"
    return Path(tempfile.gettempdir()) / f"blockshock-{os.getuid()}"


def read_costs(path: Path, where: str) -> dict[str, OperatorCost]:
    """{operator call: cost} of the lines for `where`; empty where there is no file, or none that can be read."""
    try:
        content = path.read_bytes()
    except OSError:  # not there yet, or not ours to read: it is measured again
        return {}
    costs: dict[str, OperatorCost] = {}
    for line in content.splitlines():
        entry = _entry(line)
        if entry and entry["where"] == where:
            costs.setdefault(entry["call"], OperatorCost(entry["seconds"], entry["inside_bytes"]))
    return costs


def append_cost(path: Path, where: str, call: str, cost: OperatorCost) -> None:
    """Keep one cost. Where the folder cannot be written, that is logged once, and the cost is lost with the process."""
    line = json.dumps({"where": where, "call": call, **asdict(cost), "crc": _checksum(where, call, cost)})
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            size = os.fstat(descriptor).st_size
            cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"  # a process was killed while it wrote
            os.write(descriptor, f"{chr(10) if cut else ''}{line}\n".encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        _say_not_kept(path, error.strerror or str(error))


@cache
def _say_not_kept(path: Path, why: str) -> None:
    log.warning("costs of operators can't be kept in %s (%s): the next process measures them again", path, why)


def _entry(line: bytes) -> dict[str, Any] | None:
    """The line's content, or None unless it is exactly what `append_cost` wrote."""
    try:
        entry = json.loads(line)
    except ValueError:  # cut short, or not text
        return None
    if not isinstance(entry, dict) or entry.keys() != {"where", "call", "seconds", "inside_bytes", "crc"}:
        return None
    where, call, seconds, inside = entry["where"], entry["call"], entry["seconds"], entry["inside_bytes"]
    if not (isinstance(where, str) and isinstance(call, str) and isinstance(seconds, float) and isfinite(seconds)):
        return None
    if not isinstance(inside, int) or min(seconds, inside) < 0:
        return None
    return entry if entry["crc"] == _checksum(where, call, OperatorCost(seconds, inside)) else None


def _checksum(where: str, call: str, cost: OperatorCost) -> int:
    return crc32(f"{where}\n{call}\n{cost.seconds!r}\n{cost.inside_bytes}".encode())
