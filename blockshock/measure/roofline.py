"""The least time a rank could take: useful operations, bytes of memory and bytes on the link over calibrated rates.

The formulas and the reasoning stand in docs/method.md.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from blockshock.measure.calibration import Rates


@dataclass(frozen=True)
class Cost:
    """What one rank must do at least, in one stage of a step."""

    flops: float = 0.0  # multiplications and additions that contribute to the result
    memory_bytes: float = 0.0  # each operand read once, each result written once
    link_bytes: float = 0.0  # sent by this rank (as many are received)

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.flops + other.flops,
            self.memory_bytes + other.memory_bytes,
            self.link_bytes + other.link_bytes,
        )


def matmul(m: int, n: int, k: float, bytes_a: float, bytes_b: float, bytes_out: float) -> Cost:
    """(m, k) times (k, n), with the bytes of each operand as it lies in memory."""
    return Cost(2.0 * m * n * k, bytes_a + bytes_b + bytes_out)


def all_reduce(ranks: int, size: float) -> Cost:
    """Each rank sends 2(P-1)/P of the buffer: what a ring moves, and no algorithm without in-network sums less."""
    return Cost(link_bytes=2 * (ranks - 1) / ranks * size)


def all_gather(ranks: int, size: float) -> Cost:
    """Each rank sends its share on to the others: (P-1)/P of the gathered buffer of `size` bytes."""
    return Cost(link_bytes=(ranks - 1) / ranks * size)


def reduce_scatter(ranks: int, size: float) -> Cost:
    """Each rank sends the others their shares: (P-1)/P of its own buffer of `size` bytes."""
    return Cost(link_bytes=(ranks - 1) / ranks * size)


def floor(stages: list[Cost], rates: Rates) -> dict[str, Any]:
    """The floor in ms of stages that run one after another, what bounds it, and the sums behind it.

    Within a stage arithmetic, memory and link may overlap perfectly, so its floor is the largest of the three.
    """
    total = Cost()
    floor_ms = 0.0
    by_bound = {"compute": 0.0, "memory": 0.0, "link": 0.0}
    for stage in stages:
        times = {
            "compute": stage.flops / (rates.matmul_tflops * 1e9),
            "memory": stage.memory_bytes / (rates.copy_gbs * 1e6),
            "link": stage.link_bytes / (rates.link_gbs * 1e6) if rates.link_gbs else 0.0,
        }
        bound = max(times, key=lambda name: times[name])
        by_bound[bound] += times[bound]
        floor_ms += times[bound]
        total = total + stage
    return {
        **asdict(total),
        "compute_ms": total.flops / (rates.matmul_tflops * 1e9),
        "memory_ms": total.memory_bytes / (rates.copy_gbs * 1e6),
        "link_ms": total.link_bytes / (rates.link_gbs * 1e6) if rates.link_gbs else 0.0,
        "floor_ms": floor_ms,
        "bound": max(by_bound, key=lambda name: by_bound[name]),
        "rates": asdict(rates),
    }
