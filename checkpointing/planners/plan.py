"""The answer of every planner: what is kept, what is recomputed, and what that is predicted to cost.

plan.to_csv("ac_decisions_bs64.csv"); print(plan.summary())
plan = read_plan("ac_decisions_bs64.csv", problem)
"""

from __future__ import annotations

import html
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from checkpointing.errors import BudgetError, DecisionsFileError, IllegalPlanError
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule, make_schedule, unchanged_peak

if TYPE_CHECKING:
    import pandas as pd

    from checkpointing.policy import SelectivePolicy

COLUMNS = [
    "activation_name",
    "decision",
    "median_mem_size_bytes",
    "recomp_time_s",
    "recompute_ratio",
    "creation_rank",
    "first_bw_use_rank",
]


class Decision(StrEnum):
    """What happens to a forward value between the forward and its use in the backward."""

    CHECKPOINT = "CHECKPOINT"  # it is kept
    RECOMPUTE = "RECOMPUTE"


@dataclass(frozen=True, repr=False)
class Plan:
    """Which forward values (storages of `problem`) are kept, and where copies are made anew.

    Kept are activations, and temporaries that others are made from. `budget_bytes` and peaks are of the whole step.
    Times are of the device, in seconds. `bound_s` is proved: no plan under this budget that makes each
    copy once, and none more than 48 stages of the backward early, adds less (None: not asked).
    """

    problem: PlanningProblem = field(repr=False)
    solver: str
    kept: frozenset[int]
    fresh: dict[int, tuple[int, ...]] = field(default_factory=dict)
    budget_bytes: int | None = None
    planning_s: float = 0.0
    bound_s: float | None = None
    note: str = ""

    def __post_init__(self) -> None:
        unknown = self.kept - set(self.problem.forward_values)
        if unknown:
            raise IllegalPlanError(
                f"value {min(unknown)} is not one that this step's forward makes: plan for this step"
            )
        for index, why in self.problem.pinned.items():
            if index not in self.kept and index in self.problem.activations:
                name = self.problem.storage_names[index]
                raise IllegalPlanError(f"{name} may not be recomputed: it {why}; plan it as CHECKPOINT")

    @cached_property
    def unchanged_peak_bytes(self) -> int:
        """The peak of the step as it is."""
        return unchanged_peak(self.problem)

    @cached_property
    def schedule(self) -> Schedule:
        """Where every recomputation goes."""
        return make_schedule(self.problem, self.kept, self.fresh)

    @property
    def predicted_peak_bytes(self) -> int:
        return self.schedule.peak

    @property
    def predicted_added_s(self) -> float:
        return self.schedule.added_seconds

    @property
    def predicted_step_s(self) -> float:
        """Device time of the step: the sum over all nodes that run."""
        return sum(self.problem.time) + self.predicted_added_s

    @property
    def gap(self) -> float | None:
        """How far the added time may be from the best possible, relative to it."""
        if self.bound_s is None:
            return None
        return max(0.0, self.predicted_added_s - self.bound_s) / self.bound_s if self.bound_s > 0 else 0.0

    @property
    def recomputed(self) -> list[int]:
        """Activations that are recomputed."""
        return [index for index in self.problem.activations if index not in self.kept]

    @property
    def decisions(self) -> dict[str, Decision]:
        """By name, each activation and each temporary that is kept."""
        names, active = self.problem.storage_names, self.problem.activations
        found = {names[i]: Decision.CHECKPOINT if i in self.kept else Decision.RECOMPUTE for i in active}
        extra = self.kept - set(active) - set(self.problem.pinned)
        return found | {names[i]: Decision.CHECKPOINT for i in sorted(extra)}

    def table(self) -> pd.DataFrame:
        """One row a decision, columns `COLUMNS`. Times and ratios (bytes a second) are of the value alone."""
        import pandas as pd

        problem = self.problem
        index_of = {name: index for index, name in enumerate(problem.storage_names)}
        rows = []
        for name, decision in self.decisions.items():
            index = index_of[name]
            nodes, _ = problem.nodes_to_make(index, self.kept)
            seconds = sum(problem.recompute_time[rank] for rank in nodes)
            rows.append(
                {
                    "activation_name": name,
                    "decision": str(decision),
                    "median_mem_size_bytes": problem.size[index],
                    "recomp_time_s": seconds,
                    "recompute_ratio": problem.size[index] / seconds if seconds > 0 else float("inf"),
                    "creation_rank": problem.writers[index][0],
                    "first_bw_use_rank": problem.first_backward_use.get(index, -1),
                }
            )
        return pd.DataFrame(rows, columns=COLUMNS)

    def to_csv(self, path: str | Path) -> Path:
        """Write `table()`; `read_plan` reads it back (new copies, `fresh`, are not part of it)."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.table().to_csv(target, index=False)
        return target

    def to_policy(self) -> SelectivePolicy:
        """The plan as a policy of selective checkpoints, for `torch.utils.checkpoint` in a loop of one's own."""
        from checkpointing.policy import policy_of

        return policy_of(self.problem, self.kept)

    def __repr__(self) -> str:
        recomputed, activations = len(self.recomputed), len(self.problem.activations)
        return f"<Plan of {self.solver}: {recomputed} of {activations} activations recomputed>"

    def __str__(self) -> str:
        return f"{self.summary()}\n\n{self.table().to_string(index=False)}"

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return f"<pre>{html.escape(self.summary())}</pre>{self.table().to_html(index=False)}"

    def summary(self) -> str:
        """The plan in a few lines."""
        problem, mib = self.problem, 2**20
        recomputed = self.recomputed
        freed = sum(problem.size[i] for i in recomputed)
        step = sum(problem.time)
        activation = self.unchanged_peak_bytes - problem.static_bytes
        lines = [
            f"{self.solver}: {len(recomputed)} of {len(problem.activations)} activations recomputed "
            f"({freed / mib:.1f} MiB)",
            f"peak   {self.unchanged_peak_bytes / mib:10.1f} MiB -> {self.predicted_peak_bytes / mib:.1f} MiB "
            f"({(self.predicted_peak_bytes - problem.static_bytes) / max(activation, 1):.1%} of the activation memory)",
            f"time   {step * 1e3:10.3f} ms  -> {self.predicted_step_s * 1e3:.3f} ms "
            f"({self.predicted_added_s / step:+.2%})",
        ]
        if self.budget_bytes is not None:
            lines.append(f"budget {self.budget_bytes / mib:10.1f} MiB")
        if self.bound_s is not None:
            lines.append(f"bound  {self.bound_s * 1e3:10.3f} ms added at the least; gap {self.gap:.2%}")
        lines.append(f"planned in {self.planning_s:.2f} s" + (f"; {self.note}" if self.note else ""))
        return "\n".join(lines)


