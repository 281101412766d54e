"""The planners against every plan there is, on steps small enough to try them all; and against each other."""

import random
import re
import time
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from checkpointing import (
    SOLVERS,
    BudgetError,
    CheckpointingError,
    decide_checkpoints,
    memory_of,
    problem_from,
    problem_of,
    rewrite_graph_with_recomputation,
)
from checkpointing.planners.alike import Cases, kinds
from checkpointing.planners.greedy import greedy, plan_greedy
from checkpointing.planners.lower_bound import unavoidable
from checkpointing.planners.lp_rounding import round_relaxation
from checkpointing.planners.milp import Program
from checkpointing.planners.milp_values import Values, find_values
from checkpointing.planners.optimal import GAP, optimal, plan_optimal
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import make_schedule, unchanged_peak
from checkpointing.planners.spare_room import Room
from profiler import GraphProfiler
from profiler.costs.memory import MeasuredMemory
from tests.checkpointing.brute_force import Judged, all_plans, cheapest, judge, random_times
from tests.checkpointing.random_problems import equal_blocks, every_schedule, random_problem
from tests.checkpointing.steps import TINY, Case, small_case, tiny_case
from tests.checkpointing.test_rewritten_step_equals_eager import bounded

MOST_DECISIONS = 8
BUDGETS = 6
NOTHING = 1e-9  # seconds, of whole milliseconds


@cache
def few_decisions(seed: int) -> tuple[Case, list[Judged]]:
    """The first small step from `seed` on that has few decisions, with all of its plans."""
    while True:
        case = small_case(seed, 3 + seed % 6, random_times(seed))
        if 3 <= len(case.problem.candidates) + len(case.problem.keepable) <= MOST_DECISIONS:
            return case, all_plans(case)
        seed += 1


