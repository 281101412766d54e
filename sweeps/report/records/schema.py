"""Is a line of metrics.jsonl what a phase writes? Reports compute with it, so a text among its numbers is found here.

wrong_in({"phase": "phase1_forward", "N": "a", ...})        # "N: 'a' is no whole number"; "": nothing
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

SIZES = ("N", "K", "B", "world_size")
TEXTS = ("phase", "method", "mask", "workload", "dtype", "device", "part", "variant", "kernel", "quantity")
ALWAYS = ("phase", "method", "B", "world_size", "dtype", "device")
OF_MODELS = ("checkpoint", "profile", "trace")  # phases whose workload may be a model, which has no N and no K
# Records say a measurement's unit in its name.
_MEASUREMENT = re.compile(r"_(us|ms|s|bytes|gbs|tflops|unix|error)$|\.(limit|step|fraction|nodes|slowdown)$")


def wrong_in(record: Mapping[str, Any]) -> str:
    """What is wrong with a record whose names are flattened with dots (`timings_ms.forward.p50_ms`), "" if nothing."""
    needed = [*ALWAYS, *(("part",) if record.get("phase") in ("benchmark", "bench") else ())]
    needed += [] if record.get("phase") in OF_MODELS else ["N", "K"]
    missing = [name for name in needed if record.get(name) is None]
    if missing:
        return f"{missing[0]} is missing"
    for name, value in record.items():
        kind = _kind(name)
        if value is not None and kind and not _IS[kind](value):
            return f"{name}: {value!r} is no {kind}"
    return ""


@lru_cache(maxsize=65536)
def _kind(name: str) -> str:
    if name in SIZES:
        return "whole number"
    if name in TEXTS:
        return "text"
    return "number" if _MEASUREMENT.search(name) else ""


def _is_number(value: Any) -> bool:
    """A number, or a list of what is one: of blocks, rounds or ranks."""
    if isinstance(value, list):
        return all(one is None or _is_number(one) for one in value)
    return isinstance(value, int | float) and not isinstance(value, bool)


_IS: dict[str, Callable[[Any], bool]] = {
    "whole number": lambda value: isinstance(value, int) and not isinstance(value, bool),
    "text": lambda value: isinstance(value, str),
    "number": _is_number,
}
