"""The training step as it is: every activation is kept until its last use."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

if TYPE_CHECKING:
    from profiler import TracedStep
    from profiler.models import TrainingTask


@dataclass
class KeepAll:
    acts_on: ClassVar[str] = "model"
    traces_whole_step: ClassVar[bool] = True

    name: str

    def build_step(self, problem: TrainingTask, optimizer: torch.optim.Optimizer) -> TracedStep:
        """The step as one graph. `step(*problem.batch)` trains the model."""
        from profiler import trace_train_step

        return trace_train_step(problem.model, problem.loss_fn, optimizer, problem.batch)
