"""Does a rewritten step do what the step did? Both run from the same state, and all that they leave is compared.

    proof = step.verify(batch)
    proof.passed, proof.identical; print(proof.summary()); proof.table

Compared are the loss, every gradient, and every parameter, buffer and optimizer state after the step, bit for bit.
Some GPU kernels add in an order that changes from run to run. So PyTorch's deterministic algorithms are switched on
for the comparison, where there are any, and the baseline runs several times: a tensor in which its own runs agree
must be equal to the bit, and one in which they differ must be as near to a run of the baseline as the runs are to
each other.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, fx

from checkpointing.state import preserved, restore, where_there_is_room
from profiler import TracedStep
from profiler.profile import run_nodes

BASELINE_RUNS = 3


@dataclass(frozen=True)
class Proof:
    """`table` has a row a tensor: kind, name, identical, difference, spread (largest absolute ones), passed."""

    table: pd.DataFrame

    @property
    def identical(self) -> bool:
        """Whether everything is equal to the bit to a run of the baseline."""
        return bool(self.table["identical"].all())

    @property
    def passed(self) -> bool:
        return bool(self.table["passed"].all())

    @property
    def deterministic(self) -> bool:
        """Whether the baseline's own runs agree to the bit."""
        return bool((self.table["spread"] == 0).all())

    def summary(self) -> str:
        """One line a kind of tensor."""
        lines = []
        for kind, rows in self.table.groupby("kind", sort=False):
            same = int(rows["identical"].sum())
            line = f"{kind}: {same} of {len(rows)} equal to the bit"
            other = rows[~rows["identical"]]
            if len(other):
                inside = int(other["passed"].sum())
                line += f", {inside} of the other {len(other)} within the baseline's own spread"
            lines.append(line)
        return "\n".join([*lines, "passed" if self.passed else f"FAILED: {self._first_failure()}"])

    def _first_failure(self) -> str:
        row = self.table[~self.table["passed"]].iloc[0]
        return f"{row['kind']} {row['name']} is off by {row['difference']:.3g}, and the baseline by {row['spread']:.3g}"


Results = dict[tuple[str, str], Tensor]  # (kind, name) → what a step left


def compare(baseline: TracedStep, rewritten: TracedStep, batch: Sequence[Any]) -> Proof:
    """Run both steps on `batch` from the present state, which is put back afterwards."""
    runs = []
    with preserved(baseline, where_there_is_room(baseline)) as state, deterministic_algorithms():
        for step in [baseline] * BASELINE_RUNS + [rewritten]:
            restore(baseline, state)
            runs.append(_results(step, batch))
    return compare_runs(runs[:-1], runs[-1])


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """PyTorch's deterministic algorithms where it has them; memory that an operator leaves unset is filled with NaN."""
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


def compare_runs(baseline: Sequence[Results], found: Results) -> Proof:
    """Judge what one step left by what several runs of the baseline left, all from the same state."""
    rows = []
    for key, value in found.items():
        references = [run[key] for run in baseline]
        spread = max((_distance(a, b) for i, a in enumerate(references) for b in references[:i]), default=0.0)
        difference = min(_distance(value, reference) for reference in references)
        identical = any(_same_bits(value, reference) for reference in references)
        rows.append((*key, identical, difference, spread, identical or difference <= spread))
    return Proof(pd.DataFrame(rows, columns=["kind", "name", "identical", "difference", "spread", "passed"]))


def _results(step: TracedStep, batch: Sequence[Any]) -> Results:
    """Copies of what one step leaves."""
    gradients = {rank_of: name for name, rank_of in _gradient_ranks(step).items()}
    found: Results = {}

    def call(rank: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        value = function(*args, **kwargs)
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


def _same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal to the bit; NaN of the same bits is equal, and 0 is not -0."""
    if a.is_floating_point():
        integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
    return torch.equal(a, b)


def _distance(a: Tensor, b: Tensor) -> float:
    if a.numel() == 0 or _same_bits(a, b):
        return 0.0
    if not a.is_floating_point():
        return float((a != b).sum())
    distance = (a.double() - b.double()).abs().max()
    return float(distance) if torch.isfinite(distance) else float("inf")
