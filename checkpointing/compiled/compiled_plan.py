"""What a compiled step keeps and recomputes, by module, what it costs, and what was measured.

plan = checkpointing.plan_of(model)
print(plan.summary()); plan.to_csv("plan.csv"); plan.plot("memory.png"); plan.price
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from checkpointing.compiled.decisions.graph_key import GraphKey
from checkpointing.compiled.decisions.plan_file import plan_file
from checkpointing.compiled.plan_figure import curve_of, draw_curves
from checkpointing.errors import CheckpointingError
from checkpointing.planners.plan import Plan
from checkpointing.planners.price import price_of_memory
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import make_schedule
from checkpointing.policy import SelectivePolicy, policy_of

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

MIB, GIB = 2**20, 2**30
COLUMNS = ["module", "operator", "value", "decision", "bytes", "recompute_ms", "why"]


@dataclass
class CompiledPlan:
    """The plan of one compiled graph. Peaks are bytes of the whole step on its device, static memory included."""

    problem: PlanningProblem = field(repr=False)
    plan: Plan = field(repr=False)
    budget_bytes: int
    unplanned_peak_bytes: int  # predicted: what the compiler would take by itself
    predicted_peak_bytes: int
    optimizer_state_bytes: int  # not there when the step was compiled, and part of the prediction
    execution: str
    planning_s: float = 0.0
    measuring_s: float = 0.0  # of operators whose cost was not known
    recompilations: int = 0  # because a compiled plan took more than predicted
    on_request: int = 0  # values recomputed because they were asked for, and that the compiler would save
    loss: str = ""  # where a loss was to be in chunks: which ones are, or why none is
    in_one_piece: PlanningProblem | None = field(default=None, repr=False)  # where the planner chose to divide it
    graph: GraphKey | None = field(default=None, repr=False)  # what it is a plan of
    options: dict[str, Any] = field(default_factory=dict, repr=False)  # of the backend, that shape the question
    measured_peak_bytes: int | None = None  # of the first steps, by the device's allocator

    @property
    def predicted_added_s(self) -> float:
        """Device time that the recomputation adds to a step."""
        return self.plan.predicted_added_s

    @property
    def gap(self) -> float | None:
        """How far the added time may be from the best possible, relative to it; None from a solver without a bound."""
        return self.plan.gap

    @property
    def is_empty(self) -> bool:
        """Whether nothing is recomputed beyond what the compiler recomputes by itself."""
        return not self.on_request and self.plan.kept == self.problem.default_kept | frozenset(self.problem.pinned)

    @cached_property
    def price(self) -> float | None:
        """Milliseconds of a step that a GiB more of budget would save, at this budget: the slope of the least added
        time in the linear relaxation of the planners' program, its dual (`planners.price`).

        0 where nothing is recomputed, None where the relaxation is not solved in time. Computed when it is first asked
        for: it takes two linear programs.
        """
        if self.is_empty:
            return 0.0
        # what the generated code and the allocator take more than the planner counts is not the planner's to spend
        budget = self.budget_bytes - (self.predicted_peak_bytes - self.plan.predicted_peak_bytes)
        price = price_of_memory(self.problem, budget)
        return None if price is None else price * 1e3 * GIB

    def table(self) -> pd.DataFrame:
        """One row per value that the unplanned step saves, or that the plan saves in its place; columns `COLUMNS`."""
        import pandas as pd

        return pd.DataFrame(self._rows(), columns=COLUMNS)

    def by_module(self) -> pd.DataFrame:
        """One row per module: bytes kept, bytes recomputed, and the milliseconds that recomputing them takes."""
        table = self.table()
        kept = table[table.decision == "keep"].groupby("module", sort=False).bytes.sum()
        again = table[table.decision == "recompute"].groupby("module", sort=False)
        rows = table[["module"]].drop_duplicates().set_index("module")
        rows["kept_bytes"] = kept
        rows["recomputed_bytes"] = again.bytes.sum()
        rows["recompute_ms"] = again.recompute_ms.sum()
        return rows.fillna(0).astype({"kept_bytes": int, "recomputed_bytes": int}).reset_index()

    def to_csv(self, path: str | Path) -> Path:
        """Write `table()`."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        self.table().to_csv(target, index=False)
        return target

    def curve(self, planned: bool = True) -> pd.DataFrame:
        """Predicted bytes over the step, or the unplanned one's: a row per kernel in the order in which they run.

        Columns: order, kernel, module, region (forward, backward, recompute), bytes while it runs, and end_ms, the
        predicted device time from the start of the forward to its end. The highest bytes are the predicted peak.
        """
        if planned:
            return curve_of(self.problem, self.plan.schedule, self.predicted_peak_bytes)
        problem = self.in_one_piece or self.problem
        return curve_of(problem, make_schedule(problem, problem.default_kept), self.unplanned_peak_bytes)

    def to_json(self, path: str | Path) -> Path:
        """Write the plan for `checkpointing.backend(plan=path)`: a process that neither measures nor plans."""
        if self.graph is None:
            raise CheckpointingError("to_json writes plans of steps that were compiled, and this one was not")
        options = {**self.options, "execution": self.execution, "budget_bytes": self.budget_bytes}
        return plan_file(path, self.graph, options, self.plan).write()

    def to_policy(self) -> SelectivePolicy:
        """The plan as a policy of selective checkpoints, for `torch.utils.checkpoint` without a compiler.

        Raises CheckpointingError for a plan of inductor's operators, which are not those of an eager step.
        """
        if self.execution != "eager":
            raise CheckpointingError(
                f'the plan is one for execution="{self.execution}", whose operators are not those of an eager step: '
                'plan with checkpointing.backend(..., execution="eager")'
            )
        return policy_of(self.problem, self.plan.kept)

    def plot(self, path: str | Path | None = None, measured: bool = True) -> Figure:
        """Draw both curves and the budget, and the measured peak if there is one and it is wanted.

        The suffix of `path` chooses the format: .png, .svg, .pdf.
        """
        peak = self.measured_peak_bytes if measured else None
        static = self.problem.static_bytes
        return draw_curves(self.curve(planned=False), self.curve(), self.budget_bytes, static, peak, path)

    def summary(self) -> str:
        """The plan in a few lines, and its table by module."""
        lines = [
            f"budget     {self.budget_bytes / MIB:10.1f} MiB",
            f"predicted  {self.predicted_peak_bytes / MIB:10.1f} MiB  (unplanned step "
            f"{self.unplanned_peak_bytes / MIB:.1f})",
        ]
        if self.measured_peak_bytes is not None:
            lines.append(f"measured   {self.measured_peak_bytes / MIB:10.1f} MiB")
        if self.loss:
            lines.append(self.loss)
        if self.is_empty:
            lines.append(
                "nothing is recomputed" if self.in_one_piece else "the unplanned step fits: nothing is recomputed"
            )
            return "\n".join(lines)
        certificate = "" if self.gap is None else f"; at most {self.gap:.1%} above the least possible"
        lines.append(f"added      {self.predicted_added_s * 1e3:10.3f} ms of device time{certificate}")
        if self.price is not None:
            lines.append(f"price      {self.price:10.3f} ms saved per GiB more of budget")
        lines.append(
            f"planned in {self.planning_s:.1f} s by {self.plan.solver}, {self.measuring_s:.1f} s of it measuring "
            f"operators; recompiled {self.recompilations} times"
        )
        rows = self.by_module()
        shown = rows[(rows.kept_bytes + rows.recomputed_bytes) > 0]
        table = shown.assign(
            kept_MiB=(shown.kept_bytes / MIB).round(1), recomputed_MiB=(shown.recomputed_bytes / MIB).round(1)
        )
        table = table.assign(recompute_ms=table.recompute_ms.round(3))
        return "\n".join(
            [*lines, "", table[["module", "kept_MiB", "recomputed_MiB", "recompute_ms"]].to_string(index=False)]
        )

    def __str__(self) -> str:
        return self.summary()

    def _rows(self) -> list[dict[str, object]]:
        problem, kept = self.problem, self.plan.kept
        extra = [i for i in problem.keepable if i in kept]
        rows: list[dict[str, object]] = []
        for index in sorted({*problem.activations, *extra}):
            rank = problem.writers[index][0]
            keep = index in kept
            nodes, _ = problem.nodes_to_make(index, kept) if not keep else (set(), set())
            rows.append(
                {
                    "module": problem.modules[rank],
                    "operator": problem.targets[rank],
                    "value": problem.storage_names[index],
                    "decision": "keep" if keep else "recompute",
                    "bytes": problem.size[index],
                    "recompute_ms": sum(problem.recompute_time[n] for n in nodes) * 1e3,
                    "why": self._why(index, keep),
                }
            )
        return rows

    def _why(self, index: int, keep: bool) -> str:
        problem = self.problem
        if index in problem.pinned:
            return problem.pinned[index]
        if index not in problem.activations:
            return "others are recomputed from it"
        return "recomputing it would cost more per byte" if keep else "recomputing it costs least per byte"


