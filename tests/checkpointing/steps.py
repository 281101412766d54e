"""What a rewritten step is judged by: eager PyTorch on a copy of the model, and a count of live bytes."""

import copy
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from checkpointing import CheckpointedStep, Plan, PlanningProblem, memory_of, problem_from
from checkpointing.operators.replay import generator_state, replay
from profiler import StorageAnalysis, analyse, trace_train_step
from profiler.costs.memory import MeasuredMemory
from profiler.models import build
from tests.checkpointing.small_models import SmallModel, small_batch, small_loss
from tests.profiler.eager_steps import LiveBytes, assert_equal, eager_step, state_by_name
from tests.profiler.test_memory_model import tensors_of_user

STEPS = 3
TINY = ("tiny_bert", "tiny_gpt2", "tiny_llama", "tiny_resnet152", "tiny_vit")
DROPOUT = {"tiny_bert": 0.1, "tiny_gpt2": 0.1, "tiny_vit": 0.1}

MakeOptimizer = Callable[[Any], torch.optim.Optimizer]


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3)


def momentum(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9)


class Case:
    """A model, its traced step, the planners' problem, and what three eager steps on a copy leave."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: Callable[..., Tensor],
        batch: Sequence[Any],
        make_optimizer: MakeOptimizer,
        times: Callable[[StorageAnalysis], list[float]] | None = None,
    ) -> None:
        twin = copy.deepcopy(model)
        twin_optimizer = make_optimizer(twin.parameters())
        torch.manual_seed(11)
        self.expected_losses = [eager_step(twin, loss_fn, twin_optimizer, batch) for _ in range(STEPS)]
        self.expected = everything(twin, twin_optimizer)
        self.model, self.loss_fn, self.batch = model, loss_fn, batch
        self.optimizer = make_optimizer(model.parameters())
        self.step = trace_train_step(model, loss_fn, self.optimizer, batch)
        self.start = {name: value.detach().clone() for name, value in everything(model, self.optimizer).items()}
        self.analysis = analyse(self.step)
        time = [1e-3] * len(self.analysis.nodes) if times is None else times(self.analysis)
        self.problem: PlanningProblem = problem_from(self.analysis, time, MeasuredMemory())

    def restore(self) -> None:
        with torch.no_grad():
            for name, value in everything(self.model, self.optimizer).items():
                value.copy_(self.start[name])

    def check_steps(self, step: CheckpointedStep) -> None:
        """Three steps from the start leave what three eager ones did, bit for bit."""
        self.restore()
        torch.manual_seed(11)
        for expected in self.expected_losses:
            assert torch.equal(step(*self.batch), expected)
        assert_equal(everything(self.model, self.optimizer), self.expected, "")

    def check_memory(self, step: CheckpointedStep) -> None:
        """Live bytes at every operator: the schedule's, the rewritten graph's, and those counted in a real step."""
        schedule = step.plan.schedule
        self.restore()
        counter = LiveBytes(tensors_of_user(step, self.batch))
        with counter:
            step(*self.batch)
        curve = memory_of(step)
        simulated = curve.table["total_bytes"].to_numpy()
        ranks = [rank for rank, node in enumerate(step.nodes) if is_operator(node)]
        assert np.array_equal(simulated[ranks], counter.counts)
        in_schedule = [rank for rank, node in enumerate(step.nodes) if node.target is not generator_state]
        assert np.array_equal(schedule.total, simulated[in_schedule])
        assert step.plan.predicted_peak_bytes == curve.peak_bytes == max(counter.counts)

    def plan(self, kept: Any, fresh: dict[int, tuple[int, ...]] | None = None) -> Plan:
        return Plan(self.problem, "drawn", frozenset(kept) | frozenset(self.problem.pinned), fresh or {})


def is_operator(node: torch.fx.Node) -> bool:
    """Whether a count of dispatched operators sees the node: an operator, by itself or replayed."""
    return isinstance(node.target, torch._ops.OpOverload) or node.target is replay


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters, buffers and optimizer state by name."""
    found = {name: parameter.data for name, parameter in model.named_parameters()} | dict(model.named_buffers())
    return found | {f"optimizer {name}": value for name, value in state_by_name(model, optimizer).items()}


@cache
def tiny_case(name: str) -> Case:
    problem = build(name, dropout=DROPOUT.get(name))
    make = momentum if "resnet" in name else adamw
    return Case(problem.model, problem.loss_fn, problem.batch, make)


def small_case(seed: int, length: int, times: Callable[[StorageAnalysis], list[float]] | None = None) -> Case:
    return Case(SmallModel(seed, length), small_loss, small_batch(seed), momentum, times)
