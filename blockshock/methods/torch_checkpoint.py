"""The peer that most people use: `torch.utils.checkpoint` around every block of the model, chosen by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from blockshock.errors import ConfigError
from blockshock.methods.shared.eager_step import EagerStep

if TYPE_CHECKING:
    from profiler.models import TrainingTask

# The repeated block of each model of transformers.
BLOCKS = (
    "BertLayer",
    "GPT2Block",
    "LlamaDecoderLayer",
    "ViTLayer",
    "ResNetBottleNeckLayer",
    "ResNetBasicLayer",
)


@dataclass
class TorchCheckpoint:
    acts_on: ClassVar[str] = "model"
    exact: ClassVar[bool] = False  # a peer: how far it is from the plain step is recorded, not required

    name: str

    def build_step(self, problem: TrainingTask, optimizer: torch.optim.Optimizer) -> EagerStep:
        """Every block keeps its input alone, and runs again in the backward."""
        blocks = [module for module in problem.model.modules() if type(module).__name__ in BLOCKS]
        if not blocks:
            raise ConfigError("method", self.name, f"the model has no block among {', '.join(BLOCKS)}")

        def loss(*batch: Any) -> Tensor:
            with _checkpointed(blocks):
                return problem.loss_fn(problem.model, *batch)

        return EagerStep(problem, optimizer, loss)


@contextmanager
def _checkpointed(blocks: list[nn.Module]) -> Iterator[None]:
    from torch.utils.checkpoint import checkpoint

    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward  # the class's own is there again
