"""A compiled plan as a file: the next process compiles by it, and neither measures nor plans.

plan_of(model).to_json("plan.json")
torch.compile(model, backend=checkpointing.backend(plan="plan.json"), dynamic=False)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from checkpointing.compiled.decisions.decider import (
    Decider,
    MakeProblem,
    Measured,
    costs_of,
    decision_of,
    plan_from,
    with_costs,
)
from checkpointing.compiled.decisions.graph_key import GraphKey
from checkpointing.errors import DecisionsFileError, IllegalPlanError
from checkpointing.planners.plan import Plan
from checkpointing.planners.problem import PlanningProblem

FORMAT = 1
SHARED = ("execution", "budget_bytes", "keep", "recompute")  # options, the same in all files of a loop
OPTIONS = (*SHARED, "chunked_loss")  # a number of chunks is one shape's


@dataclass(frozen=True)
class PlanFile:
    """What one file says. `options` are the backend's that the plan was made with."""

    path: str
    graph: GraphKey
    options: dict[str, Any]
    costs: dict[str, Any]
    decision: dict[str, Any]

    def write(self) -> Path:
        """Write the file, and its folder where there is none."""
        target = Path(self.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        content = {"compiled_plan": FORMAT, **{k: v for k, v in asdict(self).items() if k != "path"}}
        target.write_text(json.dumps(content, indent=1))
        return target


def plan_file(path: str | Path, graph: GraphKey, options: dict[str, Any], plan: Plan) -> PlanFile:
    """The file of a plan, not written yet."""
    return PlanFile(str(path), graph, options, costs_of(plan.problem), decision_of(plan))


def read_plan_files(paths: str | Path | Sequence[str | Path]) -> list[PlanFile]:
    """The plans of one loop, one per shape of its inputs. Raises DecisionsFileError."""
    files = [_read(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise DecisionsFileError("plan=[]: give the path of a file that plan.to_json wrote, or several")
    for file in files[1:]:
        for option in SHARED:
            if file.options[option] != files[0].options[option]:
                raise DecisionsFileError(
                    f"{file.path} has {option}={file.options[option]!r}, and {files[0].path} "
                    f"{files[0].options[option]!r}: one loop has one"
                )
    return files


def _read(path: str | Path) -> PlanFile:
    try:
        found = json.loads(Path(path).read_text())
        if found.pop("compiled_plan") != FORMAT:
            raise DecisionsFileError(
                f"{path}: of another format than {FORMAT}, which this version reads: write it anew"
            )
        file = PlanFile(str(path), GraphKey(**found.pop("graph")), **found)
        missing = {*OPTIONS} - file.options.keys() | {"times", "pinned"} - file.costs.keys()
        if missing:
            raise KeyError(min(missing))
        return file
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DecisionsFileError):
            raise
        raise DecisionsFileError(f"{path}: no plan that plan.to_json wrote ({error})") from error


class FromFiles(Decider):
    """The plan is in one of the files: that of the same step."""

    fixed = True

    def __init__(self, files: Sequence[PlanFile]) -> None:
        self.files = files

    def first(self, asked: int | None, key_of: Callable[[int | None], GraphKey]) -> int | None:
        numbers = list(dict.fromkeys(file.options["chunked_loss"] for file in self.files))
        for number in numbers if len(numbers) > 1 else ():
            key = key_of(number)
            if any(file.options["chunked_loss"] == number and not key.difference(file.graph) for file in self.files):
                return number
        return asked

    def meet(self, key: GraphKey, resident: int, state: list[int]) -> tuple[int, list[int]]:
        for file in self.files:
            if not (why := key.difference(file.graph)):
                self.file = file
                return resident, state
        raise IllegalPlanError(f"{file.path} is the plan of another step: {why}; plan anew with a memory_budget")

    def problem(self, make: MakeProblem, measure: bool) -> Measured:
        problem, _ = make(False)
        return with_costs(problem, **self.file.costs), 0.0

    def plan(self, problem: PlanningProblem, find: Callable[[], Plan]) -> Plan:
        return plan_from(problem, self.file.decision)
