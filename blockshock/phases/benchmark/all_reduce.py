"""Part `all_reduce`: every way to sum a buffer over the ranks, and which of them a measured table would choose."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.distributed as dist

from blockshock.collectives.reductions import REDUCTIONS, Reduction
from blockshock.collectives.symmetric import SymmetricBuffer, symmetric_buffer
from blockshock.dtypes import DTYPES
from blockshock.errors import ConfigError, one_of
from blockshock.jobs.correctness import FLOAT64_LIMIT, MARGIN, CheckFailed, errors
from blockshock.jobs.execution import Execution
from blockshock.measure.timing import Timer
from blockshock.methods import ring_roundings
from blockshock.phases.benchmark.contenders import Admitted, Contender, Entry, admit, naming
from blockshock.phases.benchmark.turns import Benchmark
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class ReductionContender(Contender):
    collective: str = "nccl"  # nccl | one_shot | two_shot | copy (pairs); gloo on a CPU


@dataclass
class AllReduce(Benchmark):
    """`model.B` · `model.N` elements, summed over all ranks.

    A matmul has just written its partial sums, which are in the L2 cache as far as they fit: it isn't flushed.
    """

    PART: ClassVar[str] = "all_reduce"
    BASELINE: ClassVar[str] = "nccl"
    RANKS: ClassVar[str] = "even"
    FLUSH_L2: ClassVar[bool] = False

    contenders: dict[str, ReductionContender] = field(default_factory=dict)

    def admitted(self, job: Job) -> Admitted[ReductionContender]:
        return admit(self.contenders, partial(_check, job))

    def entries(self, execution: Execution, admitted: Admitted[ReductionContender]) -> Iterator[Entry]:
        problem = execution.problem
        group = dist.group.WORLD
        assert group is not None
        size = problem.B * problem.N * problem.dtype.itemsize
        buffer = _buffer(execution, admitted, group, size)
        names = {key: contender.collective for key, contender in admitted.contenders.items()}
        table = {name: time_all_reduce(name, problem.B * problem.N, problem.dtype, group) for name in names.values()}
        chosen = min(table, key=lambda name: table[name] or float("inf"))
        for key, name in names.items():
            with naming(key):
                reduction = REDUCTIONS[name].build(group, problem.N, buffer)
                like = torch.empty(0, dtype=problem.dtype, device=problem.device)
                partial_sum, total = reduction.place(problem.B, like, True)
                assert partial_sum is not None
                assert total is not None
                about = {"bytes": size, "chosen": name == chosen, **check_sum(reduction, partial_sum, total)}
                partial_sum.normal_(std=1e-3)  # what grows when it is summed in place again and again costs the same
            yield Entry(key, name, partial(_sum, reduction, partial_sum, total), "", about)


def _check(job: Job, key: str, contender: ReductionContender) -> str:
    name, model = contender.collective, job.model
    one_of("collective", name, REDUCTIONS)
    backend = REDUCTIONS[name].backend
    if job.hardware.backend != backend:
        raise ConfigError("collective", name, f"needs hardware.backend={backend}, not {job.hardware.backend}")
    dtype = DTYPES[model.dtype]
    why = REDUCTIONS[name].unsupported(job.hardware.world_size, dtype, model.B * model.N * dtype.itemsize)
    if why:
        raise ConfigError("collective", name, why)
    return name


def _buffer(
    execution: Execution, admitted: Admitted[ReductionContender], group: dist.ProcessGroup, size: int
) -> SymmetricBuffer | None:
    """Memory that peers read, where a contender needs it. Leaves those out that can't have it on this machine."""
    needing = {k: c for k, c in admitted.contenders.items() if REDUCTIONS[c.collective].symmetric}
    if not needing:
        return None
    buffer, problem = symmetric_buffer(group, execution.device, size)
    for key, contender in needing.items() if problem else ():
        if not contender.optional:
            raise ConfigError(f"phase.contenders.{key}.collective", contender.collective, str(problem))
        execution.log("without %s: %s", key, problem)
        admitted.left_out[key] = str(problem)
        del admitted.contenders[key]
    if not admitted.contenders:
        raise ConfigError("phase.contenders", f"[{','.join(needing)}]", f"none can run here: {problem}")
    return buffer


def check_sum(reduction: Reduction, partial_sum: torch.Tensor, total: torch.Tensor) -> dict[str, float]:
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
        raise CheckFailed(f"the sum's relative error is {error:.3g}, its additions explain {limit:.3g}")
    return {"relative_error": error, "dense_relative_error": rounded}


def time_all_reduce(
    implementation: str,
    numel: int,
    dtype: torch.dtype,
    group: dist.ProcessGroup,
    mode: str | None = None,
    warmup_iters: int = 5,
    timed_iters: int = 30,
) -> float | None:
    """Median milliseconds of the slowest rank for a sum of `numel` elements, without a matmul before it.

    None where this machine can't do it. `mode` is one of timing.py: "cuda_graph" (default on GPUs) without the host's
    part, "cuda_events" with it, "sync" (default on a CPU). The partial products lie where the implementation wants
    them, as after a matmul that was told where to write. All ranks of the job must call it.
    """
    gpu = dist.get_backend(group) == "nccl"
    device = torch.device("cuda", torch.cuda.current_device()) if gpu else torch.device("cpu")
    size = numel * dtype.itemsize
    if REDUCTIONS[implementation].unsupported(dist.get_world_size(group), dtype, size):
        return None
    buffer = None
    if REDUCTIONS[implementation].symmetric:
        buffer, problem = symmetric_buffer(group, device, size)
        if problem:
            return None
    reduction = REDUCTIONS[implementation].build(group, numel, buffer)
    partial_sum, total = reduction.place(1, torch.empty(0, dtype=dtype, device=device), whole=True)
    assert partial_sum is not None
    assert total is not None
    partial_sum.normal_(std=1e-3)  # what grows when it is summed in place again and again costs the same

    distributed.barrier()
    timer = Timer(mode or ("cuda_graph" if gpu else "sync"), device)
    samples = timer.measure("allreduce", partial(_sum, reduction, partial_sum, total), warmup_iters, timed_iters)
    return statistics.median(distributed.max_over_ranks(samples["allreduce"]))


def _sum(reduction: Reduction, partial_sum: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
    return reduction.finish(reduction.add(partial_sum, total))