def budgets_of(case: Case, plans: list[Judged]) -> list[int]:
    """Budgets at which the answer may change: each peak that a plan has, below the step's own, and one too low."""
    peaks = sorted({plan.peak for plan in plans if plan.peak < unchanged_peak(case.problem)})
    spread = peaks[:: max(1, len(peaks) // BUDGETS)]
    return [min(plan.peak for plan in plans) - 1, *spread]


# Seeds whose steps need what is easily overlooked: temporaries that are needed early as sources of others, nodes that
# the forward can do without, in-place chains. The others are as they come.
@pytest.mark.parametrize("seed", [0, 1, 68, 103, 138, 149, 186])
def test_optimal_equals_brute_force(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case, plans = few_decisions(seed)
    assert judge(case, case.problem.default_kept).peak == unchanged_peak(case.problem)
    for budget in budgets_of(case, plans):
        best, found = cheapest(plans, budget), optimal(case.problem, budget)
        if best is None:
            assert found.schedule is None
            continue
        assert found.schedule is not None, (case.model.seed, budget, best)
        judged = judge(case, found.kept)
        assert judged.peak == found.schedule.peak <= budget
        assert judged.added == pytest.approx(found.schedule.added_seconds, abs=NOTHING)
        assert judged.added == pytest.approx(best.added, abs=NOTHING), (case.model.seed, budget, best)
        assert found.bound_s == pytest.approx(best.added, abs=NOTHING)
        assert unavoidable(case.problem)[0] <= budget
        monkeypatch.setattr("checkpointing.planners.optimal.optimal", lambda *_, found=found: found)  # solved above
        plan = plan_optimal(case.problem, budget)
        assert plan.predicted_peak_bytes <= budget
        assert plan.predicted_added_s <= best.added + NOTHING


def bounds(problem: PlanningProblem, values: Values, budget: int) -> list[float]:
    """Of the linear programs with all variables and with fewer, and by cases of counts."""
    found: list[float] = []
    for near in (None, 2, 1):
        program = Program(problem, values, budget, len(values.of), restricted=False, near=near)
        sizes = {program.count(kind): problem.size[kind[0]] for kind in kinds(problem, values)}
        cases = Cases(program, sizes, program.solve(10.0, 0.0, integral=False))
        found.append(cases.bound_s)
        cases.distinguish(sum(problem.time), time.process_time() + 0.1)
        found.append(cases.bound_s)
    return found


@pytest.mark.parametrize("seed", [0, 1, 68, 138])
def test_the_linear_program_is_below_every_plan(seed: int) -> None:
    """The bound that a plan for a large step is measured by."""
    case, plans = few_decisions(seed)
    values = find_values(case.problem)
    for budget in budgets_of(case, plans):
        best = cheapest(plans, budget)
        if best is not None and values.of:
            assert max(bounds(case.problem, values, budget)) <= best.added + NOTHING


@given(seed=st.integers(0, 10**6))
@settings(bounded, max_examples=15)
def test_no_plan_is_below_the_bounds_also_where_the_unplanned_step_recomputes(seed: int) -> None:
    """Of time and of memory, with values of all sizes, some recomputed by the unplanned step, and in-place use."""
    problem = random_problem(seed)
    values = find_values(problem)
    plans = [(schedule.peak, schedule.added_seconds) for schedule in every_schedule(problem)]
    peaks = sorted({peak for peak, _ in plans})
    assert unavoidable(problem)[0] <= peaks[0]
    for budget in peaks[:: max(1, len(peaks) // BUDGETS)]:
        best = min(added for peak, added in plans if peak <= budget)
        assert max(bounds(problem, values, budget)) <= best + NOTHING


@given(seed=st.integers(0, 10**6), part=st.floats(0.0, 1.0), slack=st.floats(0.0, 0.2))
@settings(bounded, max_examples=25)
def test_what_is_said_to_have_no_room_has_none(seed: int, part: float, slack: float) -> None:
    """No value that is not asked of the schedule would have made it better."""
    problem = random_problem(seed, forward=20, backward=14)
    kept = frozenset(i for i in problem.candidates if random.Random(seed + i).random() < part) | frozenset(
        problem.pinned
    )
    schedule = make_schedule(problem, kept)
    budget = int((1 + slack) * schedule.peak)
    room = Room(schedule, budget)
    for index in {*problem.candidates, *problem.keepable} - kept:
        more = make_schedule(problem, kept | {index})
        if more.peak <= budget and more.added_seconds < schedule.added_seconds - NOTHING:
            assert room.may_hold(index)


def test_equal_blocks_are_told_apart_by_how_many_are_kept() -> None:
    """Of twelve equal values, room for three and a half: the relaxation keeps the half, and so does each case of one
    value; the cases of the count prove that three it is."""
    blocks, size, seconds = 12, 2**20, 1e-3
    problem = equal_blocks(blocks, size, seconds)
    budget = unchanged_peak(problem) - (blocks - 3) * size + size // 2
    [kind] = kinds(problem, values := find_values(problem))
    assert len(kind) == blocks
    found = optimal(problem, budget)
    program = Program(problem, values, budget, blocks, restricted=False)
    cases = Cases(program, {program.count(kind): size}, program.solve(10.0, 0.0, integral=False))
    assert found.schedule is not None
    best = found.schedule.added_seconds
    assert cases.bound_s < best - seconds / 4
    cases.distinguish(best - NOTHING, time.process_time() + 10.0)
    assert cases.bound_s == pytest.approx(best)
    assert cases.number == 2


@given(seed=st.integers(0, 10**6), fraction=st.floats(0.0, 1.0))
@example(seed=0, fraction=1.0)
@settings(bounded, max_examples=25)
def test_a_rounded_relaxation_meets_its_budget_and_is_what_the_schedule_says(seed: int, fraction: float) -> None:
    problem = random_problem(seed, forward=30, backward=20)
    values = find_values(problem)
    always = frozenset(problem.activations) - frozenset(values.of) | frozenset(problem.pinned)
    low, high = unavoidable(problem)[0], unchanged_peak(problem)
    budget = int(low + fraction * (high - low))
    found = round_relaxation(problem, values, budget, always, -1.0, time.process_time() + 1.0)
    if found is not None:
        schedule, kept = found
        assert not kept & problem.never_kept
        again = make_schedule(problem, kept)
        assert again.peak == schedule.peak <= budget
        assert again.added_seconds == schedule.added_seconds
    assert fraction < 1.0 or found is not None


@given(seed=st.integers(0, 10**6), length=st.integers(4, 12), fraction=st.floats(0.3, 0.95))
@settings(bounded, max_examples=25)
def test_greedy_never_beats_optimal(seed: int, length: int, fraction: float) -> None:
    case = small_case(seed, length, random_times(seed))
    problem = case.problem
    budget = problem.static_bytes + int(fraction * (unchanged_peak(problem) - problem.static_bytes))
    schedule, kept, fresh, why = greedy(problem, budget)
    found = optimal(problem, budget)
    if not why:
        assert schedule.peak <= budget
        assert schedule.peak == make_schedule(problem, kept, fresh).peak
        if not fresh:  # several copies of a value are beyond what optimal considers
            assert found.schedule is not None
            assert found.schedule.added_seconds <= schedule.added_seconds + NOTHING
    if found.schedule is not None:
        assert found.schedule.peak <= budget


@pytest.mark.parametrize(("seed", "fraction"), [(12, 0.95), (43, 0.75), (69, 0.75), (174, 0.75)])
def test_where_greedys_first_order_ends_above_the_budget_another_meets_it(seed: int, fraction: float) -> None:
    problem = random_problem(seed)
    budget = int(fraction * make_schedule(problem, problem.default_kept | frozenset(problem.pinned)).peak)
    assert greedy(problem, budget)[3]
    plan = plan_greedy(problem, budget)
    assert make_schedule(problem, plan.kept, plan.fresh).peak <= budget


@pytest.mark.parametrize("solver", ["optimal", "greedy"])
@pytest.mark.parametrize(("name", "fractions"), [("tiny_gpt2", (0.9, 0.7)), ("tiny_resnet152", (0.97, 0.92, 0.88))])
def test_peaks_fall_with_the_budget_and_meet_it(name: str, fractions: tuple[float, ...], solver: str) -> None:
    case = tiny_case(name)
    peaks, added = [], []
    for fraction in fractions:
        plan = decide_checkpoints(case.problem, fraction, solver)
        curve = memory_of(rewrite_graph_with_recomputation(case.step, plan))
        assert curve.peak_bytes == plan.predicted_peak_bytes <= plan.budget_bytes
        peaks.append(curve.peak_bytes)
        added.append(plan.predicted_added_s)
        if solver == "optimal":
            assert plan.bound_s <= plan.predicted_added_s
    assert peaks == sorted(peaks, reverse=True)
    if solver == "optimal":
        assert all(less <= more * (1 + 3 * GAP) for less, more in pairwise(added))


@pytest.mark.parametrize("name", TINY)
def test_references_are_legal_and_none_is_the_step_as_it_is(name: str) -> None:
    case = tiny_case(name)
    for solver in ("none", "all", "save_matmuls"):
        plan = decide_checkpoints(case.problem, 0.5, solver)
        step = rewrite_graph_with_recomputation(case.step, plan)
        case.check_steps(step)
        if solver == "none":
            assert plan.recomputed == []
            assert plan.predicted_peak_bytes == unchanged_peak(case.problem)
            assert plan.predicted_added_s <= 0  # a node that nobody needs may be left out
        if solver == "save_matmuls":
            costly = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.convolution.")
            copied = [n for n in step.nodes if "recomputed_from" in n.meta and str(n.target).startswith(costly)]
            assert copied == []


def test_decisions_use_measured_times() -> None:
    """The same step with the cost of two activations exchanged gives up the other one."""
    base = small_case(0, 6)
    problem = base.problem
    budget = unchanged_peak(problem) - 1
    frees = [i for i in problem.candidates if make_schedule(problem, problem.default_kept - {i}).peak <= budget]
    assert len(frees) > 1
    for cheap in frees[:2]:
        problem.time[:] = [0.0 if base.analysis.is_view(rank) else 1.0 for rank in range(problem.count)]
        problem.__dict__.pop("recompute_time", None)
        nodes, _ = problem.nodes_to_make(cheap, problem.default_kept - {cheap})
        for rank in nodes:
            problem.time[rank] = 1e-6
        assert cheap in decide_checkpoints(problem, budget, "optimal").recomputed


def test_a_profile_is_planned_as_its_problem_is() -> None:
    case = tiny_case("tiny_gpt2")
    case.restore()
    profiler = GraphProfiler(case.step)
    profiler.run(*case.batch, warmup_iters=1, profile_iters=1)
    problem = problem_of(profiler)
    assert decide_checkpoints(profiler, 0.8, "greedy").kept == decide_checkpoints(problem, 0.8, "greedy").kept


def test_an_unknown_solver_is_refused() -> None:
    with pytest.raises(CheckpointingError, match="solver='magic': choose one of " + ", ".join(SOLVERS)):
        decide_checkpoints(tiny_case("tiny_gpt2").problem, 0.5, "magic")


def test_more_than_is_needed_keeps_everything_and_says_so() -> None:
    problem = tiny_case("tiny_gpt2").problem
    for budget in (1.0, "80GiB", unchanged_peak(problem)):
        for solver in ("optimal", "greedy"):
            plan = decide_checkpoints(problem, budget, solver)
            assert plan.recomputed == []
            assert "as it is: nothing is recomputed" in plan.note
            assert "nothing is recomputed" in plan.summary()


@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_resnet152"])
def test_below_the_minimum_names_the_node_and_a_budget_that_has_a_plan(name: str) -> None:
    problem = tiny_case(name).problem
    floor, order = unavoidable(problem)
    for budget in (floor - 1, 0.01, "0.1MiB"):
        with pytest.raises(BudgetError) as caught:
            decide_checkpoints(problem, budget, "greedy")
        message = str(caught.value)
        assert "\n" not in message
        given, minimum = re.findall(r"[\d.]+ MiB", message)
        assert float(given.split()[0]) < float(minimum.split()[0]), "the two must differ in a digit that is shown"
        assert f"set by {problem.names[order]} ({problem.regions[order].value}, {problem.modules[order]})" in message
        advice = message.rpartition("use at least ")[2]
        wanted = advice.strip('"') if isinstance(budget, str) else type(budget)(advice)
        assert decide_checkpoints(problem, wanted, "greedy").recomputed


def test_optimal_adds_no_more_time_than_greedy_and_its_bound_is_not_negative() -> None:
    """Loose budgets and uneven times, for which the program's stages are too coarse to see the cheap way."""
    case = tiny_case("tiny_gpt2")
    draw = random.Random(1)
    problem = problem_from(case.analysis, [draw.random() * 1e-4 + 1e-5 for _ in case.analysis.nodes], MeasuredMemory())
    best, other = (decide_checkpoints(problem, 0.9, solver) for solver in ("optimal", "greedy"))
    assert other.recomputed
    assert 0 <= best.bound_s <= best.predicted_added_s <= other.predicted_added_s
