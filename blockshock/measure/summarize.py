"""Milliseconds of many iterations as the few numbers that a record keeps."""

from __future__ import annotations

import statistics
from typing import Any


def summarize(samples: list[float]) -> dict[str, float]:
    """count, sum, average, p50, p95 (linear between order statistics), min and max of milliseconds."""
    ordered = sorted(samples)

    def percentile(q: float) -> float:
        position = q * (len(ordered) - 1)
        low = int(position)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (position - low)

    return {
        "count": len(ordered),
        "sum_ms": sum(ordered),
        "avg_ms": statistics.fmean(ordered),
        "p50_ms": percentile(0.50),
        "p95_ms": percentile(0.95),
        "min_ms": ordered[0],
        "max_ms": ordered[-1],
    }


def summarize_blocks(blocks: list[list[float]]) -> dict[str, Any]:
    """`summarize` of all iterations together, and `blocks_p50_ms`: the median of each block, of which intervals are
    made. Iterations of one block follow one another and are not independent; blocks warm up and capture anew."""
    together = [value for block in blocks for value in block]
    return {**summarize(together), "blocks_p50_ms": [statistics.median(block) for block in blocks]}
