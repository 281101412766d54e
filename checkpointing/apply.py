"""The whole way in one call: trace, profile, plan, rewrite.

step = apply_activation_checkpointing(model, loss_fn, optimizer, batch, memory_budget=0.5, solver="optimal")
loss = step(*batch)
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from checkpointing import budget
from checkpointing.compiled.decisions.ranks import decide_together, highest_of_ranks
from checkpointing.decide import decide_checkpoints
from checkpointing.operators.determinism import unsteady_operators
from checkpointing.planners.problem import problem_of
from checkpointing.replan import within_budget
from checkpointing.rewriting.passes import check_passes, with_passes
from checkpointing.rewriting.rewrite import CheckpointedStep, rewrite_graph_with_recomputation
from checkpointing.rewriting.training_state import preserved
from profiler import GraphProfiler, Region, trace_train_step
from profiler.graph.tracing import LossFn


def apply_activation_checkpointing(
    model: nn.Module,
    loss_fn: LossFn,
    optimizer: Optimizer,
    batch: Sequence[Any],
    memory_budget: float | str,
    solver: str = "optimal",
    warmup_iters: int = 1,
    profile_iters: int = 3,
    passes: Sequence[str] = (),
) -> CheckpointedStep:
    """One training step of `model` that stays within `memory_budget` and adds as little time as it can.

    `loss_fn(model, *batch)` returns a scalar. `memory_budget` is the step's peak in bytes, a string ("24GiB"), or a
    fraction of the activation memory; on a GPU the allocator's peak is measured and the plan tightened where it is
    above. Where several ranks train one model, rank 0 plans for all. Profiling takes training steps, whose effect
    is undone: the model, the optimizer and the random generators are afterwards as they were. The unchanged step has to
    fit in memory once. `passes` names changes that round otherwise than eager (`rewriting.passes`): the step is then
    bitwise that of the same passes without a plan. Raises BudgetError, IllegalPlanError, CheckpointingError for another
    pass, and what `trace_train_step` raises.
    """
    budget.check(memory_budget)
    check_passes(passes)
    step = with_passes(trace_train_step(model, loss_fn, optimizer, batch), passes)
    profiler = GraphProfiler(step)
    with preserved(step, batch):
        profiler.run(*batch, warmup_iters=warmup_iters, profile_iters=profile_iters)
        problem = problem_of(profiler, unsteady_operators(step, batch, (Region.FORWARD, Region.LOSS)))
        if step.device.type != "cuda":  # what was predicted is what is alive
            plan = decide_together(problem, lambda: decide_checkpoints(problem, memory_budget, solver))
            return rewrite_graph_with_recomputation(step, plan)
        return within_budget(
            problem,
            memory_budget,
            solver,
            rewrite=partial(rewrite_graph_with_recomputation, step),
            measure=lambda rewritten: highest_of_ranks(_measured_peak(rewritten, batch)),
        )


def _measured_peak(step: CheckpointedStep, batch: Sequence[Any]) -> int:
    """Bytes at the peak of a step as CUDA's allocator counts: of steps with what it has cached, and with nothing."""
    step(*batch)  # libraries take their workspaces
    peaks = []
    for emptied in (False, True):
        if emptied:
            torch.cuda.empty_cache()
        torch.cuda.synchronize(step.device)
        torch.cuda.reset_peak_memory_stats(step.device)
        step(*batch)
        step(*batch)  # in the blocks that the one before has left
        torch.cuda.synchronize(step.device)
        peaks.append(torch.cuda.max_memory_allocated(step.device))
    step.steps_run = 0
    return max(peaks)
