"""A plan for users of `torch.utils.checkpoint` without a compiler: a policy by module and operator.

    policy = checkpointing.plan_of(model).to_policy()           # or of a whole-step plan
    loss = checkpoint(step, model, x, use_reentrant=False, context_fn=policy.contexts(model))

An operator is named by the module that runs it, its name, and how many of that name the module has run before. Its
results are saved or recomputed as planned. PyTorch also repeats an operator whose result only saved ones read. A region
is the whole step, or whole modules of it. PyTorch recomputes a region at once: one per block has the lower peak.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.utils.checkpoint import create_selective_checkpoint_contexts

from checkpointing.errors import CheckpointingError, DecisionsFileError
from checkpointing.policy_region import DROPOUT, Region, RegionPass, module_running, operator_name
from profiler.graph.regions import LOSS_FN, ROOT

if TYPE_CHECKING:
    import pandas as pd

    from checkpointing.planners.problem import PlanningProblem

FORMAT = 1
COLUMNS = ["module", "operator", "occurrence", "decision", "bytes", "why"]
_IN_PLACE = "is written to in place, which a selective checkpoint cannot save"


@dataclass(frozen=True)
class Operator:
    """One operator of the forward. `why`: the reason, where an eager operator cannot do as the plan does."""

    module: str
    operator: str  # "aten.mm"; one that writes in place is named as the one that does not: "aten.relu"
    occurrence: int
    saved: bool
    size: int  # bytes of its results
    why: str = ""


@dataclass(frozen=True)
class SelectivePolicy:
    """Whether each operator of the step's forward is saved; `operators` are in the order in which they run."""

    operators: tuple[Operator, ...] = field(repr=False)

    def table(self) -> pd.DataFrame:
        """One row per operator, columns `COLUMNS`."""
        import pandas as pd

        rows = [
            (o.module, o.operator, o.occurrence, "save" if o.saved else "recompute", o.size, o.why)
            for o in self.operators
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def to_json(self, path: str | Path) -> Path:
        """Write the policy; `read_policy` reads it, in a process that plans nothing."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps({"policy": FORMAT, "operators": [asdict(o) for o in self.operators]}, indent=1))
        return target

    def contexts(self, model: nn.Module) -> Callable[[], tuple[Any, Any]]:
        """The `context_fn` of `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)` for regions of `model`.

        Raises CheckpointingError in the forward if a region does not run a module as a whole, or runs other operators
        than the planned step.
        """
        if not isinstance(model, nn.Module):
            raise CheckpointingError(
                f"contexts({type(model).__name__}): give it the model, whose modules name operators"
            )
        names = {id(module): name for name, module in model.named_modules()}
        planned = {o.module for o in self.operators}
        unknown = sorted(planned - set(names.values()) - {""})
        if unknown:
            raise CheckpointingError(f"the plan is of another model: this one has no module {unknown[0]!r}")
        saved = {(o.module, o.operator, o.occurrence): o.saved for o in self.operators}

        def make() -> tuple[Any, Any]:
            buffers = {buffer.untyped_storage()._cdata for buffer in model.buffers()}
            region = Region(saved, names, buffers, module_running(names))
            first, again = create_selective_checkpoint_contexts(region.policy)
            return RegionPass(region, first, is_first=True), RegionPass(region, again, is_first=False)

        return make


def read_policy(path: str | Path) -> SelectivePolicy:
    """The policy that `to_json` wrote. Raises DecisionsFileError for any other file."""
    try:
        found = json.loads(Path(path).read_text())
        if found["policy"] != FORMAT:
            raise DecisionsFileError(
                f"{path}: of format {found['policy']}, and this version reads {FORMAT}: write anew"
            )
        return SelectivePolicy(tuple(Operator(**row) for row in found["operators"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DecisionsFileError):
            raise
        raise DecisionsFileError(f"{path}: no policy that to_json wrote ({error})") from error


def policy_of(problem: PlanningProblem, kept: Collection[int]) -> SelectivePolicy:
    """The policy that saves the storages `kept` of a step, as far as an eager operator can."""
    count: Counter[tuple[str, str]] = Counter()
    operators = []
    noise: set[int] = set()
    for order in range(problem.backward_start):
        made = problem.created[order]
        written = [index for index, writers in enumerate(problem.writers) if order in writers and index not in made]
        operator = _planned_name(problem.targets[order])
        if not operator or not (made or written):  # an input, an element, a view
            continue
        read = {index for source in problem.inputs[order] for index in problem.held[source]}
        if operator == "aten.bernoulli" and written:
            noise.update(written)
        elif operator == "aten.mul" and read & noise:
            operator = DROPOUT
        module = "" if problem.modules[order] in (ROOT, LOSS_FN) else problem.modules[order]
        occurrence = count[module, operator]
        count[module, operator] += 1
        size = sum(problem.size[index] for index in made)
        wanted = sum(problem.size[index] for index in made if index in kept)
        in_place = [i for i in (*made, *written) if len(problem.writers[i]) > 1 and not problem.owned[i]]
        saved, why = 2 * wanted >= size and wanted > 0, ""
        if in_place:
            saved = False
            why = _IN_PLACE if any(index in kept for index in in_place) else ""
        elif 0 < wanted < size:
            why = f"{wanted} of {size} bytes are kept: an operator's results are saved together or not at all"
        operators.append(Operator(module, operator, occurrence, saved, size, why))
    return SelectivePolicy(tuple(operators))


def _planned_name(target: str) -> str:
    """ "aten.relu_.default" → "aten.relu"; "" for what is no operator of PyTorch's dispatcher."""
    return operator_name(target.rpartition(".")[0])
