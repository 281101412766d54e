"""What is done with a layer. A phase is a dataclass with `name`, its options, `check(job)` and `run(execution)`.

`run` is called on every rank and returns the number that a sweeper may minimise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from blockshock.errors import ConfigError, at_least, one_of
from blockshock.measure.timing import MODES, region

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.methods import ParallelModule
    from blockshock.problem import Problem


@dataclass
class TimedPhase:
    """Options of every phase that measures time. `auto` is settled by `check`, so that records say what was done."""

    name: str
    warmup_iters: int = 5
    timed_iters: int = 20
    blocks: int = 5  # how often warm-up and timed iterations are repeated: what intervals are made from
    timing: str = "auto"  # auto: cuda_graph on GPUs, sync on a CPU
    flush_l2: bool | None = None  # start every iteration with cold caches; default: on GPUs

    def check(self, job: Job) -> None:
        at_least("phase.warmup_iters", self.warmup_iters, 1)
        at_least("phase.timed_iters", self.timed_iters, 1)
        at_least("phase.blocks", self.blocks, 1)
        one_of("phase.timing", self.timing, ("auto", *MODES))
        gpu = job.hardware.device == "cuda"
        graphs = gpu and (job.hardware.backend == "nccl" or job.hardware.world_size == 1)
        if self.timing == "auto":
            self.timing = "cuda_graph" if graphs else "cuda_events" if gpu else "sync"
        if self.timing.startswith("cuda") and not gpu:
            raise ConfigError("phase.timing", self.timing, "needs a GPU; on a CPU use sync or none")
        if self.timing == "cuda_graph" and not graphs:
            raise ConfigError("phase.timing", self.timing, "gloo can't be captured in a CUDA graph; use cuda_events")
        if self.flush_l2 is None:
            self.flush_l2 = gpu


@dataclass
class OptimizerOptions:
    """Which optimizer takes the steps."""

    optimizer: str = "adamw"  # sgd | sgd_momentum | adam | adamw
    lr: float = 1e-3

    def check_optimizer(self) -> None:
        one_of("phase.optimizer", self.optimizer, OPTIMIZERS)
        if not self.lr > 0:  # not a number is not positive either
            raise ConfigError("phase.lr", self.lr, "must be positive")

    def make_optimizer(self, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        if self.optimizer.startswith("adam"):
            make = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
            # capturable: the step count lives on the device, so that a CUDA graph can hold the update
            return make(_of_one_kind(parameters), lr=self.lr, fused=True, capturable=parameters[0].is_cuda)
        return torch.optim.SGD(
            _of_one_kind(parameters), lr=self.lr, momentum=0.9 if self.optimizer == "sgd_momentum" else 0.0
        )


def _of_one_kind(parameters: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Groups of an optimizer: a fused update takes plain tensors or DTensors, and a model over ranks may have both."""
    kinds = dict.fromkeys(type(parameter) for parameter in parameters)
    return [{"params": [parameter for parameter in parameters if type(parameter) is kind]} for kind in kinds]


@dataclass
class TrainingOptions(OptimizerOptions):
    """And which loss of Y and the target, for a layer that is trained by itself."""

    loss: str = "mse"  # mse | sum

    def check_training(self) -> None:
        self.check_optimizer()
        one_of("phase.loss", self.loss, ("mse", "sum"))

    def make_step(
        self, layer: ParallelModule, problem: Problem, input_grad: bool = True
    ) -> tuple[Callable[[], torch.Tensor], torch.optim.Optimizer]:
        """One training step of `layer` on the problem's inputs and target, and its optimizer.

        The step is made of the regions forward, backward and opt_step, and returns the loss before the update.
        """
        optimizer = self.make_optimizer(list(layer.parameters()))
        x = layer.shard_input(problem.inputs()).detach().requires_grad_(input_grad and problem.has_input_grad)
        target = problem.target()
        steps = 0

        def step() -> torch.Tensor:
            nonlocal steps
            x.grad = None
            optimizer.zero_grad(set_to_none=True)
            with region("forward"):
                loss = problem.loss(self.loss, layer(x), target)
            with region("backward"):
                loss.backward()
            with region("opt_step"):
                optimizer.step()
            steps += 1
            layer.after_optimizer_step(steps)
            return loss.detach()

        return step, optimizer


# Tensors of the weight's size that an update must read or write: parameter, gradient and states.
OPTIMIZERS = {"sgd": 3, "sgd_momentum": 5, "adam": 7, "adamw": 7}
