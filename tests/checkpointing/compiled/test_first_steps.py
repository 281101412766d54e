"""Which of a step's first peaks count: those of steps that are as later ones will be."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import pytest
import torch

from checkpointing.compiled.memory import device_memory
from checkpointing.compiled.memory.device_memory import CHECKED, PASSING, FirstSteps
from checkpointing.compiled.memory.optimizer_memory import trained_bytes

BASE, STATE, ACTIVATIONS, MORE = 1000, 500, 2000, 300


class Allocator:
    """Of a GPU that is not there: each step has ACTIVATIONS besides what is there when it begins."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allocated, self.peak = BASE, BASE
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: self.allocated)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: self.peak)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: setattr(self, "peak", self.allocated))

    def read(self, besides: Iterable[int], gradients: Iterable[int] = (), **options: Callable[..., int | None]) -> list:
        """What is reported over steps that begin with so many bytes besides parameters and state."""
        found: list[tuple[int, int]] = []
        own = [0]
        held = list(gradients) or [0] * 100
        steps = FirstSteps(
            torch.device("cuda"),
            STATE,
            lambda peak: found.append((number, peak)),
            trained=lambda: own[0],
            **options,  # type: ignore[arg-type]
        )
        for number, more in enumerate(besides):
            own[0] = held[number] + (STATE if number else 0)
            self.allocated = BASE + more + own[0]
            self.peak = max(self.peak, self.allocated)
            steps.before_call()
            if steps.are_over:
                break
            self.peak = max(self.peak, self.allocated + ACTIVATIONS)
        return found


@pytest.fixture
def allocator(monkeypatch: pytest.MonkeyPatch) -> Allocator:
    monkeypatch.setattr(device_memory, "_kernel_timings", lambda: 0)
    return Allocator(monkeypatch)


USUAL = BASE + STATE + ACTIVATIONS


def test_the_first_two_steps_count_each_with_the_optimizers_state(allocator: Allocator) -> None:
    assert allocator.read([0] * 9) == [(1, USUAL), (2, USUAL)]


@pytest.mark.parametrize("steps", [1, 2, 5, PASSING])
def test_memory_that_goes_again_is_not_counted(allocator: Allocator, steps: int) -> None:
    """As DistributedDataParallel's first buckets, next to those that it makes after the first backward."""
    found = allocator.read([0, *[MORE] * steps, *[0] * 9])
    assert found == [(1, USUAL), (steps + 2, USUAL)]


def test_memory_that_stays_counts_after_a_while(allocator: Allocator) -> None:
    first, *later = allocator.read([0, *[MORE] * 30])
    assert first == (1, USUAL)
    assert later == [(PASSING + 2, USUAL + MORE)]
    assert 1 + len(later) == CHECKED


def test_gradients_that_accumulate_count_at_once(allocator: Allocator) -> None:
    assert allocator.read([0] * 9, gradients=[0, MORE, MORE, MORE, 0, MORE, MORE, MORE, 0]) == [
        (1, USUAL),
        (2, USUAL + MORE),
    ]


def test_less_than_the_precision_of_a_prediction_is_not_waited_for(allocator: Allocator) -> None:
    assert allocator.read([0, *[20] * 9]) == [(1, USUAL), (2, USUAL + 20)]


def test_a_rank_without_such_memory_waits_for_the_one_that_has_some(allocator: Allocator) -> None:
    """`highest` says None to all ranks where one has not read its peak."""
    waiting = iter([False, True, True, False])
    found = allocator.read([0] * 9, highest=lambda peak: None if next(waiting) else peak)
    assert found == [(1, USUAL), (4, USUAL)]


def test_state_that_was_not_predicted_counts_at_once(allocator: Allocator) -> None:
    """That of an optimizer whose step cannot run on fake tensors."""
    found: list[int] = []
    state = [0]
    steps = FirstSteps(torch.device("cuda"), 0, found.append, trained=lambda: state[0])
    for now in (0, STATE, STATE, STATE):
        state[0] = now
        allocator.allocated = BASE + now
        allocator.peak = max(allocator.peak, allocator.allocated)
        steps.before_call()
        allocator.peak = max(allocator.peak, allocator.allocated + ACTIVATIONS)
    assert found == [BASE + ACTIVATIONS, USUAL]


def test_gradients_and_state_are_measured_by_storage() -> None:
    layer = torch.nn.Linear(8, 4, dtype=torch.float64)
    device = torch.device("cpu")
    optimizer = torch.optim.AdamW(layer.parameters())
    parameters = list(layer.parameters())
    assert trained_bytes(parameters, device) == 0
    layer(torch.randn(2, 8, dtype=torch.float64)).sum().backward()
    assert trained_bytes(parameters, device) == 8 * 36
    optimizer.step()
    assert trained_bytes(parameters, device) == 3 * 8 * 36 + 2 * 4  # two moments, and a number of steps per parameter
    optimizer.zero_grad()
    assert trained_bytes(parameters, device) == 2 * 8 * 36 + 2 * 4
    assert trained_bytes(parameters, torch.device("meta")) == 0
