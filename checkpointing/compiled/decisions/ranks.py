"""Several ranks that train one model compile one plan: rank 0 decides, for the rank that has the least room.

Ranks meet in the store of the default process group each time that a step is planned. No collective runs, and nobody
waits longer than `TIMEOUT` for another: a rank that fails says so to those that wait.
"""

from __future__ import annotations

import itertools
import json
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from checkpointing.compiled.decisions.decider import (
    Decider,
    MakeProblem,
    Measured,
    costs_of,
    decision_of,
    plan_from,
    with_costs,
)
from checkpointing.compiled.decisions.graph_key import GraphKey
from checkpointing.errors import BudgetError, CheckpointingError
from checkpointing.planners.plan import Plan
from checkpointing.planners.problem import PlanningProblem

log = logging.getLogger(__name__)

RANKS = ("same", "own")
TIMEOUT = timedelta(minutes=10)

_COUNTS: weakref.WeakKeyDictionary[Any, Iterator[int]] = weakref.WeakKeyDictionary()  # of meetings, by process group


def several_ranks() -> bool:
    """Whether this process is one of several ranks."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Together(Decider):
    """All ranks plan a step together, as long as it is the same step on all of them."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options  # of the backend: they must be the same on all ranks
        self.together = True

    def meet(self, key: GraphKey, resident: int, state: list[int]) -> tuple[int, list[int]]:
        all_ranks = _exchange({"graph": asdict(key), "options": self.options, "resident": resident, "state": state})
        for rank, found in enumerate(all_ranks):
            if found["options"] != self.options:
                own = dist.get_rank()
                raise CheckpointingError(
                    f"rank {rank} compiles with {found['options']}, and rank {own} with {self.options}: give all ranks "
                    'the same, or ranks="own"'
                )
        others = [why for found in all_ranks if (why := GraphKey(**found["graph"]).difference(key))]
        self.together = not others
        if others:
            log.warning("ranks compile different steps at once, and each has a plan of its own (%s)", others[0])
            return resident, state
        fullest = max(all_ranks, key=lambda found: found["resident"] + sum(found["state"]))
        return fullest["resident"], fullest["state"]

    def chunks(self, find: Callable[[], int | None]) -> int | None:
        if not self.together:
            return find()
        if dist.get_rank() == 0:
            count = _said(find)
            _post({"chunks": count})
            return count
        found: int | None = _from_rank_0()["chunks"]
        return found

    def problem(self, make: MakeProblem, measure: bool) -> Measured:
        if not self.together:
            return make(measure)
        if dist.get_rank() == 0:
            problem, seconds = _said(lambda: make(measure))
            _post({"costs": costs_of(problem)})
            return problem, seconds
        costs = _from_rank_0()["costs"]
        return with_costs(make(False)[0], **costs), 0.0

    def plan(self, problem: PlanningProblem, find: Callable[[], Plan]) -> Plan:
        if not self.together:
            return find()
        if dist.get_rank() == 0:
            plan = _said(find)
            _post({"decision": decision_of(plan)})
            return plan
        return plan_from(problem, _from_rank_0()["decision"])

    def highest(self, peak: int | None) -> int | None:
        if not self.together:
            return peak
        peaks = [found["peak"] for found in _exchange({"peak": peak})]
        return None if None in peaks else max(peaks)


def decide_together(problem: PlanningProblem, decide: Callable[[], Plan]) -> Plan:
    """`decide()`, or where several ranks train one model, rank 0's plan for the same step. All ranks must call it.

    Raises what rank 0 raises, and CheckpointingError where the ranks' steps are not the same.
    """
    if not several_ranks():
        return decide()
    same = [problem.names, problem.storage_names]
    if any(found["step"] != same for found in _exchange({"step": same})):
        raise CheckpointingError("the ranks have traced different steps, and one plan can't be of both")
    if dist.get_rank() == 0:
        plan = _said(decide)
        _post({"decision": decision_of(plan), "fresh": list(plan.fresh.items()), "note": plan.note})
        return plan
    found = _from_rank_0()
    fresh = {index: tuple(orders) for index, orders in found["fresh"]}
    return replace(plan_from(problem, found["decision"]), fresh=fresh, note=found["note"])


def highest_of_ranks(value: int) -> int:
    """The largest of the ranks' numbers. All ranks must call it."""
    return max(found["value"] for found in _exchange({"value": value})) if several_ranks() else value


def _said(work: Callable[[], Any]) -> Any:
    """The result of rank 0's work; an error is told to the ranks that wait for it."""
    try:
        return work()
    except BaseException as error:
        content = {"error": str(error) or type(error).__name__, "minimum": getattr(error, "minimum_bytes", None)}
        _post({**content, "is_of_budget": isinstance(error, BudgetError)})
        raise


def _post(content: dict[str, Any]) -> None:
    _store().set(f"{_next()}/{dist.get_rank()}", json.dumps(content))


def _from_rank_0() -> dict[str, Any]:
    found = _get(_next(), 0)
    if "error" in found:
        message = f"rank 0: {found['error']}"
        raise BudgetError(message, found["minimum"]) if found["is_of_budget"] else CheckpointingError(message)
    return found


def _exchange(content: dict[str, Any]) -> list[dict[str, Any]]:
    """What every rank says, by rank."""
    number = _next()
    _store().set(f"{number}/{dist.get_rank()}", json.dumps(content))
    return [_get(number, rank) for rank in range(dist.get_world_size())]


def _get(number: int, rank: int) -> dict[str, Any]:
    key = f"{number}/{rank}"
    try:
        _store().wait([key], TIMEOUT)
    except RuntimeError as error:
        raise CheckpointingError(
            f"rank {dist.get_rank()} compiles a step, and rank {rank} did not within {TIMEOUT}: all ranks must "
            'train steps of the same shapes, or checkpointing.backend(..., ranks="own") plans on each rank alone'
        ) from error
    content: dict[str, Any] = json.loads(_store().get(key))
    return content


def _next() -> int:
    """The number of this meeting: ranks that compile the same steps count alike."""
    return next(_COUNTS.setdefault(dist.group.WORLD, itertools.count()))


def _store() -> Any:
    return dist.PrefixStore("recompute", dist.distributed_c10d._get_default_store())
