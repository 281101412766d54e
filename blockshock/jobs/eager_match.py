"""A traced step is compared with an eager one before anything is measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from blockshock.jobs.correctness import CheckFailed
from blockshock.jobs.execution import Execution

if TYPE_CHECKING:
    from profiler import TracedStep


def compare_with_eager(execution: Execution, step: TracedStep, batch: Sequence[Any]) -> dict[str, Any] | None:
    """For the record: how many tensors were compared, which differ, and which differ between two eager steps.

    None where the memory for it is not there. On a CPU a difference fails the run; on a GPU, where libraries may choose
    other kernels for the same operator, it is logged and recorded.
    """
    execution.log("comparing with an eager step")
    try:
        match = step.matches_eager(batch)
    except torch.OutOfMemoryError:
        execution.log("there is no memory to compare with an eager step: left out")
        return None
    execution.log("%s", match.summary())
    if not match and execution.device.type == "cpu":
        raise CheckFailed(match.summary())
    return {"compared": match.compared, "differing": list(match.differing), "unsteady": list(match.unsteady)}
