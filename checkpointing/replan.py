"""Holds a plan to its budget as CUDA's allocator counts: measure the rewritten step, plan tighter where it is above.

    step = within_budget(problem, "24GiB", "optimal", rewrite, measured_peak)

The allocator hands out blocks that are up to 1 MiB larger than what was asked for, and which ones depends on the plan
and on what it has cached. So the plan is measured with and without a full cache, and keeps a distance from the budget.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace

from checkpointing import budget as budgets
from checkpointing.compiled.decisions.ranks import decide_together
from checkpointing.decide import decide_checkpoints
from checkpointing.errors import BudgetError
from checkpointing.planners import BASELINES
from checkpointing.planners.plan import Plan
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import unchanged_peak
from checkpointing.rewriting.rewrite import CheckpointedStep

SLACK = (
    2**20
)  # bytes by which a peak varies with what the allocator has cached, at most a thousandth: 0.5 MiB were seen
REPLANNED = 5  # times at most


def within_budget(
    problem: PlanningProblem,
    memory_budget: float | str,
    solver: str,
    rewrite: Callable[[Plan], CheckpointedStep],
    measure: Callable[[CheckpointedStep], int],
) -> CheckpointedStep:
    """The step of the first plan whose measured peak (`measure`, in bytes) stays below the budget by what peaks vary.

    Where only plans are found that are nearer to the budget, the first of these. Raises BudgetError where all that are
    found are above it, or none is.
    """
    if solver in BASELINES:
        return rewrite(_decide(problem, memory_budget, solver))
    unchanged = unchanged_peak(problem)
    wanted = budgets.in_bytes(memory_budget, problem.static_bytes, unchanged)
    varies = min(SLACK, wanted // 1000)
    room = varies if wanted < unchanged else 0
    first = plan = _first_plan(problem, memory_budget, wanted, room, solver)
    asked, near = wanted - room, None
    for attempt in range(REPLANNED + 1):
        step = rewrite(plan)
        peak = measure(step)
        if peak <= wanted - room:
            return step
        if peak <= wanted and near is None:
            near = step
        asked = max(2, asked - (peak + room - wanted) - varies * 2**attempt)  # 1 would be all of the activations
        try:
            if attempt == REPLANNED:
                raise BudgetError("however it is planned")
            tighter = _decide(problem, asked, solver)
        except BudgetError as error:
            if near is not None:
                return near
            raise BudgetError(
                f"memory_budget={memory_budget!r} is {wanted / 2**20:.1f} MiB, and the allocator takes "
                f"{(peak - wanted) / 2**20:.1f} MiB more ({error}): raise the budget"
            ) from error
        note = f"planned for {(wanted - asked) / 2**20:.1f} MiB less, which the allocator adds"
        plan = replace(
            tighter,
            budget_bytes=wanted,
            bound_s=first.bound_s,  # of the budget that was asked for
            planning_s=plan.planning_s + tighter.planning_s,
            note="; ".join(filter(None, [tighter.note, note])),
        )
    raise AssertionError("the last attempt returns or raises")


def _decide(problem: PlanningProblem, memory_budget: float | str, solver: str) -> Plan:
    """Rank 0's plan, where several ranks train one model."""
    return decide_together(problem, lambda: decide_checkpoints(problem, memory_budget, solver))


def _first_plan(problem: PlanningProblem, memory_budget: float | str, wanted: int, room: int, solver: str) -> Plan:
    """A plan for `room` bytes less than `wanted`; if there is none, for all of it. Raises BudgetError."""
    if room:
        with suppress(BudgetError):
            return replace(_decide(problem, wanted - room, solver), budget_bytes=wanted)
    return _decide(problem, memory_budget, solver)
