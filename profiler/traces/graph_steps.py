"""A traced step whose kernels can be told apart by module: the graph's own labels become ranges of the trace.

step = labelled(traced_step)          # runs what traced_step(*batch) runs
flops = graph_flops(traced_step)      # by the same modules
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from profiler.flops import flops_of, uncounted
from profiler.graph.regions import BATCH, LOSS_FN, Region
from profiler.graph.step import TracedStep, running
from profiler.traces.attribution import range_name
from profiler.traces.flop_count import FlopCount
from profiler.traces.records import OPTIMIZER as OPTIMIZER_MODULE
from profiler.traces.records import OUTSIDE

_REGIONS = {Region.LOSS: "forward", Region.OPTIMIZER: "optimizer", Region.OUTPUT: "other"}


def owner_of(node: fx.Node) -> tuple[str, str]:
    """(region, module) of a node, in the words of a trace."""
    region, module = node.meta["region"], node.meta["module"]
    if region is Region.OPTIMIZER:
        return "optimizer", OPTIMIZER_MODULE
    return _REGIONS.get(region, str(region.value)), OUTSIDE if module in (LOSS_FN, BATCH) else module


def graph_flops(step: TracedStep) -> FlopCount:
    """Floating-point operations of each module, forward and backward, from the graph; nothing runs."""
    counts: defaultdict[tuple[str, str], int] = defaultdict(int)
    without = Counter(str(node.target) for node in step.nodes if uncounted(node.target))
    for node in step.nodes:
        count = flops_of(node) if node.op == "call_function" else 0
        if count:
            region, module = owner_of(node)
            counts[module, region] += count
    return FlopCount(counts, without)


def labelled(step: TracedStep) -> Callable[..., Tensor]:
    """A function that runs `step`'s graph with a range around every run of nodes of one module and region.

    Costs a range a border between modules, about a microsecond, whether or not a profiler looks.
    """
    borders = _Borders()
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    current: tuple[str, str] | None = None
    for node in step.nodes:
        if node.op == "call_function" and owner_of(node) != current:
            current = owner_of(node)
            graph.call_function(borders.enter, (range_name(*current),))
        elif node.op == "output":
            graph.call_function(borders.leave, ())
        copies[node] = graph.node_copy(node, copies.__getitem__)
    module = fx.GraphModule(step.graph_module, graph)

    def run(*batch: Any) -> Tensor:
        with running():
            try:
                loss: Tensor = module.forward(*step.arguments(batch))
            finally:
                borders.leave()
        step.steps_run += 1
        return loss

    return run


class _Borders:
    """The range that is open. A graph runs on one thread, one node after the other."""

    def __init__(self) -> None:
        self._open: Any = None

    def enter(self, name: str) -> None:
        self.leave()
        self._open = torch._C._profiler._RecordFunctionFast(name)
        self._open.__enter__()

    def leave(self) -> None:
        if self._open is not None:
            self._open.__exit__(None, None, None)
            self._open = None
