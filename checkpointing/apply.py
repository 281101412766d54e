"""The whole way in one call: trace, profile, plan, rewrite.

step = apply_activation_checkpointing(model, loss_fn, optimizer, batch, memory_budget=0.5, solver="optimal")
loss = step(*batch)
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from checkpointing import budget
from checkpointing.decide import decide_checkpoints
from checkpointing.errors import BudgetError
from checkpointing.operators.determinism import unsteady_operators
from checkpointing.planners.problem import problem_of
from checkpointing.rewriting.rewrite import CheckpointedStep, rewrite_graph_with_recomputation
from checkpointing.rewriting.training_state import preserved
from profiler import GraphProfiler, Region, trace_train_step
from profiler.graph.tracing import LossFn

SLACK = 2**20  # bytes by which a peak varies between steps
REPLANNED = 5  # times at most: the caching allocator may hand out larger blocks than the profile saw


def apply_activation_checkpointing(
    model: nn.Module,
    loss_fn: LossFn,
    optimizer: Optimizer,
    batch: Sequence[Any],
    memory_budget: float | str,
    solver: str = "optimal",
    warmup_iters: int = 1,
    profile_iters: int = 3,
) -> CheckpointedStep:
    """One training step of `model` that stays within `memory_budget` and adds as little time as it can.

    `loss_fn(model, *batch)` returns a scalar. `memory_budget` is the step's peak in bytes, a string ("24GiB"), or a
    fraction of the activation memory; on a GPU the allocator's peak is measured and the plan tightened where it is
    above. The profile takes real training steps, whose effect is undone: the model, the
    optimizer and the random generators are afterwards as they were. The unchanged step has to fit in memory once.
    Raises BudgetError, IllegalPlanError, and what `trace_train_step` raises.
    """
    budget.check(memory_budget)
    step = trace_train_step(model, loss_fn, optimizer, batch)
    profiler = GraphProfiler(step)
    with preserved(step, batch):
        profiler.run(*batch, warmup_iters=warmup_iters, profile_iters=profile_iters)
        problem = problem_of(profiler, unsteady_operators(step, batch, (Region.FORWARD, Region.LOSS)))
        plan = decide_checkpoints(problem, memory_budget, solver)
        rewritten = rewrite_graph_with_recomputation(step, plan)
        wanted = asked = plan.budget_bytes
        for attempt in range(REPLANNED + 1):
            excess = 0 if wanted is None else _measured_peak(rewritten, batch) - wanted
            if wanted is None or asked is None or excess <= 0:
                break
            asked -= excess + SLACK * 2**attempt
            try:
                if attempt == REPLANNED:
                    raise BudgetError("however it is planned")
                tighter = decide_checkpoints(problem, asked, solver)
            except BudgetError as error:
                raise BudgetError(
                    f"memory_budget={memory_budget!r} is {wanted / 2**20:.1f} MiB, and the allocator takes "
                    f"{excess / 2**20:.1f} MiB more ({error}): raise the budget"
                ) from error
            note = f"planned for {(wanted - asked) / 2**20:.1f} MiB less, which the allocator adds"
            plan = replace(
                tighter,
                budget_bytes=wanted,
                bound_s=plan.bound_s,  # of the budget that was asked for
                planning_s=plan.planning_s + tighter.planning_s,
                note="; ".join(filter(None, [tighter.note, note])),
            )
            rewritten = rewrite_graph_with_recomputation(step, plan)
    return rewritten


def _measured_peak(step: CheckpointedStep, batch: Sequence[Any]) -> int:
    """Bytes at the peak of a step, as CUDA's allocator counts; the plan's prediction on a CPU, which is exact there."""
    if step.device.type != "cuda":
        return step.plan.predicted_peak_bytes
    step(*batch)  # libraries take their workspaces
    torch.cuda.synchronize(step.device)
    torch.cuda.reset_peak_memory_stats(step.device)
    step(*batch)
    torch.cuda.synchronize(step.device)
    step.steps_run = 0
    return torch.cuda.max_memory_allocated(step.device)
