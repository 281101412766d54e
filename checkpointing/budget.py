"""A memory budget as a user writes it: bytes of peak memory, a string with a unit, or a share of the activations.

in_bytes(24 * 2**30, ...)   in_bytes("24GiB", ...)     the step's peak, parameters and all
in_bytes(0.5, ...)                                     static memory and half of what the step adds to it
"""

import math
import re

from checkpointing.errors import BudgetError

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_ALLOWED = 'give bytes (25769803776), a string ("24GiB", "800 MB"), or a fraction of the activation memory (0.5)'


def in_bytes(budget: float | str, static_bytes: int, peak_bytes: int) -> int:
    """The peak that `budget` allows. `static_bytes` and `peak_bytes` are the unchanged step's.

    A number up to 1 is a fraction of `peak_bytes - static_bytes`; more is bytes. Raises BudgetError.
    """
    if isinstance(budget, str):
        return _parse(budget)
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not math.isfinite(budget) or budget <= 0:
        raise BudgetError(f"memory_budget={budget!r}: must be positive; {_ALLOWED}")
    if budget <= 1:
        return static_bytes + int(budget * (peak_bytes - static_bytes))
    if budget != int(budget):
        raise BudgetError(f"memory_budget={budget!r}: above 1 it is a number of bytes, and whole; {_ALLOWED}")
    return int(budget)


def check(budget: float | str) -> None:
    """Raise BudgetError unless `budget` can be read; whether a step can meet it is another question."""
    in_bytes(budget, 0, 1)


def told_apart(a: int, b: int) -> tuple[str, str]:
    """Two byte counts in one unit, with as many digits as it takes to see that they differ: "0.69 MiB", "0.74 MiB"."""
    scale, unit = next((s, u) for s, u in ((2**30, "GiB"), (2**20, "MiB"), (1, "B")) if max(a, b) >= s / 10 or s == 1)
    if unit == "B":
        return f"{a} B", f"{b} B"
    for digits in range(2, 11):
        first, second = f"{a / scale:.{digits}f} {unit}", f"{b / scale:.{digits}f} {unit}"
        if first != second:
            break
    return first, second


def written(size: int) -> str:
    """A budget as one writes it, in quotes, not below `size` bytes: "2433MiB", "0.44MiB"."""
    digits = 0 if size >= 100 * 2**20 else 2
    scale = 10**digits
    return f'"{-(-size * scale // 2**20) / scale:.{digits}f}MiB"'


def _parse(text: str) -> int:
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([kmg]?i?b)\s*", text.lower())
    if match is None or float(match[1]) <= 0:
        raise BudgetError(f"memory_budget={text!r}: cannot be read; {_ALLOWED}")
    return int(float(match[1]) * _UNITS[match[2]])
