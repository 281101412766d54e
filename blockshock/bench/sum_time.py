"""How long one sum over ranks takes, without a product: for benchmarks and their tables.

ms = time_all_reduce("two_shot", numel=1 << 20, dtype=torch.bfloat16, group=dist.group.WORLD)
"""

from __future__ import annotations

import statistics

import torch
import torch.distributed as dist

from blockshock.collectives import reductions
from blockshock.collectives.symmetric import symmetric_buffer
from blockshock.measure.timing import Timer
from blockshock.ranks import distributed


def time_all_reduce(
    implementation: str,
    numel: int,
    dtype: torch.dtype,
    group: dist.ProcessGroup,
    mode: str = "cuda_graph",
    warmup_iters: int = 5,
    timed_iters: int = 30,
) -> float | None:
    """Median milliseconds of the slowest rank for `numel` elements; None where this machine can't do it.

    `mode` is one of timing.py: "cuda_graph" without host cost, "cuda_events" with it. The partial products lie where
    the implementation wants them, as after a product that was told where to write. All ranks of the job must call it.
    """
    device = torch.device("cuda", torch.cuda.current_device())
    size = numel * dtype.itemsize
    if reductions.impossible(implementation, dist.get_world_size(group), dtype, size):
        return None
    buffer = None
    if implementation in reductions.SYMMETRIC:
        buffer, problem = symmetric_buffer(group, device, size)
        if problem:
            return None
    reduction = reductions.make(implementation, group, numel, buffer)
    partial, total = reduction.place(1, torch.empty(0, dtype=dtype, device=device), whole=True)
    assert partial is not None
    assert total is not None
    partial.normal_(std=1e-3)  # what grows when it is summed in place again and again costs the same

    distributed.barrier()
    timer = Timer(mode, device)
    samples = timer.measure(
        "allreduce", lambda: reduction.finish(reduction.add(partial, total)), warmup_iters, timed_iters
    )
    return statistics.median(distributed.max_over_ranks(samples["allreduce"]))
