"""Does a step compiled under a budget do what the compiled step does without one? Both run from the same state.

    proof = checkpointing.prove_compiled(loss_fn, model, batch, memory_budget="8GB")      # raises ProofError if not
    print(proof.summary()); proof.table

Operator by operator (`execution="eager"`) the two must be bitwise equal. Compiled by inductor, they fuse differently
and round differently, so two things are compared instead:

1. Without dropout, loss, gradients and buffers of both are compared with a reference: the captured graph, run operator
   by operator in float64. No result of the planned step may be further from it than `FACTOR` times the unplanned one's.
   Dropouts are not removed from the compiled steps, which would plan another graph: they draw their masks, and drop
   nothing (`exact_step`). A rounding error is a random number, so one ratio says little of a result of few elements.
   Where the first are too large, more are drawn, from parameters changed at random by a hundredth; what counts then
   is the geometric mean of the ratios, which may be above `FACTOR` by a few of its standard errors.
2. With dropout as configured, both start from one seed. If they draw the same masks, they differ by rounding only: by
   no more than `FACTOR` times the sum of the two distances measured before. A mask that is drawn anew changes a
   gradient by a good part of itself.

Neither sees an error that is smaller than the unplanned step's own distance. In bfloat16 this may be large: `summary()`
tells it.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from checkpointing.compiled.backend import Backend, backend
from checkpointing.compiled.compiled_plan import CompiledPlan, forget
from checkpointing.compiled.proof.distances import Distances, relative
from checkpointing.compiled.proof.exact_step import Reference, without_drops
from checkpointing.compiled.proof.one_step import LossFn, OneStep, Results, changed, undone
from checkpointing.errors import ProofError
from profiler.graph.two_runs import deterministic_algorithms, same_bits

if TYPE_CHECKING:
    import pandas as pd

DRAWS = 8  # of parameters, where a ratio of distances from the first is too large
REFERENCES = ((torch.float64, False), (torch.float64, True), (torch.float32, False), (torch.float32, True))
COLUMNS = ["kind", "name", "identical", "planned", "unplanned", "ratio", "ratio_limit", "difference"]
COLUMNS += ["difference_limit", "passed"]


@dataclass(frozen=True)
class CompiledProof:
    """`table` has a row for the loss, each gradient and each buffer. Distances are norms relative to the reference's.

    `planned` and `unplanned` are distances from the reference without dropout, `ratio` the planned one over the other;
    `difference` is between planned and unplanned with dropout as configured. `identical`: this one is bitwise 0.
    """

    table: pd.DataFrame = field(repr=False)
    plan: CompiledPlan = field(repr=False)
    execution: str
    reference: str  # "float64" or "float32"; "" where everything must be bitwise equal
    draws: int  # of parameters
    dropouts: int  # in the step

    @property
    def passed(self) -> bool:
        return bool(self.table["passed"].all())

    @property
    def identical(self) -> bool:
        """Whether everything is bitwise equal."""
        return bool(self.table["identical"].all())

    def summary(self) -> str:
        """One line per kind of result, and what they were compared with."""
        recomputed = len(self.plan.plan.recomputed) + self.plan.on_request
        lines = [f"planned against unplanned, {self.execution}: {recomputed} values recomputed"]
        if self.reference:
            lines.append(
                f"reference in {self.reference}, {self.draws} {'draw' if self.draws == 1 else 'draws'} of parameters; "
                + (f"{self.dropouts} dropouts, their masks from one seed" if self.dropouts else "no dropout")
            )
        for kind, rows in self.table.groupby("kind", sort=False):
            line = f"{kind}: {int(rows['identical'].sum())} of {len(rows)} bitwise equal"
            if self.reference:
                worst = rows.sort_values("ratio").iloc[-1]
                line += f"; distance at most {worst['ratio']:.2f} of the unplanned step's ({worst['name']})"
                line += f", which is {rows['unplanned'].median():.2g} (median)"
            lines.append(line)
        return "\n".join([*lines, "passed" if self.passed else f"FAILED: {self.failure()}"])

    def failure(self) -> str:
        """What failed worst, by how much, and how many others did."""
        failed = self.table[~self.table["passed"]]
        excess = (failed["difference"] / failed["difference_limit"]).fillna(math.inf)
        nearness = (failed["ratio"] / failed["ratio_limit"]).fillna(0.0)
        worst = failed.assign(excess=excess.combine(nearness, max)).sort_values("excess").iloc[-1]
        where = f"{worst['kind']} {worst['name']}"
        if not self.reference:
            said = f"{where} is not bitwise equal: it differs by {worst['difference']:.3g}"
        elif not worst["ratio"] <= worst["ratio_limit"]:
            said = (
                f"{where} is {worst['planned']:.3g} from the {self.reference} reference, {worst['ratio']:.3g} times as "
                f"far as the unplanned step; at most {worst['ratio_limit']:.3g} times is rounding"
            )
        else:
            said = (
                f"{where} differs by {worst['difference']:.3g} from the unplanned step's from the same seed, and "
                f"rounding allows {worst['difference_limit']:.3g}: a random mask is not the same"
            )
        return f"{said} ({len(failed)} of {len(self.table)} results fail)"


def prove_compiled(
    loss_fn: LossFn,
    model: nn.Module,
    batch: Sequence[Any],
    memory_budget: float | str,
    *,
    execution: str = "inductor",
    solver: str = "optimal",
    keep: Sequence[str] = (),
    recompute: Sequence[str] = (),
    chunked_loss: int | str | None = None,
    seed: int = 0,
) -> CompiledProof:
    """Run `loss_fn(model, *batch)` and its backward as planned by `checkpointing.backend` and as compiled without it.

    Compared are the loss (a scalar), every gradient and every buffer: bitwise for execution="eager", against
    torch.compile's "aot_eager"; as described above for "inductor", and wherever `chunked_loss` rounds otherwise.
    Parameters, buffers, gradients and the states of the default generators are put back, so that the model is as it
    was. The unplanned step has to fit on the device. The reference is in float64, whose saved values wait on the host
    if they do not fit on the device, or in float32 where that does not suffice or an operator has no float64. Raises
    ProofError, which names what failed worst; CheckpointingError for a step that breaks into several graphs, is no
    scalar, or draws random numbers in another way than by dropout (inductor only), and what the backend raises.
    """
    chosen = backend(
        memory_budget,
        execution=execution,
        solver=solver,
        keep=keep,
        recompute=recompute,
        chunked_loss=chunked_loss,
    )
    bitwise = execution == "eager" and chosen.chunked_loss is None
    steps = OneStep(loss_fn, model, tuple(batch), seed)
    with undone(model), deterministic_algorithms() if bitwise else contextlib.nullcontext():
        try:
            proof = _bitwise(steps, chosen) if bitwise else _within_rounding(steps, chosen)
        finally:
            forget(list(model.parameters()), chosen.plans)
    if not proof.passed:
        raise ProofError(f"the planned step is not the unplanned one: {proof.failure()}", proof)
    return proof


def _bitwise(steps: OneStep, chosen: Backend) -> CompiledProof:
    planned = steps.run(steps.compiled(chosen))
    unplanned = steps.run(steps.compiled("aot_eager"))
    rows = []
    for key in dict.fromkeys([*planned, *unplanned]):
        same = key in planned and key in unplanned and same_bits(planned[key], unplanned[key])
        distance = 0.0 if same else relative(planned.get(key), unplanned.get(key))
        rows.append((*key, same, *[math.nan] * 4, distance, 0.0, same))
    return CompiledProof(_table(rows), chosen.plans[-1], "eager", "", 1, 0)


def _within_rounding(steps: OneStep, chosen: Backend) -> CompiledProof:
    unchanged = "aot_eager" if chosen.execution == "eager" else "inductor"
    by_default = torch._dynamo.lookup_backend(unchanged)
    dropouts = 0

    def dropping_nothing(by: Any) -> Any:
        def compile_graph(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
            nonlocal dropouts
            rewritten, dropouts = without_drops(module)
            rewritten.compile_subgraph_reason = getattr(module, "compile_subgraph_reason", None)  # type: ignore[assignment]
            return by(rewritten, inputs)

        return compile_graph

    planned, unplanned = (steps.compiled(dropping_nothing(by)) for by in (chosen, by_default))
    distances = Distances()
    first = (steps.run(planned), steps.run(unplanned))
    reference, exact, dtype = _reference(steps)
    distances.add(*first, exact)
    if distances.above():
        for draw in range(1, DRAWS):
            with changed(steps.model, draw):
                truth = steps.run(reference[0], reference[1])
                distances.add(steps.run(planned), steps.run(unplanned), truth)
    if dropouts:
        del planned, unplanned
        first = (steps.run(steps.compiled(chosen)), steps.run(steps.compiled(unchanged)))
    return CompiledProof(
        _table(distances.rows(*first)), chosen.plans[-1], chosen.execution, str(dtype)[6:], distances.draws, dropouts
    )


def _reference(steps: OneStep) -> tuple[tuple[LossFn, Reference], Results, torch.dtype]:
    """The most exact reference that runs here, and its results."""
    for dtype, offload in REFERENCES:
        reference = Reference(dtype, offload)
        compiled = steps.compiled(reference)
        try:
            return (compiled, reference), steps.run(compiled, reference), dtype
        except (torch.OutOfMemoryError, NotImplementedError) as error:  # no room, or no kernel of this type
            failure = error.with_traceback(None)
        del reference, compiled
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    raise failure


def _table(rows: list[tuple[Any, ...]]) -> pd.DataFrame:
    import pandas as pd

    return pd.DataFrame(rows, columns=COLUMNS)
