"""Phase 0: is Y, and are dX and dW, what exact arithmetic says?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from blockshock.jobs.correctness import QUANTITIES
from blockshock.jobs.execution import Execution
from blockshock.measure.summarize import summarize


@dataclass
class Correctness:
    acts_on: ClassVar[str] = "built"

    name: str

    def run(self, execution: Execution) -> float:
        """Record the errors of Y, dX and dW; the relative error of Y."""
        layer, build = execution.build()
        verdicts = execution.check(layer, QUANTITIES)
        timings = {name: summarize(samples) for name, samples in build.items()}
        execution.write(layer, timings, correctness=verdicts)
        return float(verdicts["Y"]["relative_error"])
