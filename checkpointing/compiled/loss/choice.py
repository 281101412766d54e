"""In how many chunks a loss is computed: what makes the step fastest under its budget, along with what it recomputes.

    chunks = LossChunks("auto")
    count = chunks.find(make, problem_of, budget, peak)     # `make(count)` is a `Candidate` (see candidates.py)
    chosen, why = chunks.take(make, count)

For each number of chunks the quick planner says what the step would take. What the compiler would save by itself is
guessed from the loss in one piece (`guess`): asking the compiler takes seconds, which only the chosen one is worth, and
only where the guess may be wrong. More chunks take more time by themselves, and leave more memory to what need not be
recomputed then: once more chunks are slower, still more are too. A step that fits as it is stays as it is, and so does
one in which no linear layer makes anything of a size that matters.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from checkpointing.compiled.joint_step import JointStep
from checkpointing.compiled.loss.candidates import Candidate
from checkpointing.compiled.loss.loss_region import below_tangents, linear_layers
from checkpointing.planners.greedy import greedy
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule, make_schedule

Guess = Callable[[Candidate, int], Candidate | None]
COUNTS = (2, 4, 8, 16, 32)
IN_ONE_PIECE = "the loss is in one piece"
SMALL = 1000  # of what a step takes above its static memory: results of linear layers that are less are not worth a try
SEARCH_S = 2.0  # seconds of the quick planner for each number


class LossChunks:
    """Of one step, however often it is compiled: as many as asked for, or as pay; not fewer than before.

    `in_one_piece` is the planning problem of the step as it is, where the number is a choice.
    """

    def __init__(self, asked: int | str | None) -> None:
        self.asked, self.least, self.chosen_before = asked, 1, False
        self.in_one_piece: PlanningProblem | None = None
        self._why = ""

    @property
    def is_choice(self) -> bool:
        return isinstance(self.asked, str)

    @property
    def first(self) -> int | None:
        """The first number that `find` looks at: the one asked for, or the fewest that a choice may be."""
        if not isinstance(self.asked, str):
            return self.asked
        return None if self.least == 1 else self.least

    def find(
        self,
        make: Callable[[int | None], Candidate],
        problem_of: Callable[[JointStep], PlanningProblem],
        budget: Callable[[PlanningProblem], int],
        peak: Callable[[Schedule], int],
        guess: Guess | None = None,
    ) -> int | None:
        """The number that pays, see `choose`. Of a step that is compiled again, the fewest that fit."""

        def problem(step: JointStep) -> PlanningProblem:
            made = problem_of(step)
            self.in_one_piece = self.in_one_piece or made  # the first
            return made

        counts = [n for n in (None, *COUNTS) if (n or 1) >= self.least]
        chosen, self._why = choose(make, problem, budget, peak, counts, guess, first=self.chosen_before)
        return chosen.chunks

    def take(self, make: Callable[[int | None], Candidate], count: int | None) -> tuple[Candidate, str]:
        """The candidate of so many chunks, and what is said of its loss."""
        chosen = make(count)
        self.least, self.chosen_before = chosen.chunks or 1, True
        return chosen, self._why or (
            f"{chosen.said or IN_ONE_PIECE}: rank 0 decided" if self.is_choice else chosen.said
        )


def choose(
    make: Callable[[int | None], Candidate],
    problem_of: Callable[[JointStep], PlanningProblem],
    budget: Callable[[PlanningProblem], int],
    peak: Callable[[Schedule], int],
    counts: Sequence[int | None] = (None, *COUNTS),
    guess: Guess | None = None,
    first: bool = False,
) -> tuple[Candidate, str]:
    """The candidate whose step is predicted to be the fastest, and one sentence of why. `first`: or the first that
    fits.

    `budget` and `peak` are bytes: a schedule's peak as it is expected of the compiled code. If no candidate has a plan
    within the budget, it is the one of the lowest peak.
    """

    def exact(one: Candidate) -> Candidate:
        return one if one.is_compilers else make(one.chunks)

    tried: list[tuple[Candidate, Schedule, bool]] = []
    in_one_piece: Candidate | None = None
    for count in counts:
        made = guess(in_one_piece, count) if guess and in_one_piece and count else None
        made = made or make(count)
        in_one_piece = in_one_piece or (made if count is None else None)
        if count is not None and made.chunks is None:  # there is no such loss
            return tried[0][0], made.said
        problem = problem_of(made.step)
        unplanned = make_schedule(problem, problem.default_kept)
        fastest = min((_seconds(schedule) for _, schedule, fits in tried if fits), default=None)
        if fastest is not None and _seconds(unplanned) >= fastest:
            break  # it takes longer with nothing recomputed, and so do more chunks
        limit = budget(problem) - (peak(unplanned) - unplanned.peak)
        schedule = greedy(problem, limit, deadline=time.process_time() + SEARCH_S)[0]
        tried.append((made, schedule, schedule.peak <= limit))
        fits_so = count is None and unplanned.peak <= limit
        slower = fastest is not None and _seconds(schedule) > fastest
        if fits_so or slower or (first and schedule.peak <= limit):
            break
        if count is None and schedule.peak <= limit and is_small(made, unplanned):
            return exact(made), f"{_named(made)}: no linear layer of the step makes logits that matter"
    fitting = [(one, schedule) for one, schedule, fits in tried if fits]
    if not fitting:
        lowest = min(tried, key=lambda entry: entry[1].peak)[0]
        return exact(lowest), f"{_named(lowest)}: the lowest peak of all"
    chosen, schedule = min(fitting, key=lambda entry: _seconds(entry[1]))
    if len(tried) == 1:
        return exact(chosen), f"{_named(chosen)}: the step fits the budget so"
    others = [
        f"{_count(one)} {f'{1e3 * _seconds(other):.1f} ms' if fits else 'above the budget'}"
        for one, other, fits in tried
        if one is not chosen
    ]
    return exact(
        chosen
    ), f"{_named(chosen)}: predicted {1e3 * _seconds(schedule):.1f} ms per step ({', '.join(others)})"


def is_small(one: Candidate, unplanned: Schedule) -> bool:
    """Whether the step, whose loss is in one piece, has no logits whose chunks could save anything: all that a loss
    takes is a few times as large as its logits."""
    graph = one.default.joint.graph
    values = [node.meta["val"] for node in linear_layers(graph, below_tangents(graph))]
    largest = max((value.numel() * value.element_size() for value in values), default=0)
    return 0 < SMALL * largest < unplanned.peak - unplanned.problem.static_bytes


def _seconds(schedule: Schedule) -> float:
    """Device time of a step."""
    problem = schedule.problem
    return sum(problem.recompute_time[run.rank] if run.is_copy else problem.time[run.rank] for run in schedule.runs)


def _count(one: Candidate) -> str:
    return "in one piece" if one.chunks is None else f"in {one.chunks}"


def _named(one: Candidate) -> str:
    return one.said or IN_ONE_PIECE
