"""The compiler as a peer: `torch.compile`, whose partitioner recomputes under `activation_memory_budget`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from blockshock.errors import ConfigError, one_of
from blockshock.methods.shared.eager_step import EagerStep

if TYPE_CHECKING:
    from blockshock.config import Job
    from profiler.models import TrainingTask


@dataclass
class TorchMemoryBudget:
    """`memory_budget` is the compiler's own: 1 keeps what it would keep, 0 recomputes all that it may."""

    acts_on: ClassVar[str] = "model"
    exact: ClassVar[bool] = False  # a peer: how far it is from the plain step is recorded, not required

    name: str
    backend: str = "aot_eager"  # aot_eager: operators one by one | inductor: fused kernels
    memory_budget: float = 0.5

    def check(self, job: Job) -> None:
        one_of("method.backend", self.backend, ("aot_eager", "inductor"))
        if not 0 <= self.memory_budget <= 1:
            raise ConfigError("method.memory_budget", self.memory_budget, "the compiler's budget is between 0 and 1")

    def build_step(self, problem: TrainingTask, optimizer: torch.optim.Optimizer) -> EagerStep:
        """The loss compiled; the first call compiles."""
        import torch._functorch.config as functorch_config

        torch._dynamo.reset()  # a step compiled before with another budget would be taken again
        compiled = torch.compile(problem.loss_fn, backend=self.backend, dynamic=False)

        def loss(*batch: Any) -> Tensor:
            with functorch_config.patch(activation_memory_budget=self.memory_budget):
                return compiled(problem.model, *batch)

        return EagerStep(problem, optimizer, loss)
