"""Training runs that are compared step by step: a method's, and those of dense layers or models.

    runs = TrainingRuns(problem, options, steps=200)
    for mine, dense, exact in zip(runs.of(layer), runs.dense(problem.dtype), runs.exact()):
        abs(mine.loss - exact.loss), errors(mine.y, exact.y)

All runs start from the same weights and read the same batches. The dense runs of a model depend on no method and take
most of the time, so they are computed once and kept on disk (measure/arrays.py), with a sample of each step's outputs
and weights (sample.py); those of a layer run next to the method's, and all elements are compared.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from blockshock.jobs.correctness import ENOUGH
from blockshock.jobs.sample import Sample
from blockshock.measure.arrays import Arrays, cached_arrays
from blockshock.measure.cpu import cpu_name
from blockshock.methods import ParallelModule
from blockshock.problem import LargeRun, Problem, generator
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.phases import TrainingOptions

log = logging.getLogger("blockshock")
KIND = "reference"  # of files in the cache
# Whoever decides what a model's dense run computes: a change of any of them makes another run.
_COMPUTED_BY = (
    "blockshock.jobs.training_run",
    "blockshock.jobs.sample",
    "blockshock.problem",
    "blockshock.phases",
    "blockshock.methods.pairs.model",
    "blockshock.workloads.model",
    "profiler.models",
)


@dataclass(frozen=True)
class Seen:
    """One step: the loss of its batch, in float64; outputs, and weights after the update, or samples of them."""

    loss: float
    y: Tensor
    weights: Tensor


@dataclass(frozen=True)
class TrainingRuns:
    """Runs of `steps` steps on the problem; `options` are of a phase that trains."""

    problem: Problem
    options: TrainingOptions
    steps: int

    def of(self, layer: ParallelModule) -> Iterator[Seen]:
        """The method's run. A collective."""
        optimizer = self.options.make_optimizer(list(layer.parameters()))
        for step in range(1, self.steps + 1):
            x, target = self.problem.inputs(step), self.problem.target(step)
            y = layer(layer.shard_input(x))
            self._update(optimizer, self.problem.loss(self.options.loss, y, target))
            layer.after_optimizer_step(step)
            y = y.detach()
            weights = layer.assemble_weights([p.detach() for p in layer.parameters()])
            yield Seen(self._loss(y, target), self._of_y(y), self._of_weights(weights))

    def dense(self, dtype: torch.dtype) -> Iterable[Seen]:
        """The run on one device in `dtype`. A collective."""
        if self._large is None:
            return self._whole(dtype)
        return self._kept(self._large, self._whole(dtype), dtype, split=False)

    def exact(self) -> Iterable[Seen]:
        """The run in float64. A collective: the ranks share a model's batch, and sum their gradients in float64.

        So it is the run on one device within the rounding of float64, whatever the number of ranks. (Of a model that
        itself computes in float32, as transformers' norms of Llama do, within the rounding of that.)
        """
        if self._large is None:
            return self._whole(torch.float64)
        return self._kept(self._large, self._split(), torch.float64, split=True)

    @property
    def compared(self) -> dict[str, int]:
        """How many elements are compared where it isn't all: of the outputs, of the weights."""
        samples = self._samples
        return {"outputs_compared": len(samples[0]), "weights_compared": len(samples[1])} if samples else {}

    def _whole(self, dtype: torch.dtype) -> Iterator[Seen]:
        module = self.problem.dense(dtype)
        optimizer = self.options.make_optimizer(list(module.parameters()))
        for step in range(1, self.steps + 1):
            x, target = self.problem.inputs(step), self.problem.target(step)
            y = module(self.problem.cast(x, dtype))
            self._update(optimizer, self.problem.loss(self.options.loss, y, target))
            y = y.detach()
            yield Seen(self._loss(y, target), self._of_y(y), self._of_weights(list(module.parameters())))

    def _split(self) -> Iterator[Seen]:
        """Each rank with its samples of the batch: the loss is a mean over rows, of which every sample has as many."""
        assert self._samples is not None
        module = self.problem.dense(torch.float64)
        optimizer = self.options.make_optimizer(list(module.parameters()))
        for step in range(1, self.steps + 1):
            x, target = self.problem.inputs(step), self.problem.target(step)
            own, share = share_of(len(x))
            rows = len(target) // len(x)
            y = module(self.problem.cast(x[own], torch.float64))
            target = target[own.start * rows : own.stop * rows]
            self._update(optimizer, share * self.problem.loss(self.options.loss, y, target), summed=module)
            y = y.detach()
            seen = self._samples[0].of_rows(y, own.start * rows) * (share > 0)
            loss = torch.tensor([share * self._loss(y, target)], dtype=torch.float64, device=y.device)
            summed = distributed.allreduce_sum(torch.cat([loss, seen]))  # of a sampled output, other ranks have zeros
            yield Seen(float(summed[0]), summed[1:], self._of_weights(list(module.parameters())))

    def _update(self, optimizer: torch.optim.Optimizer, loss: Tensor, summed: nn.Module | None = None) -> None:
        optimizer.zero_grad()
        loss.backward()
        for parameter in summed.parameters() if summed else ():
            if parameter.grad is not None:
                distributed.allreduce_sum(parameter.grad)
        optimizer.step()

    def _loss(self, y: Tensor, target: Tensor) -> float:
        """Not rounded to the output's dtype, in which near losses are one number."""
        return float(self.problem.loss(self.options.loss, y.double(), target))

    def _of_y(self, y: Tensor) -> Tensor:
        return self._samples[0].of([y]) if self._samples else y

    def _of_weights(self, weights: Sequence[Tensor]) -> Tensor:
        if self._samples:
            return self._samples[1].of(weights)
        return torch.cat([weight.detach().flatten() for weight in weights])

    @cached_property
    def _large(self) -> LargeRun | None:
        return self.problem.large_run()

    @cached_property
    def _samples(self) -> tuple[Sample, Sample] | None:
        """Of the outputs and of the weights; None: all are compared."""
        if self._large is None:
            return None
        drawn = generator(self.problem.seed, "compared", torch.device("cpu"))
        return Sample([self._large.outputs], ENOUGH, drawn), Sample(self._large.weights, ENOUGH, drawn)

    def _kept(self, large: LargeRun, run: Iterator[Seen], dtype: torch.dtype, split: bool) -> list[Seen]:
        """The run, from disk if it is known."""
        assert self._samples is not None
        outputs, weights = self._samples
        shapes = {"loss": (self.steps,), "y": (self.steps, len(outputs)), "weights": (self.steps, len(weights))}
        found = cached_arrays(KIND, self._key(large, dtype, split), shapes, lambda: self._arrays(run))
        y, w = (torch.from_numpy(found[name]).to(self.problem.device) for name in ("y", "weights"))
        return [Seen(float(loss), *rest) for loss, *rest in zip(found["loss"], y, w, strict=True)]

    def _arrays(self, run: Iterator[Seen]) -> Arrays:
        seen = []
        for step, one in enumerate(run, start=1):
            seen.append((one.loss, one.y.cpu().numpy(), one.weights.cpu().numpy()))
            if step % max(1, self.steps // 10) == 0:
                log.info("%s: step %d of %d", KIND, step, self.steps)
        loss, y, weights = zip(*seen, strict=True)
        return {"loss": np.array(loss), "y": np.stack(y), "weights": np.stack(weights)}

    def _key(self, large: LargeRun, dtype: torch.dtype, split: bool) -> dict[str, Any]:
        """All that a dense run depends on, apart from how many ranks shared a split one."""
        problem, options = self.problem, self.options
        return {
            "model": large.name,
            "dtype": str(dtype).removeprefix("torch."),
            "steps": self.steps,
            "split": split,
            "weights": str(problem.dtype).removeprefix("torch."),  # to which they are rounded at first
            "seed": problem.seed,
            "optimizer": options.optimizer,
            "lr": options.lr,
            "loss": problem.loss_name(options.loss),
            **_computed_with(problem.device),
        }


def share_of(samples: int) -> tuple[slice, float]:
    """This rank's part of a batch, and its share of the mean over it.

    Ranks beyond the number of samples get a share of 0 in another rank's part: gradients of zeros, which add nothing.
    """
    ranks = min(distributed.world_size(), samples)
    part = distributed.rank() % ranks
    own = slice(part * samples // ranks, (part + 1) * samples // ranks)
    return own, (own.stop - own.start) / samples if distributed.rank() < ranks else 0.0


def _computed_with(device: torch.device) -> dict[str, Any]:
    """The device, the versions and the code."""
    on: dict[str, Any] = {"device": cpu_name(), "threads": torch.get_num_threads()}
    if device.type == "cuda":
        on = {"device": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
        on["cudnn"] = torch.backends.cudnn.version()
    return {
        **on,
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "code": _code(),
    }


@cache
def _code() -> str:
    digest = hashlib.blake2b(digest_size=12)
    for name in _COMPUTED_BY:
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        digest.update(Path(spec.origin).read_bytes())
    return digest.hexdigest()
