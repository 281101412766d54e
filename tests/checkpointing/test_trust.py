"""What an operator's tag or schema says of it may be wrong: recomputation must not rely on it."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm

from checkpointing import (
    CheckpointedStep,
    Plan,
    apply_activation_checkpointing,
    problem_from,
    rewrite_graph_with_recomputation,
)
from profiler import analyse, trace_train_step
from profiler.costs.memory import MeasuredMemory

CALLS = itertools.count(1)


@torch.library.custom_op("recompute_tests::untagged_dropout", mutates_args=())
def untagged_dropout(x: Tensor) -> Tensor:
    return x * (torch.rand(x.shape) > 0.5)


@torch.library.custom_op("recompute_tests::counting", mutates_args=())
def counting(x: Tensor) -> Tensor:
    return x * float(next(CALLS))


for operator in (untagged_dropout, counting):
    operator.register_fake(torch.empty_like)
    operator.register_autograd(
        lambda ctx, gradient: gradient * (ctx.saved_tensors[0] != 0),
        setup_context=lambda ctx, inputs, output: ctx.save_for_backward(output),
    )


class Between(nn.Module):
    """A custom operator whose result the backward reads."""

    def __init__(self, operator: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.operator = nn.Linear(6, 8), nn.Linear(8, 3), operator

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.operator(torch.sigmoid(self.first(x))))


class ReadsStatistics(nn.Module):
    """Normalises with the running statistics before the batch norm of the same step moves them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        old = batch_norm(h, self.norm.running_mean, self.norm.running_var, training=False)
        return self.second(torch.sigmoid(self.norm(h)) * torch.tanh(old).exp())


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def twin(make: Callable[[], nn.Module]) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = make()
    return model, torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def all_recomputed(model: nn.Module, optimizer: torch.optim.Optimizer, batch: tuple[Any, ...]) -> CheckpointedStep:
    step = trace_train_step(model, loss_of, optimizer, batch)
    problem = problem_from(analyse(step), [1e-3] * len(step.nodes), MeasuredMemory())
    return rewrite_graph_with_recomputation(step, Plan(problem, "all that may", frozenset(problem.pinned)))


@pytest.mark.parametrize("make", [lambda: Between(untagged_dropout), ReadsStatistics])
def test_a_step_with_all_recomputed_equals_eager(make: Callable[[], nn.Module]) -> None:
    batch = (torch.randn(16, 6),)
    model, optimizer = twin(make)
    torch.manual_seed(1)
    expected = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = loss_of(model, *batch)
        loss.backward()
        optimizer.step()
        expected.append(loss.item())
    other, optimizer = twin(make)
    step = all_recomputed(other, optimizer, batch)
    assert step.plan.recomputed
    torch.manual_seed(1)
    assert [step(*batch).item() for _ in range(3)] == expected
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def test_an_operator_with_a_state_of_its_own_is_kept_once_it_has_been_tried() -> None:
    batch = (torch.randn(16, 6),)
    model, optimizer = twin(lambda: Between(counting))
    step = apply_activation_checkpointing(model, loss_of, optimizer, batch, 0.9)
    (name,) = (node.name for node in step.baseline.nodes if "counting" in str(node.target))
    reasons = {step.plan.problem.storage_names[index]: why for index, why in step.plan.problem.pinned.items()}
    assert reasons[name] == f"{name} gave two results for the same inputs"
    assert step.verify(batch).passed


def test_the_proof_fails_where_such_an_operator_was_recomputed_all_the_same() -> None:
    batch = (torch.randn(16, 6),)
    step = all_recomputed(*twin(lambda: Between(counting)), batch)
    proof = step.verify(batch)
    assert not proof.passed
    failing = proof.table[~proof.table["passed"]]
    assert "recomputed" in set(failing["kind"])
    assert "recompute_tests.counting.default" in proof.unsteady
