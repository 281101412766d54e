"""Phase 3: a whole training step: forward, loss, backward (dX and dW), optimizer, and any compression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from blockshock.errors import ConfigError
from blockshock.jobs.correctness import QUANTITIES
from blockshock.jobs.execution import Execution
from blockshock.measure.roofline import Cost
from blockshock.phases import OPTIMIZERS, TimedPhase, TrainingOptions
from blockshock.ranks.distributed import local_bytes

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class TrainStep(TrainingOptions, TimedPhase):
    acts_on: ClassVar[str] = "built"

    input_grad: bool = True  # also compute dX, as every layer but a network's first must

    def check(self, job: Job) -> None:
        self.check_training()
        # A step that differs from its neighbours can't be one captured graph.
        differs = getattr(job.method, "compress_every", 1) > 1
        if differs and self.timing == "cuda_graph":
            raise ConfigError("phase.timing", self.timing, "with compress_every > 1 steps differ; use cuda_events")
        if differs and self.timing == "auto" and job.hardware.device == "cuda":
            self.timing = "cuda_events"
        super().check(job)

    def run(self, execution: Execution) -> float:
        """Record the times of the step and its parts; the median step in ms (0 with timing=none)."""
        problem = execution.problem
        layer, build = execution.build()
        verdicts = execution.check(layer, QUANTITIES)
        step, optimizer = self.make_step(layer, problem, self.input_grad)
        first_loss = float(step())
        timings, fields = execution.measure("total_step", step, build)
        last_loss = float(step())

        costs = layer.costs()
        backward = costs["backward_weight"] + (costs["backward_input"] if self.input_grad else Cost())
        parameter_bytes = local_bytes(layer.parameters())
        update = Cost(memory_bytes=OPTIMIZERS[self.optimizer] * parameter_bytes)
        step_ms = timings["total_step"]["p50_ms"] if "total_step" in timings else None
        states = [value for state in optimizer.state.values() for value in state.values()]
        state_bytes = local_bytes(value for value in states if isinstance(value, torch.Tensor))
        execution.write(
            layer,
            timings,
            correctness=verdicts,
            roofline=execution.roofline([costs["forward"], backward, update], step_ms),
            gradient_bytes=parameter_bytes,
            optimizer_bytes=state_bytes,
            training={
                "optimizer": self.optimizer,
                "loss": problem.loss_name(self.loss),
                "first": first_loss,
                "last": last_loss,
            },
            **fields,
        )
        return float(step_ms or 0.0)
