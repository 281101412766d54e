"""What a compiled plan tells: the price of memory, the curve of bytes over the step, the table and the figure."""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from scipy.optimize import linprog
from scipy.sparse import csr_array, vstack

import checkpointing
from checkpointing.compiled.compiled_plan import CompiledPlan, plan_of
from checkpointing.planners.lower_bound import unavoidable
from checkpointing.planners.milp import Program
from checkpointing.planners.milp_values import find_values
from checkpointing.planners.optimal import WINDOWS
from checkpointing.planners.price import price_of_memory
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import make_schedule, unchanged_peak
from profiler.models import build
from tests.checkpointing.compiled.training import train

mpl.use("Agg")

NEAR = 64  # bytes: a budget so near that the program has the same rows


@pytest.fixture(scope="module")
def plan() -> CompiledPlan:
    """Of the tiny GPT-2, for four fifths of what it needs."""
    task = build("tiny_gpt2", batch_size=4, seq_len=32)
    by = checkpointing.backend(0.8, execution="eager")
    train(task.model, task.loss_fn, task.batch, by, steps=1)
    return plan_of(task.model)


def dual(problem: PlanningProblem, budget: int) -> float:
    """Seconds per byte, from the marginals of the program's rows: how the right-hand sides move with the budget."""
    values = find_values(problem)
    here, there = (Program(problem, values, size, WINDOWS[-1], restricted=False) for size in (budget, budget + NEAR))
    assert len(here.rows) == len(there.rows)
    count = len(here.cost)
    matrix = csr_array(
        (
            [x for row in here.rows for x in row[1]],
            [column for row in here.rows for column in row[0]],
            np.cumsum([0] + [len(row[0]) for row in here.rows]),
        ),
        shape=(len(here.rows), count),
    )
    lower, upper = (np.array([row[i] for row in here.rows]) for i in (2, 3))
    equal = lower == upper
    moves = np.array([b[3] - a[3] if np.isfinite(a[3]) else 0.0 for a, b in zip(here.rows, there.rows, strict=True)])
    above, below = np.isfinite(upper) & ~equal, np.isfinite(lower) & ~equal
    result = linprog(
        here.cost,
        A_ub=vstack([matrix[above], -matrix[below]]),
        b_ub=np.concatenate([upper[above], -lower[below]]),
        A_eq=matrix[equal],
        b_eq=upper[equal],
        bounds=list(zip([0.0] * count, here.upper, strict=True)),
        method="highs",
    )
    assert result.status == 0
    slope = float(result.ineqlin.marginals[: above.sum()] @ moves[above])  # µs per NEAR bytes
    return -slope * 1e-6 / NEAR


@pytest.mark.parametrize("share", [0.3, 0.5, 0.7, 0.9])
def test_the_price_is_the_dual_of_the_relaxation(plan: CompiledPlan, share: float) -> None:
    problem = plan.problem
    low, high = unavoidable(problem)[0], unchanged_peak(problem)
    budget = int(low + share * (high - low))
    price = price_of_memory(problem, budget)
    assert price is not None
    assert price > 0
    # at a kink the dual lies between the slopes towards less and towards more memory
    less = price_of_memory(problem, budget - budget // 500)
    assert less is not None
    assert price * (1 - 1e-3) <= dual(problem, budget) <= less * (1 + 1e-3)


def test_the_price_falls_as_the_budget_rises_and_is_zero_where_all_fits(plan: CompiledPlan) -> None:
    problem = plan.problem
    low, high = unavoidable(problem)[0], unchanged_peak(problem)
    prices = [price_of_memory(problem, int(low + share * (high - low))) for share in (0.3, 0.5, 0.7, 0.9, 1.0)]
    assert all(price is not None for price in prices)
    assert prices == sorted(prices, key=lambda price: -(price or 0.0))
    assert prices[-1] == 0.0


def test_the_price_is_told_in_milliseconds_per_gib(plan: CompiledPlan) -> None:
    price = price_of_memory(plan.problem, plan.budget_bytes)
    assert price is not None
    assert plan.price == pytest.approx(price * 1e3 * 2**30)
    assert "ms saved per GiB more of budget" in plan.summary()


def test_a_plan_that_recomputes_nothing_has_a_price_of_zero() -> None:
    task = build("tiny_gpt2", batch_size=2, seq_len=16)
    train(task.model, task.loss_fn, task.batch, checkpointing.backend("1GB", execution="eager"), steps=1)
    assert plan_of(task.model).price == 0.0


def test_the_curve_peaks_at_the_predicted_peak_and_lasts_as_long_as_predicted(plan: CompiledPlan) -> None:
    planned, unplanned = plan.curve(), plan.curve(planned=False)
    assert list(planned.columns[:5]) == ["order", "kernel", "module", "region", "bytes"]
    assert planned.bytes.max() == plan.predicted_peak_bytes <= plan.budget_bytes
    assert unplanned.bytes.max() == plan.unplanned_peak_bytes
    assert list(planned.order) == list(range(len(planned)))
    assert planned.end_ms.is_monotonic_increasing
    added = planned.end_ms.iloc[-1] - unplanned.end_ms.iloc[-1]
    assert added == pytest.approx(1e3 * plan.predicted_added_s)


def test_the_curve_holds_each_kernel_once_and_what_runs_again_in_the_backward(plan: CompiledPlan) -> None:
    planned, unplanned = plan.curve(), plan.curve(planned=False)
    first = planned[planned.region != "recompute"]
    again = planned[planned.region == "recompute"]
    assert not first.kernel.duplicated().any()
    assert set(first.kernel) <= set(unplanned.kernel)
    assert set(again.kernel) == {
        plan.problem.names[run.rank]
        for run in make_schedule(plan.problem, plan.plan.kept).runs
        if run.is_copy and "getitem" not in plan.problem.targets[run.rank]
    }
    assert again.order.min() > planned[planned.region == "forward"].order.max()
    assert not (unplanned.region == "recompute").any()
    assert "tangents_1" not in set(planned.kernel)
    assert "output" not in set(planned.kernel)


def test_the_table_is_written_as_it_is(plan: CompiledPlan, tmp_path: Path) -> None:
    path = plan.to_csv(tmp_path / "new" / "plan.csv")
    assert pd.read_csv(path).decision.value_counts().to_dict() == plan.table().decision.value_counts().to_dict()


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_figure_shows_both_curves_the_budget_and_a_measured_peak(
    plan: CompiledPlan, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"memory.{suffix}"
    assert plan.measured_peak_bytes is None  # a CPU measures none
    without = plan.plot(path).axes[0].get_legend_handles_labels()[1]
    assert path.stat().st_size > 1000
    kinds = [label.split(":")[0] for label in without]
    assert kinds == ["static", "unplanned", "planned", "budget", "recomputing"]
    plan.measured_peak_bytes = plan.predicted_peak_bytes
    try:
        assert any("measured peak" in label for label in plan.plot().axes[0].get_legend_handles_labels()[1])
        labels = plan.plot(measured=False).axes[0].get_legend_handles_labels()[1]
        assert not any("measured peak" in label for label in labels)
    finally:
        plan.measured_peak_bytes = None