_PLANS: WeakTensorKeyDictionary = WeakTensorKeyDictionary()  # parameter → the plans of the steps that it is part of


def remember(parameters: Sequence[Tensor], plan: CompiledPlan) -> None:
    """Let `plan_of` find the plan by any of the step's parameters."""
    for parameter in parameters:
        plans = [other for other in _PLANS.get(parameter, ()) if other is not plan]
        _PLANS[parameter] = [*plans, plan]


def forget(parameters: Sequence[Tensor], plans: Sequence[CompiledPlan]) -> None:
    """Let `plan_of` no longer find these plans."""
    for parameter in parameters:
        _PLANS[parameter] = [other for other in _PLANS.get(parameter, ()) if not any(other is plan for plan in plans)]


def plans_of(model: nn.Module) -> list[CompiledPlan]:
    """The plans of all compiled steps of the model, one for each shape of the inputs, the latest last."""
    found: dict[int, CompiledPlan] = {}
    for parameter in model.parameters():
        for plan in _PLANS.get(parameter, ()):
            found.setdefault(id(plan), plan)
    return list(found.values())


def plan_of(model: Any) -> CompiledPlan:
    """The latest plan of a model, compiled or passed to a compiled function. Raises CheckpointingError if none."""
    if not isinstance(model, nn.Module):
        raise CheckpointingError(f"plan_of({type(model).__name__}): give it the model, whose parameters name the plan")
    plans = plans_of(model)
    if not plans:
        raise CheckpointingError(
            "plan_of(model): no step of this model has been compiled by checkpointing.backend yet: run one step first"
        )
    return plans[-1]
