"""Where a step's costs and its plan come from: measured and solved in this process, unless a file or rank 0 knows them.

decider.first(asked, key_of); decider.meet(key, resident, state); decider.chunks(find); decider.problem(step, measure)
decider.plan(problem, find); decider.highest(peak)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from checkpointing.compiled.decisions.graph_key import GraphKey
from checkpointing.planners.plan import Plan
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import make_schedule

Measured = tuple[PlanningProblem, float]  # and the seconds that measuring took
MakeProblem = Callable[[bool], Measured]  # with costs as measured on the device, or (False) without any


class Decider:
    """This process decides for itself. Others override what they know better."""

    fixed = False  # whether there is one plan, whatever it takes

    def first(self, asked: int | None, key_of: Callable[[int | None], GraphKey]) -> int | None:
        """In how many chunks its loss is when a step is identified, by `key_of(number)`: as asked for."""
        return asked

    def meet(self, key: GraphKey, resident: int, state: list[int]) -> tuple[int, list[int]]:
        """Before a step is planned: its identity, the bytes on the device, and the optimizer's state to come, by
        tensor. Returns the two to plan with."""
        return resident, state

    def chunks(self, find: Callable[[], int | None]) -> int | None:
        """In how many chunks a loss is computed, where that is a choice: `find()`, which measures."""
        return find()

    def problem(self, make: MakeProblem, measure: bool) -> Measured:
        return make(measure)

    def plan(self, problem: PlanningProblem, find: Callable[[], Plan]) -> Plan:
        return find()

    def highest(self, peak: int | None) -> int | None:
        """The peak that counts, of the one here; None where it was not read."""
        return peak


def with_costs(
    problem: PlanningProblem, times: Sequence[float], pinned: Mapping[str, str], workspace: Sequence[int] | None = None
) -> PlanningProblem:
    """The problem with other costs: seconds of each node, why values must be kept, by their names, and (where they are
    given) the bytes that each node takes beyond its results."""
    index_of = {name: index for index, name in enumerate(problem.storage_names)}
    changed = replace(
        problem,
        time=list(times),
        pinned={index_of[name]: why for name, why in pinned.items()},
        workspace=problem.workspace if workspace is None else list(workspace),
    )
    return replace(changed, default_added_s=make_schedule(changed, changed.default_kept).added_seconds)


def costs_of(problem: PlanningProblem) -> dict[str, Any]:
    """The arguments of `with_costs` that make the problem's own, in JSON's types."""
    return {
        "times": problem.time,
        "workspace": problem.workspace,
        "pinned": {problem.storage_names[index]: why for index, why in problem.pinned.items()},
    }


def decision_of(plan: Plan) -> dict[str, Any]:
    """What `plan_from` needs, in JSON's types."""
    names = plan.problem.storage_names
    return {
        "solver": plan.solver,
        "kept": [names[index] for index in sorted(plan.kept)],
        "budget_bytes": plan.budget_bytes,
        "planning_s": plan.planning_s,
        "bound_s": plan.bound_s,
    }


def plan_from(problem: PlanningProblem, decision: Mapping[str, Any]) -> Plan:
    """The plan that `decision_of` wrote, of the same step."""
    index_of = {name: index for index, name in enumerate(problem.storage_names)}
    kept = frozenset(index_of[name] for name in decision["kept"])
    return Plan(problem, **{**decision, "kept": kept})
