"""Phase X: how far does a method drift from exact arithmetic when its errors feed back?

`mode=apply`: the layer is applied T times to its own normalised output. `mode=train`: the layer is trained T steps on
fresh batches. Beside it run a dense layer in the same dtype and one in float64; the error is against the latter. A
model's dense runs are kept on disk for the next method (jobs/training_run.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import pandas as pd
import torch

from blockshock.errors import ConfigError, at_least, one_of
from blockshock.jobs.correctness import errors
from blockshock.jobs.execution import Execution
from blockshock.jobs.training_run import TrainingRuns
from blockshock.masks import prunes
from blockshock.methods import ParallelModule
from blockshock.phases import TrainingOptions
from blockshock.problem import Problem
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class Drift(TrainingOptions):
    acts_on: ClassVar[str] = "built"
    files: ClassVar = ("drift.csv",)
    name: str = "phasex_drift"
    mode: str = "apply"  # apply | train
    steps: int = 50

    def check(self, job: Job) -> None:
        self.check_training()
        one_of("phase.mode", self.mode, ("apply", "train"))
        at_least("phase.steps", self.steps, 1)
        if self.mode == "train" and prunes(job.mask):
            problem = f"dense methods let what mask={job.mask.name} prunes grow again; use phase.mode=apply"
            raise ConfigError("phase.mode", self.mode, problem)
        if self.mode == "apply" and getattr(job.workload, "acts_on", "layer") == "model":
            raise ConfigError("phase.mode", self.mode, "a model is not applied to its own output; use phase.mode=train")
        if self.mode == "apply" and job.model.K != job.model.N:
            raise ConfigError("model.K", job.model.K, f"a layer applied to its own output needs K = N = {job.model.N}")

    def run(self, execution: Execution) -> float:
        """Record one line a step and drift.csv; the last step's relative error."""
        layer, _ = execution.build()
        verdicts = execution.check(layer, ("Y",))
        walk = self._apply if self.mode == "apply" else self._train
        rows: list[dict[str, Any]] = []
        for step, found in enumerate(walk(execution.problem, layer), start=1):
            row = {"mode": self.mode, "step": step, **found}
            rows.append(row)
            execution.write(layer, {}, drift=row, **({"correctness": verdicts} if step == 1 else {}))
            if step % max(1, self.steps // 10) == 0:
                execution.log("step %d of %d", step, self.steps)
            if not math.isfinite(found["output_error"]):
                raise FloatingPointError(f"the output is no longer finite after {step} steps")
        if distributed.rank() == 0:
            pd.DataFrame(rows).to_csv(execution.folder.path / "drift.csv", index=False)
        return float(rows[-1]["output_error"])

    @torch.no_grad()
    def _apply(self, problem: Problem, layer: ParallelModule) -> Iterator[dict[str, float]]:
        in_dtype, in_float64 = problem.dense(problem.dtype), problem.dense(torch.float64)
        x = problem.inputs()
        dense, exact = x, x.double()
        for _ in range(self.steps):
            x = _normalized(layer(layer.shard_input(x)))
            dense = _normalized(in_dtype(dense))
            exact = _normalized(in_float64(exact))
            yield _worst(output_error=errors(x, exact)[0], dense_output_error=errors(dense, exact)[0])

    def _train(self, problem: Problem, layer: ParallelModule) -> Iterator[dict[str, Any]]:
        runs = TrainingRuns(problem, self, self.steps)
        dense_run, exact_run = runs.dense(problem.dtype), runs.exact()
        for mine, dense, exact in zip(runs.of(layer), dense_run, exact_run, strict=True):
            yield runs.compared | _worst(
                output_error=errors(mine.y, exact.y)[0],
                dense_output_error=errors(dense.y, exact.y)[0],
                weight_error=errors(mine.weights, exact.weights)[0],
                dense_weight_error=errors(dense.weights, exact.weights)[0],
                loss=mine.loss,
                dense_loss=dense.loss,
                exact_loss=exact.loss,
            )


def _normalized(y: torch.Tensor) -> torch.Tensor:
    """Rows of unit mean square, so that T applications neither overflow nor vanish; rounded once."""
    wide = y if y.dtype == torch.float64 else y.float()
    return (wide * wide.square().mean(dim=1, keepdim=True).rsqrt()).to(y.dtype)


def _worst(**values: Any) -> dict[str, float]:
    return dict(zip(values, distributed.max_over_ranks(list(values.values())), strict=True))
