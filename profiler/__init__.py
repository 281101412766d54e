"""One training step as one graph, and what every node of it costs in time and memory.

from profiler import GraphProfiler, trace_train_step

step = trace_train_step(model, loss_fn, optimizer, batch)      # loss_fn(model, *batch) -> scalar
loss = step(*batch)                                            # trains the model, as an eager step would
prof = GraphProfiler(step)
prof.run(*batch, warmup_iters=1, profile_iters=3)
prof.print_stats()
"""

from profiler.costs.memory import MemoryCurve, simulate
from profiler.costs.recompute import RecomputeCost, recompute_cost
from profiler.costs.signoff import Check, sign_off, sign_off_table
from profiler.costs.storage import Activation, Storage, StorageAnalysis, analyse
from profiler.errors import (
    BatchMismatchError,
    MissingStatsError,
    NotProfiledError,
    ProfilerError,
    StaleStepError,
    TraceError,
)
from profiler.graph.lift import NodeType
from profiler.graph.regions import Region
from profiler.graph.step import TracedStep
from profiler.graph.tracing import trace_train_step
from profiler.graph_profiler import GraphProfiler

__all__ = [
    "Activation",
    "BatchMismatchError",
    "Check",
    "GraphProfiler",
    "MemoryCurve",
    "MissingStatsError",
    "NodeType",
    "NotProfiledError",
    "ProfilerError",
    "RecomputeCost",
    "Region",
    "StaleStepError",
    "Storage",
    "StorageAnalysis",
    "TraceError",
    "TracedStep",
    "analyse",
    "recompute_cost",
    "sign_off",
    "sign_off_table",
    "simulate",
    "trace_train_step",
]
