"""A plan is held to what an allocator counts, which is more than was predicted and not the same in every step."""

from collections.abc import Callable
from functools import partial

import pytest

from checkpointing import BudgetError, CheckpointedStep, rewrite_graph_with_recomputation
from checkpointing.budget import in_bytes
from checkpointing.planners.schedule import unchanged_peak
from checkpointing.replan import SLACK, within_budget
from tests.checkpointing.steps import Case, tiny_case

FRACTION = 0.7


@pytest.fixture(scope="module")
def case() -> Case:
    return tiny_case("tiny_gpt2")


@pytest.fixture(scope="module")
def budget(case: Case) -> int:
    return in_bytes(FRACTION, case.problem.static_bytes, unchanged_peak(case.problem))


class Allocator:
    """Counts the predicted peak and `adds(attempt)` bytes; remembers what it counted."""

    def __init__(self, adds: Callable[[int], int]) -> None:
        self.adds, self.peaks = adds, list[int]()

    def __call__(self, step: CheckpointedStep) -> int:
        self.peaks.append(step.plan.predicted_peak_bytes + self.adds(len(self.peaks)))
        return self.peaks[-1]


def planned(case: Case, measure: Callable[[CheckpointedStep], int], memory_budget: float | str = FRACTION):
    rewrite = partial(rewrite_graph_with_recomputation, case.step)
    return within_budget(case.problem, memory_budget, "greedy", rewrite, measure).plan


def test_a_peak_that_varies_in_the_next_step_stays_within_the_budget(case: Case, budget: int) -> None:
    """The first plan is not only just below: a larger block in a later step is no overrun."""
    allocator = Allocator(lambda attempt: 0)
    plan = planned(case, allocator)
    assert len(allocator.peaks) == 1
    assert plan.budget_bytes == budget
    assert plan.recomputed
    assert allocator.peaks[0] <= budget - min(SLACK, budget // 1000)


def test_a_plan_is_made_tighter_by_what_the_allocator_adds(case: Case, budget: int) -> None:
    """As much as the first plan's schedule left to the budget, and a little more: the second plan is lower."""
    allocator = Allocator(lambda attempt: 0 if attempt else budget // 20)
    plan = planned(case, allocator)
    assert allocator.peaks[0] > budget
    assert allocator.peaks[-1] <= budget - min(SLACK, budget // 1000)
    assert plan.budget_bytes == budget
    assert "less, which the allocator adds" in plan.note


def test_where_no_plan_keeps_the_distance_one_within_the_budget_is_taken(case: Case, budget: int) -> None:
    measured = []

    def only_just_below(step: CheckpointedStep) -> int:
        measured.append(step.plan.predicted_peak_bytes)
        return budget - 1

    assert planned(case, only_just_below).predicted_peak_bytes == measured[0]


def test_a_budget_that_the_allocator_exceeds_with_every_plan_is_an_error(case: Case, budget: int) -> None:
    with pytest.raises(BudgetError, match=r"memory_budget=0\.7 is .* MiB, and the allocator takes .* MiB more"):
        planned(case, lambda step: budget + 1)


def test_a_step_that_fits_as_it_is_recomputes_nothing(case: Case) -> None:
    plan = planned(case, Allocator(lambda attempt: 0), memory_budget=1.0)
    assert not plan.recomputed
