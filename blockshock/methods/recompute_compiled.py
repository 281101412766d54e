"""The compiled training step with activations recomputed under a memory budget: `checkpointing.backend`.

Measured as `torch_compile` is: the loss is compiled, the optimizer stays outside, and a step is compared with
`torch.compile` alone, from the same state and seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from blockshock.errors import ConfigError, WrongValue, one_of
from blockshock.methods.shared.eager_step import EagerStep, compiled_alone

if TYPE_CHECKING:
    from blockshock.config import Job
    from checkpointing import CompiledPlan
    from profiler.models import TrainingTask

BACKENDS = {"inductor": "inductor", "eager": "aot_eager"}  # execution -> what runs the unplanned step in the same way


@dataclass
class RecomputeCompiled:
    """`memory_budget`: the step's peak in bytes or as "24GiB", or a fraction of the unplanned step's peak."""

    acts_on: ClassVar[str] = "model"
    trains_alike: ClassVar[bool] = True  # required: the masks, gradients and statistics of torch.compile alone
    data_parallel: ClassVar = ("ddp", "fsdp2")  # a budget is of one graph

    name: str
    memory_budget: Any = 0.7
    solver: str = "optimal"  # optimal | greedy
    execution: str = "inductor"  # inductor | eager: operators one by one
    mode: str = "default"  # default | reduce-overhead (CUDA graphs)
    chunked_loss: int | str | None = None  # null: auto with inductor, plain with eager

    @property
    def exact(self) -> bool:
        """Whether the step must be bitwise equal to torch.compile's: other fusions and sums round differently."""
        return self.execution == "eager" and self.chunked_loss in (None, "plain")

    def check(self, job: Job) -> None:
        from checkpointing import BudgetError
        from checkpointing.budget import check
        from checkpointing.compiled.backend import MODES, REDUCE_OVERHEAD

        one_of("method.solver", self.solver, ("optimal", "greedy"))
        one_of("method.execution", self.execution, BACKENDS)
        one_of("method.mode", self.mode, MODES)
        if self.mode == REDUCE_OVERHEAD and (job.hardware.device != "cuda" or self.execution != "inductor"):
            problem = "CUDA graphs need a GPU and method.execution=inductor: use method.mode=default"
            raise ConfigError("method.mode", self.mode, problem)
        chunks = self.chunked_loss
        if chunks not in (None, "auto", "plain") and not (isinstance(chunks, int) and chunks >= 1):
            raise WrongValue("method.chunked_loss", chunks, "must be a positive whole number, auto, plain, or null")
        try:
            check(self.memory_budget)
        except BudgetError as error:
            raise ConfigError("method.memory_budget", self.memory_budget, str(error).partition(": ")[2]) from error

    def build_step(self, problem: TrainingTask, optimizer: torch.optim.Optimizer) -> PlannedStep:
        """The first call plans and compiles. It raises ConfigError for a budget that no plan meets."""
        from checkpointing import BudgetError, backend

        torch._dynamo.reset()  # a step compiled before under another budget would be taken again
        planner = backend(
            self.memory_budget, execution=self.execution, solver=self.solver, chunked_loss=self.chunked_loss
        )
        compiled = torch.compile(problem.loss_fn, backend=planner, mode=self.mode, dynamic=False)

        def loss(*batch: Any) -> Tensor:
            try:
                return compiled(problem.model, *batch)
            except BudgetError as error:
                why = "that is " + str(error).partition(" is ")[2]
                raise ConfigError("method.memory_budget", self.memory_budget, why) from error

        words = [self.solver, *([] if self.execution == "inductor" else [self.execution])]
        words += [] if self.mode == "default" else [self.mode]
        said: dict[Any, str] = {None: "", "auto": "loss in planned chunks", "plain": "loss in one piece"}
        words += filter(None, [said.get(self.chunked_loss, f"loss in {self.chunked_loss} chunks")])
        return PlannedStep(
            problem, optimizer, loss, compiled_alone(problem, BACKENDS[self.execution]), ", ".join(words)
        )


@dataclass
class PlannedStep(EagerStep):
    """A step that was planned when it first ran."""

    @property
    def compiled_plan(self) -> CompiledPlan:
        from checkpointing import plan_of

        return plan_of(self.problem.model)
