"""Measure planned training steps on several GPUs next to the same steps without a plan: alone, under DDP, under FSDP2.

    torchrun --nproc-per-node 2 -m tests.checkpointing.loops.parallel_speed gpt2 8 outputs/parallel.csv

Arguments: a model of `profiler.models`, sequences (or images) per GPU, a file for the table. Each planned step has a
budget of `SAVED` of the one GPU's unplanned peak less than the unplanned step of its kind has, so that all plans save
as many bytes. `ddp in buckets` is what torch.compile does by itself: a graph per bucket of gradients, whose reductions
overlap with the backward. Gradients are compared with the unplanned step's, from the same state and masks, as
‖difference‖ / ‖gradient‖ over all parameters.
"""

from __future__ import annotations

import gc
import math
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

import checkpointing
from profiler.models import build

SAVED = 0.3
WARM_UPS, STEPS, PROFILED = 8, 40, 5
MIB = 2**20


@dataclass
class Row:
    kind: str
    planned: bool
    rank: int
    budget_mib: float | None
    predicted_mib: float | None
    peak_mib: float
    step_p50_ms: float
    kernels_ms: float  # of a step, without the collectives': what the host delays is not in it
    gradient_distance: float | None


class WithLoss(nn.Module):
    """The model and its loss, which are compiled together."""

    def __init__(self, model: nn.Module, loss_fn: Any) -> None:
        super().__init__()
        self.model, self.loss_fn = model, loss_fn

    def forward(self, *batch: Tensor) -> Tensor:
        return self.loss_fn(self.model, *batch)


def measured(name: str, batch_size: int, kind: str, budget: float | None) -> tuple[Row, list[Tensor]]:
    """The row of this rank, and its gradients of the first step in the host's memory."""
    torch._dynamo.reset()
    gc.collect()
    torch.cuda.empty_cache()
    rank = dist.get_rank()
    device = torch.device("cuda", torch.cuda.current_device())
    task = build(name, batch_size, seq_len=1024, dtype=torch.bfloat16, device=device, seed=0)
    model: nn.Module = WithLoss(task.model, task.loss_fn)
    batch = [value.roll(rank, dims=-1) for value in task.batch]  # each rank has its own
    planner: Any = None
    if budget is not None:
        planner = checkpointing.backend(f"{int(budget)}B")
    outer = model
    torch._dynamo.config.optimize_ddp = kind == "ddp in buckets"
    if kind == "fsdp2":
        fully_shard(model)
        outer = torch.compile(model, backend=planner or "inductor", dynamic=False)  # type: ignore[assignment]
    else:
        model.compile(backend=planner or "inductor", dynamic=False)
        if kind.startswith("ddp"):
            outer = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    torch.manual_seed(1 + rank)
    gradients: list[Tensor] = []
    times = []

    def train() -> None:
        outer(*batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    for step in range(WARM_UPS + STEPS):
        if step == WARM_UPS:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        if step == 0:
            outer(*batch).backward()
            gradients = [_whole(p.grad).cpu() for p in model.parameters() if p.grad is not None]
            optimizer.step()
            optimizer.zero_grad()
        else:
            train()
        end.record()
        times.append((start, end))
    torch.cuda.synchronize()
    ms = sorted(start.elapsed_time(end) for start, end in times[WARM_UPS:])
    peak = torch.cuda.max_memory_allocated()
    plan = planner.plans[-1] if planner else None
    if plan and rank == 0:
        print(plan.summary(), flush=True)
    row = Row(
        kind=kind,
        planned=plan is not None,
        rank=rank,
        budget_mib=plan and plan.budget_bytes / MIB,
        predicted_mib=plan and plan.predicted_peak_bytes / MIB,
        peak_mib=peak / MIB,
        step_p50_ms=ms[len(ms) // 2],
        kernels_ms=_kernels_ms(train),
        gradient_distance=None,
    )
    return row, gradients


def _kernels_ms(train: Callable[[], None]) -> float:
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        for _ in range(PROFILED):
            train()
        torch.cuda.synchronize()
    kernels = [event for event in profiled.key_averages() if "nccl" not in event.key.lower()]
    return sum(event.self_device_time_total for event in kernels) / 1e3 / PROFILED


def _whole(gradient: Tensor) -> Tensor:
    return gradient.full_tensor() if isinstance(gradient, DTensor) else gradient.detach().clone()


def distance(gradients: list[Tensor], expected: list[Tensor]) -> float:
    pairs = list(zip(gradients, expected, strict=True))
    difference = sum((a.double() - b.double()).square().sum().item() for a, b in pairs)
    return math.sqrt(difference / sum(b.double().square().sum().item() for b in expected))


def main() -> None:
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    name, batch_size, path = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl")
    rows: list[Row] = []
    saved = 0.0
    for kind in ("alone", "ddp", "ddp in buckets", "fsdp2"):
        row, expected = measured(name, batch_size, kind, None)
        rows.append(row)
        peak = _highest(row.peak_mib * MIB)
        saved = saved or SAVED * peak
        if kind != "ddp in buckets":
            planned, gradients = measured(name, batch_size, kind, peak - saved)
            planned.gradient_distance = distance(gradients, expected)
            rows.append(planned)
        _write(rows, path)
    dist.destroy_process_group()


def _highest(value: float) -> float:
    """Of all ranks, which have one budget."""
    highest = torch.tensor(value, dtype=torch.float64, device="cuda")
    dist.all_reduce(highest, dist.ReduceOp.MAX)
    return highest.item()


def _write(rows: list[Row], path: Path) -> None:
    """All ranks' rows so far, by rank 0."""
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, rows)
    if dist.get_rank() == 0:
        table = pd.DataFrame([asdict(row) for ranks in zip(*every, strict=True) for row in ranks])
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)
        print(table.to_string(index=False), flush=True)


if __name__ == "__main__":
    main()
