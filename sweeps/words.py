"""Counts as people write them: `counted(1, "job")` is `1 job`, `counted(2, "job")` is `2 jobs`."""

from __future__ import annotations


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
