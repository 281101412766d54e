"""The choice of what to keep as a mixed-integer linear program.

The backward is cut into *stages*: stage τ begins with the first backward use of an activation. With sizes m, node
times t and the budget M, for every value s with a decision of its own

    k[s]     1 if s is kept                          (an activation is kept or recomputed: r[s] = 1 - k[s])
    c[s,τ]   1 if a copy of s has been made by the end of stage τ; it rises with τ and ends at r[s]
    o[u,τ]   1 if a temporary u occupies memory in stage τ: it is there, and something is still to be made of it
    y[n]     1 if node n runs again
    f[n]     1 if node n still runs in the forward, where it can be done without: what is kept may need it there

    minimise    Σ t[n] y[n] - Σ t[n] (1 - f[n])
    forward     f[n] ≥ k[s]                          for every value s that n helps to make
    closure     c[s,τ] ≤ k[u] + c[u,τ]               for every source u of s: it is there when s is made
    memory      fixed[τ] + Σ m[s] (k[s] + c[s,τ]) + Σ m[u] o[u,τ] ≤ M      s used after τ in the backward
                fixed[r] + Σ m[s] k[s] ≤ M                                 s no more used at r in the forward

`fixed` is what no plan changes, an activation between its first and its last backward use included. The variables
of a value reach `window` stages back from where it is needed. If `restricted`, a copy made earlier is forbidden, and
what is kept or copied is taken to stay until the stage that needs it. Otherwise such a copy costs no memory, and a
temporary goes when the last value has been made of it: the program bounds from below every plan that lets no kept
temporary go earlier than `window` stages before its turn; with a window over all stages, every plan. It does so, too,
when it has variables c only for the `near` stages before a value's turn and, farther back, for one stage of every 2, 4,
8...: what is there in between is at most what is there in the next of them, and costs at least what it does in the one
before.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

from checkpointing.planners.milp_values import Value, Values
from checkpointing.planners.problem import PlanningProblem

MICROSECOND, MIB = 1e-6, 2.0**20  # the program's units: HiGHS works with absolute tolerances

Expression = dict[int, float]  # variable → coefficient; -1 is the constant
CONSTANT = -1
INFEASIBLE = 2  # scipy's number for it


@dataclass(frozen=True)
class Solution:
    """k of every value, None where none was found. Seconds; `bound` is proved: no solution takes less."""

    share: dict[int, float] | None
    seconds: float
    bound: float
    status: str
    counts: dict[int, float] = field(default_factory=dict)  # variable of `Program.count` → its value

    @property
    def kept(self) -> frozenset[int]:
        """The values of which more than half is kept."""
        return frozenset(index for index, share in (self.share or {}).items() if share > 0.5)


class Program:
    """Build with the budget in bytes, then `solve`. `withheld` maps a stage to bytes to leave free in it; `excluded`
    are choices of what to keep that are no longer wanted."""

    def __init__(
        self,
        problem: PlanningProblem,
        values: Values,
        budget: int,
        window: int,
        restricted: bool,
        withheld: Mapping[int, int] | None = None,
        excluded: Collection[Collection[int]] = (),
        near: int | None = None,
    ) -> None:
        self.problem, self.values, self.budget = problem, values, budget
        self.window, self.restricted, self.withheld = window, restricted, withheld or {}
        self.near = window if near is None or restricted else near
        self.counts: list[int] = []  # variables
        self.upper: list[float] = []
        self.integer: list[int] = []
        self.cost: list[float] = []
        self.constant = -problem.default_added_s / MICROSECOND  # of the cost
        self.rows: list[tuple[list[int], list[float], float, float]] = []
        self.stages = sorted({v.first_use for v in values.of.values() if v.is_activation})
        self.k = {index: self._variable(upper=float(v.may_be_kept), integer=True) for index, v in values.of.items()}
        self.range = {index: self._range(v) for index, v in values.of.items()}
        self.c: dict[int, tuple[list[int], list[int]]] = {}  # value → stages before r, variables
        self._copies()
        self._costs()
        self._closure()
        self._forward_memory()
        self._backward_memory()
        for kept in excluded:
            terms = [(-1.0, {self.k[i]: 1.0}) if i in kept else (1.0, {self.k[i]: 1.0}) for i in self.k]
            self._row(_sum(*terms), 1 - sum(i in kept for i in self.k), np.inf)

    def stage_at(self, rank: int) -> int:
        """The stage in which a backward rank lies; -1 for the forward and what comes before the first stage."""
        return bisect_right(self.stages, rank) - 1

    def count(self, indices: Collection[int]) -> int:
        """A new variable: how many of the values are kept."""
        variable = self._variable(upper=float(len(indices)))
        self._row({**{self.k[index]: 1.0 for index in indices}, variable: -1.0}, 0, 0)
        self.counts.append(variable)
        return variable

    def solve(
        self,
        seconds: float,
        gap: float,
        integral: bool = True,
        limits: Mapping[int, tuple[float, float]] | None = None,
    ) -> Solution:
        """Solve with HiGHS within `seconds`, to a relative `gap`; the linear relaxation if not `integral`. `limits` are
        the least and the most that variables may be."""
        lower, upper = np.zeros(len(self.cost)), np.array(self.upper)
        for variable, (least, most) in (limits or {}).items():
            lower[variable], upper[variable] = least, most
        integers = np.array(self.integer) if integral else np.zeros(len(self.cost))
        for presolve in (True, False):
            result = milp(
                np.array(self.cost),
                constraints=self._constraints,
                bounds=Bounds(lower, upper),
                integrality=integers,
                options={"time_limit": seconds, "mip_rel_gap": gap, "presolve": presolve},
            )
            if result.status != INFEASIBLE:  # HiGHS's presolve has said so of programs that have a solution
                break
        bound = (
            result.mip_dual_bound if integral else result.fun if result.status == 0 else 0.0
        )  # not solved to the end
        if result.x is None:
            infeasible = result.status == INFEASIBLE
            least = np.inf if infeasible else self.constant * MICROSECOND
            return Solution(None, np.inf, least, "infeasible" if infeasible else result.message)
        share = {index: float(result.x[variable]) for index, variable in self.k.items()}
        counts = {variable: float(result.x[variable]) for variable in self.counts}
        added, least = float(result.fun) + self.constant, float(bound or 0.0) + self.constant
        return Solution(share, added * MICROSECOND, least * MICROSECOND, "ok", counts)

    @cached_property
    def _constraints(self) -> LinearConstraint:
        columns = [column for row in self.rows for column in row[0]]
        data = [value for row in self.rows for value in row[1]]
        pointers = np.cumsum([0] + [len(row[0]) for row in self.rows])
        matrix = csr_array((data, columns, pointers), shape=(len(self.rows), len(self.cost)))
        return LinearConstraint(matrix, [row[2] for row in self.rows], [row[3] for row in self.rows])

    def _variable(self, upper: float = 1.0, integer: bool = False, cost: float = 0.0) -> int:
        self.upper.append(upper)
        self.integer.append(int(integer))
        self.cost.append(cost)
        return len(self.cost) - 1

    def _row(self, expression: Expression, lower: float, upper: float) -> None:
        constant = expression.get(CONSTANT, 0.0)
        terms = [(variable, value) for variable, value in expression.items() if variable != CONSTANT and value]
        self.rows.append(([v for v, _ in terms], [x for _, x in terms], lower - constant, upper - constant))

    def _copies(self) -> None:
        """The variables c, and that they rise."""
        for index, value in self.values.of.items():
            first, last = self.range[index]
            near = self.stage_at(value.first_use) - self.near
            stages = [s for s in range(first, last) if s >= near or (near - s).bit_count() == 1]
            variables = [self._variable() for _ in stages]
            if not value.is_activation:
                variables.append(self._variable())
            self.c[index] = (stages, variables)
            for stage, following in pairwise([*stages, last]):
                self._row(_sum((1, self._made(index, stage)), (-1, self._made(index, following))), -np.inf, 0)

    def _range(self, value: Value) -> tuple[int, int]:
        """The first stage for which there is a variable c, and the stage from which on c is r."""
        first = max(0, self.stage_at(value.first_use) - self.window)
        return first, self.stage_at(value.first_use if value.is_activation else value.last_use)

    def _made(self, index: int, stage: int, least: bool = False) -> Expression:
        """c[index, stage]. In a stage without a variable, that of the next one, which is no less; or of the one before,
        which is no more (`least`)."""
        stages, variables = self.c[index]
        at = bisect_left(stages, stage)
        if least and at < len(stages) and stages[at] != stage:
            at -= 1
        if at < 0 or stage < self.range[index][0]:
            return {}
        if at < len(variables):
            return {variables[at]: 1.0}
        return {self.k[index]: -1.0, CONSTANT: 1.0} if self.values.of[index].is_activation else {variables[-1]: 1.0}

    def _again(self, index: int) -> Expression:
        """r[index]"""
        return self._made(index, len(self.stages))

    def _costs(self) -> None:
        needed_by: dict[int, list[int]] = {}
        for value in self.values.of.values():
            for rank in value.nodes:
                needed_by.setdefault(rank, []).append(value.index)
        groups: dict[tuple[int, ...], float] = {}
        for rank, needing in needed_by.items():
            key = tuple(sorted(needing))
            groups[key] = groups.get(key, 0.0) + self.problem.recompute_time[rank] / MICROSECOND
        for indices, time in groups.items():
            y = self._variable(cost=time)
            for index in indices:
                self._row(_sum((1, self._again(index)), (-1, {y: 1.0})), -np.inf, 0)
        self._forward_costs()

    def _forward_costs(self) -> None:
        """The variables f, and the time of all nodes that the forward can do without."""
        groups: dict[tuple[int, ...], float] = {}
        for rank, needing in self.values.droppable.items():
            if not self.problem.needed[rank]:
                continue
            time = self.problem.time[rank] / MICROSECOND
            self.constant -= time
            if needing:
                groups[needing] = groups.get(needing, 0.0) + time
        for indices, time in groups.items():
            f = self._variable(cost=time)
            for index in indices:
                self._row({self.k[index]: 1.0, f: -1.0}, -np.inf, 0)

    def _closure(self) -> None:
        for index, value in self.values.of.items():
            _, last = self.range[index]
            for source in value.sources:
                begins, _ = self.range[source]
                for stage in (*self.c[index][0], last):
                    if stage < begins and not self.restricted:
                        continue
                    made, there = self._made(index, stage), self._made(source, stage)
                    expression = _sum((1, made), (-1, there), (-1, {self.k[source]: 1.0}))
                    if any(variable != CONSTANT and x for variable, x in expression.items()):
                        self._row(expression, -np.inf, 0)

    def _room(self, fixed: float, stage: int) -> float:
        """MiB that the budget leaves beside `fixed` bytes."""
        return (self.budget - self.withheld.get(stage, 0) - fixed) / MIB

    def _forward_memory(self) -> None:
        problem, values = self.problem, sorted(self.values.of.values(), key=lambda v: v.last_forward_use)
        start = problem.backward_start
        fixed = self.values.fixed
        total: Expression = {}
        everything = sum(problem.size[v.index] for v in values)
        ends = [v.last_forward_use for v in values] + [start - 1]
        worst = 0.0
        for value, end in zip(values, ends[1:], strict=True):
            total = self._accumulate(total, value)
            segment = fixed[value.last_forward_use + 1 : end + 1]
            if len(segment):
                highest = float(segment.max())
                if highest + everything > self.budget and highest >= worst:
                    self._row(total, -np.inf, self._room(highest, -1))

    def _at_least(self, total: Expression) -> Expression:
        """A variable that is no less, so that several rows share the sum."""
        variable = self._variable(upper=np.inf)
        self._row(_sum((1, total), (-1, {variable: 1.0})), -np.inf, 0)
        return {variable: 1.0}

    def _accumulate(self, total: Expression, value: Value) -> Expression:
        """A variable for `total` + m k, so that each sum of many values is one variable."""
        variable = self._variable(upper=np.inf)
        size = self.problem.size[value.index] / MIB
        self._row(_sum((1, total), (1, {self.k[value.index]: size}), (-1, {variable: 1.0})), 0, 0)
        return {variable: 1.0}

    def _backward_memory(self) -> None:
        problem, stages = self.problem, self.stages
        ends = [*stages[1:], problem.count]
        fixed, between = self.values.fixed.copy(), self.values.between.copy()
        waiting = self._waiting()
        starting: list[list[Value]] = [[] for _ in stages]
        for value in self.values.of.values():
            starting[self.stage_at(value.first_use)].append(value)
            if value.is_activation:
                fixed[value.first_use : value.last_use + 1] += problem.size[value.index]
                between[value.first_use + 1 : value.last_use + 1] += problem.size[value.index]
        leaving: list[list[Value]] = [[] for _ in stages]  # stage → what is surely there before it, if it is kept
        for value in self.values.of.values():
            early = not (value.is_activation or self.restricted)
            leaving[self.range[value.index][0] if early else self.stage_at(value.first_use)].append(value)
        later: Expression = {}  # what is kept for stages after this one
        for stage in reversed(range(len(stages))):
            occupied = self._at_least(_sum((1, later), *waiting[stage]))
            self._row(occupied, -np.inf, self._room(float(fixed[stages[stage] : ends[stage]].max()), stage))
            arriving = [v for v in starting[stage] if v.is_activation]
            before = float(between[stages[stage]]) + sum(problem.size[v.index] for v in arriving)
            self._row(occupied, -np.inf, self._room(before, stage))
            for value in starting[stage]:
                self._running(value, occupied, later, before, arriving, stage)
            for value in leaving[stage]:
                later = self._accumulate(later, value)

    def _running(
        self, value: Value, occupied: Expression, later: Expression, before: float, arriving: list[Value], stage: int
    ) -> None:
        """While a value is made in the stage that needs it, there is memory for what making it takes."""
        extra = value.extra if self.restricted else value.least_extra
        running = _sum((extra / MIB, self._again(value.index)))
        if self.restricted and extra:
            self._row(_sum((1, occupied), (1, running)), -np.inf, self._room(before, stage))
        elif value.is_activation and extra:  # what else arrives may be made after it
            size = self.problem.size
            absent = [other for other in arriving if other is not value]
            there = _sum(*((size[other.index] / MIB, {self.k[other.index]: 1.0}) for other in absent))
            before -= sum(size[other.index] for other in absent)
            # the value itself counts in `before`, recomputed or kept
            self._row(_sum((1, later), (1, there), (1, running)), -np.inf, self._room(before, stage))

    def _waiting(self) -> list[list[tuple[float, Expression]]]:
        """Stage → copies made before their time, and temporaries that something is still to be made of; in MiB."""
        found: list[list[tuple[float, Expression]]] = [[] for _ in self.stages]
        dependents: dict[int, list[Value]] = {}
        for value in self.values.of.values():
            for source in value.sources:
                dependents.setdefault(source, []).append(value)
        for index, value in self.values.of.items():
            begins, last = self.range[index]
            size = self.problem.size[index] / MIB
            natural = self.stage_at(value.first_use)
            counted = natural if value.is_activation or self.restricted else begins
            for stage in range(begins, counted):
                found[stage].append((size, self._made(index, stage, least=True)))
            if not value.is_activation:
                bounds = sorted({counted, *(s for s in self.c[index][0] if s > counted), last})
                for start, end in pairwise(bounds):
                    occupied = {self._occupied(value, dependents.get(index, ()), start, end - 1, natural): 1.0}
                    for stage in range(start, end):
                        found[stage].append((size, occupied))
        return found

    def _occupied(self, value: Value, dependents: Collection[Value], start: int, end: int, natural: int) -> int:
        """The variable o of a temporary in the stages from `start` to `end`."""
        occupied = self._variable()
        there = _sum((1, self._made(value.index, start, least=True)), (1, {self.k[value.index]: 1.0, occupied: -1.0}))
        for dependent in dependents:
            if end < self.range[dependent.index][1]:
                made = self._made(dependent.index, end)
                self._row(_sum((1, there), (1, self._again(dependent.index)), (-1, made)), -np.inf, 1)
        if end < natural:  # gone before its turn: then something has been made of it
            self._row(_sum((1, there), *((-1.0, self._made(d.index, end)) for d in dependents)), -np.inf, 0)
        return occupied


def _sum(*terms: tuple[float, Expression]) -> Expression:
    total: Expression = {}
    for factor, expression in terms:
        for variable, coefficient in expression.items():
            total[variable] = total.get(variable, 0.0) + factor * coefficient
    return total
