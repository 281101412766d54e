"""What this library refuses, each with one sentence that says what was given and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from checkpointing.compiled.proof.prove import CompiledProof


class CheckpointingError(ValueError):
    """The parent of every error that this library raises on purpose."""


class BudgetError(CheckpointingError):
    """The budget cannot be read, or no plan meets it. `minimum_bytes`: the lowest peak of a plan, where it is known."""

    def __init__(self, message: str, minimum_bytes: int | None = None) -> None:
        super().__init__(message)
        self.minimum_bytes = minimum_bytes


class IllegalPlanError(CheckpointingError):
    """The plan belongs to another graph, or recomputes what may not be recomputed."""


class DecisionsFileError(CheckpointingError):
    """A file of decisions lacks a column, has an empty cell, or names what the step does not have."""


class CostError(CheckpointingError):
    """An operator cannot be timed on its own: it is out of memory, not supported, or its shapes are not known."""


class GraphBreakError(CheckpointingError):
    """The compiled step falls into several graphs, and a budget is of the whole step."""


class ProofError(CheckpointingError):
    """The compiled step under a budget does not do what the compiled step does without one. `proof` is the evidence."""

    def __init__(self, message: str, proof: CompiledProof) -> None:
        super().__init__(message)
        self.proof = proof
