"""The answer of one check."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

WORKS, LIMITED, MISSING, BROKEN = "works", "limited", "missing", "broken"
STATES = (WORKS, LIMITED, MISSING, BROKEN)


@dataclass(frozen=True)
class Finding:
    """`state` is one of STATES: `missing` is what some work can do without, `broken` what none can."""

    state: str
    found: str  # what is there
    remedy: str = ""  # what to do about it, and what it would give


@dataclass(frozen=True)
class Check:
    """`look()` tries the thing. Whatever it raises is a finding too: `broken` if `needed`, else `limited`."""

    name: str
    look: Callable[[], Finding]
    needed: bool = False
    remedy: str = ""  # where it raises

    def run(self) -> Finding:
        try:
            return self.look()
        except Exception as error:  # whatever a broken installation raises is what was asked for
            said = (str(error).strip().splitlines() or [""])[0]
            return Finding(BROKEN if self.needed else LIMITED, f"{type(error).__name__}: {said}"[:200], self.remedy)
