"""The peer that most people use: `torch.utils.checkpoint` around every block of the model, chosen by hand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from blockshock.errors import ConfigError
from blockshock.methods.shared.checkpointed_blocks import BLOCKS, blocks_of, checkpointed
from blockshock.methods.shared.eager_step import EagerStep

if TYPE_CHECKING:
    from profiler.models import TrainingTask


@dataclass
class TorchCheckpoint:
    acts_on: ClassVar[str] = "model"
    exact: ClassVar[bool] = False  # a peer: how far it is from the plain step is recorded, not required
    data_parallel: ClassVar = ("ddp", "fsdp2")

    name: str

    def build_step(self, problem: TrainingTask, optimizer: torch.optim.Optimizer) -> EagerStep:
        """Every block keeps its input alone, and runs again in the backward."""
        blocks = blocks_of(problem.model)
        if not blocks:
            raise ConfigError("method", self.name, f"the model has no block among {', '.join(BLOCKS)}")

        def loss(*batch: Any) -> Tensor:
            with checkpointed(blocks):
                return problem.loss_fn(problem.model, *batch)

        return EagerStep(problem, optimizer, loss)
