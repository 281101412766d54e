"""Which job starts next, and on which GPUs: the widest that fits, on GPUs that lie side by side. Pure logic.

choose([1, 4, 2], free=[0, 1, 2, 3, 6])      # (1, (0, 1, 2, 3)): the job of four GPUs
"""

from __future__ import annotations

from collections.abc import Collection, Sequence


def choose(demands: Sequence[int], free: Collection[int]) -> tuple[int, tuple[int, ...]] | None:
    """(index of the next job, its GPUs), or None when none fits.

    demands: how many GPUs each waiting job needs, none for a job on the CPU. The widest goes first: with sizes that
    double, what a job leaves free then always fits a waiting one. Among equals the first, so that order is kept.
    """
    fitting = [index for index, demand in enumerate(demands) if demand <= len(free)]
    if not fitting:
        return None
    index = max(fitting, key=lambda i: demands[i])
    return index, side_by_side(free, demands[index])


def side_by_side(free: Collection[int], count: int) -> tuple[int, ...]:
    """`count` of the `free` GPUs, the least far apart: neighbours share switches and memory controllers."""
    ordered = sorted(free)
    windows = [tuple(ordered[i : i + count]) for i in range(len(ordered) - count + 1)]
    return min(windows, key=lambda w: (w[-1] - w[0], w[0] % count, w[0])) if count else ()


def share_of_cores(cores: Sequence[int], places: Collection[int], of: int) -> tuple[int, ...]:
    """The cores of a job that holds `places` (its GPUs, or its slot on a CPU) among `of`: disjoint between jobs.

    All cores when there are fewer than places.
    """
    if len(cores) < of:
        return tuple(cores)
    return tuple(core for i, core in enumerate(cores) if i * of // len(cores) in places)
