"""A plan from the linear relaxation, in a few tenths of a second: nearly all of its choices are whole already.

    found = round_relaxation(problem, values, budget, always, bound, deadline)      # (schedule, kept), or None

Of 300 values, 1 to 10 are kept in part. What is kept for the most part is taken as kept, and so is all that is kept at
all; where the exact schedule is above the budget, `greedy` gives up more from there, and the excess is withheld from
the stages of the program, which is solved again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from checkpointing.planners.greedy import greedy
from checkpointing.planners.milp import Program
from checkpointing.planners.milp_values import Values
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule, make_schedule

ROUNDS = 6
WINDOW = 16  # stages
SHARES = (0.5, 1e-6)  # above which a value is taken as kept

Kept = tuple[Schedule, frozenset[int]]


def round_relaxation(
    problem: PlanningProblem, values: Values, budget: int, always: frozenset[int], enough_s: float, deadline: float
) -> Kept | None:
    """The best schedule within `budget` bytes that was found before `deadline` (`time.process_time()`), and what it
    keeps. One that adds at most `enough_s` seconds ends the search."""
    best: Kept | None = None
    withheld: dict[int, int] = {}
    for _ in range(ROUNDS):
        left = deadline - time.process_time()
        if left <= 0:
            break
        program = Program(problem, values, budget, WINDOW, restricted=True, withheld=withheld)
        solution = program.solve(left, 0.0, integral=False)
        share = solution.share
        if share is None or (best is not None and solution.seconds >= best[0].added_seconds):
            break
        best = better(best, repaired(problem, budget, share, always))
        if best is not None and best[0].added_seconds <= enough_s:
            break
        schedule = make_schedule(problem, always | {i for i, part in share.items() if part > SHARES[0]})
        if schedule.peak <= budget:
            break
        withhold(withheld, schedule, program, budget)
    return best


def repaired(problem: PlanningProblem, budget: int, share: Mapping[int, float], always: Collection[int]) -> Kept | None:
    """The better schedule within `budget` that rounding leads to, if one of them does."""
    best: Kept | None = None
    for least in SHARES:
        kept = frozenset(always) | {index for index, part in share.items() if part > least}
        schedule, kept, fresh, why = greedy(problem, budget, kept)
        if not why and not fresh:
            best = better(best, (schedule, kept))
    return best


def better(one: Kept | None, other: Kept | None) -> Kept | None:
    """The one that adds less time."""
    if one is None or other is None:
        return one or other
    return min(one, other, key=lambda found: found[0].added_seconds)


def withhold(withheld: dict[int, int], schedule: Schedule, program: Program, budget: int) -> None:
    """Add to `withheld` each stage's bytes above the budget; -1 is the forward. A copy counts where it is needed."""
    found: dict[int, int] = {}
    following = [0] * len(schedule.runs)
    rank = schedule.problem.count
    for position in range(len(schedule.runs) - 1, -1, -1):
        run = schedule.runs[position]
        if not run.is_copy:
            rank = run.rank
        following[position] = rank
    for position, total in enumerate(schedule.total):
        if total > budget:
            at = following[position]
            stage = program.stage_at(at) if at >= schedule.problem.backward_start else -1
            found[stage] = max(found.get(stage, 0), int(total) - budget)
    for stage, excess in found.items():
        withheld[stage] = withheld.get(stage, 0) + excess
