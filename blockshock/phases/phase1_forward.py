"""Phase 1: the forward pass, from this rank's input to all of Y on every rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from blockshock.jobs.execution import Execution
from blockshock.phases import TimedPhase


@dataclass
class Forward(TimedPhase):
    acts_on: ClassVar[str] = "built"

    def run(self, execution: Execution) -> float:
        """Record the forward time; its median in ms (0 with timing=none)."""
        layer, build = execution.build()
        verdicts = execution.check(layer, ("Y",))
        x = layer.shard_input(execution.problem.inputs())
        layer.requires_grad_(False)
        with torch.no_grad():
            timings, fields = execution.measure("forward", lambda: layer(x), build)
        forward_ms = timings["forward"]["p50_ms"] if "forward" in timings else 0.0
        floor = execution.roofline([layer.costs()["forward"]], forward_ms)
        execution.write(layer, timings, correctness=verdicts, roofline=floor, **fields)
        return float(forward_ms)
