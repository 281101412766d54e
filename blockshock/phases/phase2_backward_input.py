"""Phase 2: forward, then backward with respect to the input, the weights frozen (as under a frozen base model)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from blockshock.errors import ConfigError
from blockshock.jobs.execution import Execution
from blockshock.measure.timing import region
from blockshock.phases import TimedPhase

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class BackwardInput(TimedPhase):
    acts_on: ClassVar[str] = "built"

    def check(self, job: Job) -> None:
        super().check(job)
        if getattr(job.workload, "acts_on", "layer") == "model":
            problem = "its input, token ids or images, needs no gradient; use phase=phase3_train_step"
            raise ConfigError("workload", job.workload.name, problem)

    def run(self, execution: Execution) -> float:
        """Record the times of both passes; the median of the backward pass in ms (0 with timing=none)."""
        layer, build = execution.build()
        verdicts = execution.check(layer, ("Y", "dX"))
        layer.requires_grad_(False)
        x = layer.shard_input(execution.problem.inputs()).detach().requires_grad_()
        upstream = execution.problem.upstream_gradient()

        def step() -> None:
            x.grad = None
            with region("forward"):
                y = layer(x)
            with region("backward"):
                y.backward(upstream)

        timings, fields = execution.measure("total_step", step, build)
        costs = layer.costs()
        step_ms = timings["total_step"]["p50_ms"] if "total_step" in timings else None
        floor = execution.roofline([costs["forward"], costs["backward_input"]], step_ms)
        execution.write(layer, timings, correctness=verdicts, roofline=floor, **fields)
        return float(timings["backward"]["p50_ms"]) if step_ms else 0.0
