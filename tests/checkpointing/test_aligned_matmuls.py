"""A whole step with its matmuls on aligned sizes: as near to float64 as without, and planned like any other."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn.functional import cross_entropy

from checkpointing import CheckpointingError, apply_activation_checkpointing
from checkpointing.rewriting.aligned_matmuls import LONG, UNIT, with_aligned_matmuls
from profiler import TracedStep, trace_train_step

VOCABULARY = 515


class Model(nn.Module):
    """An embedding, a wide layer with a bias and a head: tied to the embedding, or not."""

    def __init__(self, dtype: torch.dtype, tied: bool, vocabulary: int = VOCABULARY) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(vocabulary, 16)
        self.up, self.down = nn.Linear(16, vocabulary + 8), nn.Linear(vocabulary + 8, 16, bias=False)
        self.head = nn.Linear(16, vocabulary, bias=not tied)
        if tied:
            self.head.weight = self.embedding.weight
        self.to(dtype)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.down(self.up(self.embedding(ids)).relu()))


def loss_of(model: nn.Module, ids: Tensor) -> Tensor:
    return cross_entropy(model(ids).flatten(0, 1), ids.roll(1).flatten())


def ids() -> Tensor:
    return torch.randint(VOCABULARY, (3, 7), generator=torch.Generator().manual_seed(1))


def traced(dtype: torch.dtype, tied: bool, vocabulary: int = VOCABULARY) -> TracedStep:
    model = Model(dtype, tied, vocabulary)
    return trace_train_step(model, loss_of, torch.optim.SGD(model.parameters(), lr=0.5), (ids(),))


def moved(step: TracedStep) -> list[Tensor]:
    """What one step adds to each parameter."""
    before = [p.detach().clone() for p in step.model.parameters()]
    step(ids())
    return [new.detach().double() - old.double() for new, old in zip(step.model.parameters(), before, strict=True)]


def unaligned(step: TracedStep) -> list[fx.Node]:
    matmuls = [n for n in step.nodes if n.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)]
    sizes = {node: [size for a in node.args[-2:] for size in a.meta["val"].shape] for node in matmuls}
    return [node for node in matmuls if any(size >= LONG and size % UNIT for size in sizes[node])]


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_step_is_no_further_from_float64_and_has_aligned_matmuls(dtype: torch.dtype, tied: bool) -> None:
    plain = traced(dtype, tied)
    exact = copy.deepcopy(plain.model).double()
    expected = moved(trace_train_step(exact, loss_of, torch.optim.SGD(exact.parameters(), lr=0.5), (ids(),)))
    aligned = with_aligned_matmuls(traced(dtype, tied))
    assert unaligned(plain)
    assert not unaligned(aligned)
    distances = [
        [float((found - true).norm()) for found, true in zip(moved(step), expected, strict=True)]
        for step in (aligned, plain)
    ]
    for found, before in zip(*distances, strict=True):
        assert found <= 1.2 * before


@pytest.mark.parametrize(("dtype", "vocabulary"), [(torch.float32, VOCABULARY), (torch.bfloat16, 520)])
def test_a_step_without_unaligned_matmuls_stays_as_it_is(dtype: torch.dtype, vocabulary: int) -> None:
    step = traced(dtype, True, vocabulary)
    assert with_aligned_matmuls(step) is step


def test_a_planned_step_with_the_pass_is_bitwise_the_one_without_a_plan() -> None:
    model = Model(torch.bfloat16, True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step = apply_activation_checkpointing(model, loss_of, optimizer, (ids(),), 0.85, passes=["aligned_matmuls"])
    assert step.plan.recomputed
    assert step.verify((ids(),)).passed
    assert not unaligned(step)


@pytest.mark.parametrize("passes", [["aligned"], "aligned_matmuls", [1]])
def test_a_name_that_is_no_pass_is_rejected(passes: Any) -> None:
    model = Model(torch.bfloat16, True)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    with pytest.raises(CheckpointingError, match="give a list of names from aligned_matmuls") as error:
        apply_activation_checkpointing(model, loss_of, optimizer, (ids(),), 0.7, passes=passes)
    assert "\n" not in str(error.value)
