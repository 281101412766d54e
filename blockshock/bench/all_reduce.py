"""Part `all_reduce`: every way to sum a buffer over the ranks, by size, and the one that a table would choose."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from blockshock.bench.cells import Cell, Row, measure
from blockshock.bench.sum_time import time_all_reduce
from blockshock.collectives import reductions
from blockshock.collectives.symmetric import symmetric_buffer
from blockshock.jobs.correctness import FLOAT64_LIMIT, MARGIN, CheckFailed, errors
from blockshock.methods import ring_roundings
from blockshock.ranks import distributed

SIZES = tuple(1 << power for power in range(15, 29, 2))  # bytes: 32 KiB to 128 MiB


def all_reduce(cell: Cell) -> Iterator[Row]:
    """`cell.B` · `cell.N` elements, summed over all ranks."""
    group = dist.group.WORLD
    assert group is not None
    size = cell.B * cell.N * cell.dtype.itemsize
    names = [n for n in reductions.GPU_NAMES if not reductions.impossible(n, group.size(), cell.dtype, size)]
    buffer, problem = symmetric_buffer(group, cell.device, size)
    if problem:
        names = [name for name in names if name not in reductions.SYMMETRIC]
    table = {name: time_all_reduce(name, cell.B * cell.N, cell.dtype, group) for name in names}
    chosen = min(names, key=lambda name: table[name] or float("inf"))
    steps: dict[str, Callable[[], Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    for name in names:
        reduction = reductions.make(name, group, cell.N, buffer)
        partial_sum, total = reduction.place(cell.B, torch.empty(0, dtype=cell.dtype, device=cell.device), True)
        assert partial_sum is not None
        assert total is not None
        about[name] = {"bytes": size, "chosen": name == chosen, "impossible": problem or ""}
        about[name] |= check_sum(name, reduction, partial_sum, total)
        partial_sum.normal_(std=1e-3)  # what grows when it is summed in place again and again costs the same
        steps[name] = partial(_sum, reduction, partial_sum, total)
    # The product has just written its partial sums: they are in the L2 cache as far as they fit.
    yield from measure(cell, "all_reduce", steps, about, flush_l2=False)


def check_sum(
    name: str, reduction: reductions.Reduction, partial_sum: torch.Tensor, total: torch.Tensor
) -> dict[str, float]:
    """One sum of random numbers against float64: its relative error, and that of rounding the exact sum once.

    CheckFailed on the ranks where it errs by more than its additions explain. A collective; both tensors are
    overwritten, and are the same one where the reduction sums in place.
    """
    own = torch.Generator(partial_sum.device).manual_seed(distributed.rank())
    partial_sum.normal_(generator=own)
    exact = partial_sum.double()
    dist.all_reduce(exact)
    if total is not partial_sum:
        total.fill_(float("nan"))
    error, _ = errors(_sum(reduction, partial_sum, total), exact)
    rounded, _ = errors(exact.to(total.dtype), exact)
    limit = max(FLOAT64_LIMIT, MARGIN * ring_roundings(distributed.world_size()) * rounded)
    if not error <= limit:
        raise CheckFailed(f"{name}: the sum's relative error is {error:.3g}, its additions explain {limit:.3g}")
    return {"relative_error": error, "dense_relative_error": rounded}


def _sum(reduction: reductions.Reduction, partial_sum: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    return reduction.finish(reduction.add(partial_sum, total))