class NoPlanError(BudgetError):
    """A planner found no plan under the budget."""


def read_plan(path: str | Path, problem: PlanningProblem) -> Plan:
    """The plan in a file that `to_csv` wrote. Raises DecisionsFileError, IllegalPlanError."""
    import pandas as pd

    try:
        table = pd.read_csv(path)
    except (OSError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        raise DecisionsFileError(f"{path}: cannot be read as a table of decisions ({error})") from error
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise DecisionsFileError(f"{path}: column {missing[0]} is missing; it needs {', '.join(COLUMNS)}")
    for column in COLUMNS:
        empty = table.index[table[column].isna()]
        if len(empty):
            raise DecisionsFileError(f"{path}: column {column} is empty in row {empty[0] + 2}")
    index_of = {name: index for index, name in enumerate(problem.storage_names)}
    kept = set(problem.pinned)
    named: set[str] = set()
    for row, (name, decision) in enumerate(zip(table["activation_name"], table["decision"], strict=True), start=2):
        if decision not in list(Decision):
            raise DecisionsFileError(f"{path}: row {row}: decision {decision!r} is neither CHECKPOINT nor RECOMPUTE")
        if index_of.get(name) not in problem.forward_values:
            raise IllegalPlanError(f"{path}: row {row}: this step makes no {name}: the plan is for another graph")
        if name in named:
            raise DecisionsFileError(f"{path}: row {row}: a second decision for {name}")
        named.add(name)
        if decision == Decision.CHECKPOINT:
            kept.add(index_of[name])
        else:
            kept.discard(index_of[name])
    unnamed = [i for i in problem.activations if problem.storage_names[i] not in named]
    if unnamed:
        name = problem.storage_names[unnamed[0]]
        raise IllegalPlanError(f"{path}: says nothing of {name}: the plan is for another graph")
    return Plan(problem, Path(path).name, frozenset(kept))
