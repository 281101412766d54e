"""Which pairing a job gets: the one that was named, or under `auto` the first of PAIRINGS that its method has.

A new pairing is a subclass of `ParallelPair` in a file of its own in this folder, and its entry in PAIRINGS. A method
takes part by a `build_column_row` or a `build_partial`; every method has `layers`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from blockshock.errors import ConfigError, one_of
from blockshock.methods.pairs.column_row import ColumnRowPair
from blockshock.methods.pairs.layers import LayersPair
from blockshock.methods.pairs.pair import ParallelPair
from blockshock.methods.pairs.reduce_scatter import ReduceScatterPair

if TYPE_CHECKING:
    from blockshock.config import Job

# By value of `workload.pairing`, the one that sends least first.
PAIRINGS: dict[str, type[ParallelPair]] = {
    "column_row": ColumnRowPair,
    "reduce_scatter": ReduceScatterPair,
    "layers": LayersPair,
}


def pairing_of(job: Job, name: str = "auto") -> type[ParallelPair]:
    """The pairing `name` of the job's method. Raises ConfigError where the method has none such."""
    one_of("workload.pairing", name, ("auto", *PAIRINGS))
    if name == "auto":
        return next(pairing for pairing in PAIRINGS.values() if pairing.unsupported(job) is None)
    problem = PAIRINGS[name].unsupported(job)
    if problem:
        raise ConfigError("workload.pairing", name, f"{problem} (method={job.method.name})")
    return PAIRINGS[name]
