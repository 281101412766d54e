"""Does a rewritten step do what the step did? Both run from the same state, and all that they leave is compared.

    proof = step.verify(batch)
    proof.passed, proof.identical; print(proof.summary()); proof.table

Compared are the loss, every gradient, and every parameter, buffer and optimizer state after the step, bit for bit.
Some GPU kernels (the backward of attention, for one) add in an order that changes from run to run, and then two runs
of the same step differ as well. Such operators are found by running every node of the baseline twice on the same
inputs. Where one occurs in the rewritten step, its inputs must be bitwise those of the baseline, and its results
are then taken from the baseline's run; so what comes after is compared bit for bit again, and nothing is tolerated.
The second run of such an operator, where it is recomputed, must give the bits of the baseline's by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from checkpointing.operators.determinism import tensors_in, unsteady_operators
from checkpointing.rewriting.training_state import preserved, restore
from profiler import TracedStep
from profiler.costs.profile import Call, run_nodes
from profiler.graph.two_runs import deterministic_algorithms, same_bits, where_there_is_room

if TYPE_CHECKING:
    import pandas as pd

BASELINE_RUNS = 3  # of a peer that runs eagerly
TRIES = 2  # steps in which every node runs twice
RECOMPUTED_FROM = "recomputed_from"  # of a copy's meta: the name of its origin


@dataclass(frozen=True)
class Proof:
    """`table` has a row a tensor: kind, name, identical, difference, spread (largest absolute ones), passed.

    `unsteady` are the operators whose kernels are not deterministic here; their inputs are rows of kind "input", and
    what is recomputed with them rows of kind "recomputed".
    """

    table: pd.DataFrame
    unsteady: tuple[str, ...] = ()
    # Where the two steps may round differently: relative errors of the gradients, and of what the step changes in the
    # buffers; and what rounding alone stays below.
    gradient_error: float | None = None
    buffer_error: float | None = None
    rounding_limit: float | None = None

    @property
    def identical(self) -> bool:
        """Whether everything is bitwise equal to a run of the baseline."""
        return bool(self.table["identical"].all())

    @property
    def passed(self) -> bool:
        return bool(self.table["passed"].all())

    @property
    def trains_alike(self) -> bool:
        """Whether the steps differ in rounding at most: no dropout mask drawn anew, no statistic moved twice."""
        if self.passed or self.rounding_limit is None:
            return self.passed
        errors = (self.gradient_error, self.buffer_error)
        return all(error is None or error <= self.rounding_limit for error in errors)  # NaN is not

    @property
    def deterministic(self) -> bool:
        """Whether the baseline's own runs agree bitwise."""
        return not self.unsteady and bool((self.table["spread"] == 0).all())

    def summary(self) -> str:
        """One line a kind of tensor."""
        lines = []
        for kind, rows in self.table.groupby("kind", sort=False):
            same = int(rows["identical"].sum())
            line = f"{kind}: {same} of {len(rows)} bitwise equal"
            other = rows[~rows["identical"]]
            if len(other):
                inside = int(other["passed"].sum())
                line += f", {inside} of the other {len(other)} within the baseline's own spread"
            lines.append(line)
        if self.unsteady:
            lines.append(f"not deterministic: {', '.join(self.unsteady)}")
        return "\n".join([*lines, "passed" if self.passed else f"FAILED: {self._first_failure()}"])

    def _first_failure(self) -> str:
        row = self.table[~self.table["passed"]].iloc[0]
        return f"{row['kind']} {row['name']} is off by {row['difference']:.3g}, and the baseline by {row['spread']:.3g}"


Results = dict[tuple[str, str], Tensor]  # (kind, name) → what a step left


def compare(baseline: TracedStep, rewritten: TracedStep, batch: Sequence[Any]) -> Proof:
    """Run both steps on `batch` from the present state, which is put back afterwards."""
    import pandas as pd

    changed = [item.current(baseline.optimizer) for item in baseline.lifted]
    room = where_there_is_room(baseline.device, changed, copies=1)
    with preserved(baseline, batch, room) as state, deterministic_algorithms():
        unsteady = set[str]().union(*(unsteady_operators(baseline, batch) for _ in range(TRIES)))
        restore(baseline, state)
        known: dict[str, tuple[list[Tensor], Any]] = {}
        expected = _results(baseline, batch, _Recording(baseline, unsteady, known))
        restore(baseline, state)
        replaying = _Replaying(rewritten, known)
        found = _results(rewritten, batch, replaying)
    proof = compare_runs([expected], found)
    rows = [(kind, name, same, float(not same), 0.0, same) for kind, name, same in replaying.rows]
    table = pd.concat([proof.table, pd.DataFrame(rows, columns=proof.table.columns)]) if rows else proof.table
    return Proof(table.reset_index(drop=True), tuple(sorted(unsteady)))


