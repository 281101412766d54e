"""The training step with activations recomputed under a memory budget: the planners of `checkpointing`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from blockshock.errors import ConfigError, one_of

if TYPE_CHECKING:
    from blockshock.config import Job
    from checkpointing import CheckpointedStep
    from profiler.models import TrainingTask


@dataclass
class Recompute:
    """`memory_budget`: the step's peak in bytes or as "24GiB", or a fraction of its activation memory."""

    acts_on: ClassVar[str] = "model"
    traces_whole_step: ClassVar[bool] = True
    exact: ClassVar[bool] = True  # the step must be the unchanged step's equal

    name: str
    solver: str = "optimal"  # optimal | greedy | save_matmuls | all | none
    memory_budget: Any = 0.5

    def check(self, job: Job) -> None:
        from checkpointing import SOLVERS, BudgetError
        from checkpointing.budget import check

        one_of("method.solver", self.solver, SOLVERS)
        try:
            check(self.memory_budget)
        except BudgetError as error:
            raise ConfigError("method.memory_budget", self.memory_budget, str(error).partition(": ")[2]) from error

    def build_step(self, problem: TrainingTask, optimizer: torch.optim.Optimizer) -> CheckpointedStep:
        """Trace, profile, plan, rewrite. Raises ConfigError for a budget that no plan meets."""
        from checkpointing import BudgetError, apply_activation_checkpointing

        try:
            return apply_activation_checkpointing(
                problem.model, problem.loss_fn, optimizer, problem.batch, self.memory_budget, self.solver
            )
        except BudgetError as error:
            why = "that is " + str(error).partition(" is ")[2]
            raise ConfigError("method.memory_budget", self.memory_budget, why) from error