@dataclass
class _Recording:
    """Runs the nodes, and keeps inputs and results of the unsteady operators under the nodes' names."""

    step: TracedStep
    unsteady: set[str]
    known: dict[str, tuple[list[Tensor], Any]]

    def __post_init__(self) -> None:
        self.names = [node.name if str(node.target) in self.unsteady else "" for node in self.step.nodes]

    def __call__(self, rank: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = function(*args, **kwargs)
        if self.names[rank]:
            inputs = [tensor.clone() for tensor in tensors_in((args, kwargs))]
            self.known[self.names[rank]] = (inputs, _cloned(value))
        return value


@dataclass
class _Replaying:
    """Runs the nodes; of an unsteady operator, compares the inputs with the baseline's and gives its results.

    A second run of an unsteady operator gets no such help: if it gives other bits than the first, so does the step.
    """

    step: TracedStep
    known: dict[str, tuple[list[Tensor], Any]]
    rows: list[tuple[str, str, bool]] = field(default_factory=list)  # kind, name, identical

    def __post_init__(self) -> None:
        self.nodes = self.step.nodes

    def __call__(self, rank: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = function(*args, **kwargs)
        node = self.nodes[rank]
        origin = node.meta.get(RECOMPUTED_FROM)
        if (origin or node.name) not in self.known:
            return value
        inputs, results = self.known[origin or node.name]
        if origin is not None:
            self.rows.append(("recomputed", node.name, _all_same(tensors_in(value), tensors_in(results))))
            return value
        self.rows.append(("input", node.name, _all_same(tensors_in((args, kwargs)), inputs)))
        return _cloned(results)


def _all_same(found: Sequence[Tensor], expected: Sequence[Tensor]) -> bool:
    return len(found) == len(expected) and all(same_bits(a, b) for a, b in zip(found, expected, strict=True))


def _cloned(value: Any) -> Any:
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def compare_runs(baseline: Sequence[Results], found: Results) -> Proof:
    """Judge what one step left by what runs of the baseline left, all from the same state.

    Where the baseline's runs agree it must be bitwise equal, and elsewhere as near to one as they are to each other.
    """
    import pandas as pd

    rows = []
    for key in [*found, *(key for key in baseline[0] if key not in found)]:
        if key not in found or key not in baseline[0]:  # one of the two left no such tensor
            rows.append((*key, False, float("inf"), 0.0, False))
            continue
        value, references = found[key], [run[key] for run in baseline]
        spread = max((_distance(a, b) for i, a in enumerate(references) for b in references[:i]), default=0.0)
        difference = min(_distance(value, reference) for reference in references)
        identical = any(same_bits(value, reference) for reference in references)
        rows.append((*key, identical, difference, spread, identical or difference <= spread))
    return Proof(pd.DataFrame(rows, columns=["kind", "name", "identical", "difference", "spread", "passed"]))


def _results(step: TracedStep, batch: Sequence[Any], run: Call) -> Results:
    """Copies of what one step leaves."""
    gradients = {rank_of: name for name, rank_of in _gradient_ranks(step).items()}
    found: Results = {}

    def call(rank: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = run(rank, function, args, kwargs)
        if rank in gradients:
            found["gradient", gradients[rank]] = value.detach().clone()
        return value

    loss = run_nodes(step, batch, call)
    found["loss", "loss"] = loss.detach().clone()
    for item in step.lifted:
        found[item.kind.value, item.name] = item.current(step.optimizer).detach().clone()
    return found


def _gradient_ranks(step: TracedStep) -> dict[str, int]:
    rank_of: dict[fx.Node, int] = {node: rank for rank, node in enumerate(step.nodes)}
    return {name: rank_of[node] for name, node in step.gradients.items()}


def _distance(a: Tensor, b: Tensor) -> float:
    if a.numel() == 0 or same_bits(a, b):
        return 0.0
    if a.shape != b.shape:
        return float("inf")
    if not (a.is_floating_point() or a.is_complex()):
        return float((a != b).sum())
    wide = torch.complex128 if a.is_complex() else torch.float64
    distance = (a.to(wide) - b.to(wide)).abs().max()
    return float(distance) if torch.isfinite(distance) else float("inf")
