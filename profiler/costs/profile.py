"""Runs a traced step node by node and measures each node: time, and memory before, during and after it.

    measured = measure(step, analysis, batch, warmup_iters=1, profile_iters=3)
    measured.run_time_s[rank], measured.memory

On a CUDA device a node's time is the time of the kernels that it launched, and memory is what the caching
allocator reports. On the CPU it is wall clock, and memory is followed from the allocator's own events,
counted from the parameters, buffers, states and batch that are there before the step. Values are freed at
their last use, as in the plain step; the profiler holds none of them. The iterations are real training steps.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from profiler.costs.memory import MeasuredMemory, default_rounding, rounded
from profiler.costs.node_trace import NodeRecord, attribute, idle_between, node_trace
from profiler.costs.storage import StorageAnalysis
from profiler.graph.fake_tensors import communicates
from profiler.graph.step import TracedStep, running

Call = Callable[[int, Any, tuple[Any, ...], dict[str, Any]], Any]


@dataclass(frozen=True)
class Profile:
    """Medians over the profiled iterations, one entry a rank. Times in seconds, memory in bytes."""

    run_time_s: np.ndarray
    before_bytes: np.ndarray  # memory in use when the node starts
    peak_bytes: np.ndarray  # the most while it runs
    after_bytes: np.ndarray  # when it has run, before what it used last is freed
    output_bytes: np.ndarray  # of the storages that it makes, as the allocator rounds them
    workspace_bytes: np.ndarray  # peak − before − outputs
    memory: MeasuredMemory  # the same for the memory model
    step_time_s: float  # of the plain, unprofiled step
    step_peak_bytes: int  # most memory during a plain step (on the CPU: during the profiled one)
    idle_s: float  # per step: time between kernels in which the device had nothing to do; 0 on the CPU
    lost_s: float  # per step: time of kernels that could not be attributed to a node
    seconds: float  # that measuring took


def measure(
    step: TracedStep,
    analysis: StorageAnalysis,
    batch: Sequence[Any],
    warmup_iters: int = 1,
    profile_iters: int = 3,
) -> Profile:
    """Run plain steps to warm up, `profile_iters` plain steps on the clock, and as many measured ones."""
    if profile_iters < 1 or warmup_iters < 1:
        raise ValueError(f"warmup_iters={warmup_iters}, profile_iters={profile_iters}: both must be at least 1")
    started = time.perf_counter()
    on_cuda = step.device.type == "cuda"
    with torch.cuda.device(step.device) if on_cuda else nullcontext():
        for _ in range(warmup_iters):
            step(*batch)
        step_time_s, step_peak = _plain_steps(step, batch, profile_iters)
        times = _wall_clock(step, batch, profile_iters) if not on_cuda else None
        base = torch.cuda.memory_allocated() if on_cuda else _owned_bytes(analysis)
        for quiet in (True, False):
            with node_trace(step.device, memory=True) as trace:
                for _ in range(profile_iters):
                    run_nodes(step, batch, _in_range(trace.range, quiet))
            iterations, lost_ns = attribute(trace.events())
            found_ns = sum(record.kernel_ns for records in iterations for record in records.values())
            if lost_ns <= 0.001 * found_ns:
                break
        idle_s = _idle(step, batch, profile_iters) if on_cuda else 0.0
    count = len(analysis.nodes)
    if times is None:
        times = _medians(iterations, lambda record: record.kernel_ns / 1e9, count)
    before = _medians(iterations, lambda record: record.before, count).astype(np.int64) + base
    peak = _medians(iterations, lambda record: record.peak, count).astype(np.int64) + base
    after = _medians(iterations, lambda record: record.after, count).astype(np.int64) + base
    outputs = _output_bytes(analysis)
    memory = _for_the_model(analysis, base, before, peak, after, outputs)
    if not on_cuda and any(map(communicates, analysis.nodes)):
        memory = MeasuredMemory()  # gloo's threads hold and free tensors while other nodes run
    return Profile(
        run_time_s=times,
        before_bytes=before,
        peak_bytes=peak,
        after_bytes=after,
        output_bytes=outputs,
        workspace_bytes=peak - before - outputs,
        memory=memory,
        step_time_s=step_time_s,
        step_peak_bytes=step_peak if on_cuda else int(peak.max()),
        idle_s=idle_s,
        lost_s=lost_ns / 1e9 / profile_iters,
        seconds=time.perf_counter() - started,
    )


def run_nodes(step: TracedStep, batch: Sequence[Any], call: Call) -> Tensor:
    """Run the step's graph, each node through `call(rank, function, args, kwargs)`. Returns the loss.

    A value is dropped after its last use, as the compiled graph does.
    """
    graph_module = step.graph_module
    values: dict[Any, Any] = {}
    last_uses = _last_uses(step)
    arguments = iter(step.arguments(batch))
    with running():
        for rank, node in enumerate(step.nodes):
            if node.op == "placeholder":
                values[node] = next(arguments)
                continue
            if node.op == "output":
                call(rank, _nothing, (), {})
                loss: Tensor = values[node.args[0]]
                return loss
            args: Any = fx.node.map_arg(node.args, values.__getitem__)
            kwargs: Any = fx.node.map_arg(node.kwargs, values.__getitem__)
            function: Any = node.target
            if node.op == "get_attr":
                function, args = getattr, (graph_module, node.target)
            values[node] = call(rank, function, args, kwargs)
            del args, kwargs
            for dead in last_uses[rank]:
                del values[dead]
    raise AssertionError("a graph ends with its output")


def _nothing() -> None:
    """What the output node does."""


def _last_uses(step: TracedStep) -> list[list[fx.Node]]:
    """Rank → the nodes whose values are not needed after it."""
    rank_of = {node: rank for rank, node in enumerate(step.nodes)}
    dead: list[list[fx.Node]] = [[] for _ in rank_of]
    for node, rank in rank_of.items():
        dead[max([rank_of[user] for user in node.users], default=rank)].append(node)
    return [[node for node in nodes if node.op != "placeholder"] for nodes in dead]


def _in_range(range_of: Callable[[int], Any], quiet: bool) -> Call:
    """Run each node in its range. `quiet` leaves out the operators within, so that kernels link to the range.

    That is a quarter of the events, and most of the time of a profile goes into events.
    """

    def call(rank: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        with range_of(rank):
            torch._C._autograd._enable_record_function(not quiet)
            try:
                return function(*args, **kwargs)
            finally:
                torch._C._autograd._enable_record_function(True)

    return call


def _wall_clock(step: TracedStep, batch: Sequence[Any], iterations: int) -> np.ndarray:
    """Median seconds of each node on the CPU, without a profiler."""
    times = np.zeros((iterations, len(step.nodes)))
    for row in times:

        def call(rank: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], row: np.ndarray = row) -> Any:
            started = time.perf_counter_ns()
            value = function(*args, **kwargs)
            row[rank] = (time.perf_counter_ns() - started) / 1e9
            return value

        run_nodes(step, batch, call)
    return np.median(times, axis=0)


def _plain_steps(step: TracedStep, batch: Sequence[Any], count: int) -> tuple[float, int]:
    """Median seconds of a step as users run it, and on CUDA the most memory allocated during one."""
    on_cuda, times = step.device.type == "cuda", []
    if on_cuda:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    for _ in range(count):
        started = time.perf_counter()
        step(*batch)
        if on_cuda:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return median(times), torch.cuda.max_memory_allocated() if on_cuda else 0


def _idle(step: TracedStep, batch: Sequence[Any], count: int) -> float:
    """Seconds a plain step leaves the GPU without work between its first and its last kernel."""
    with node_trace(step.device, cpu=False) as trace:
        for _ in range(count):
            step(*batch)
            torch.cuda.synchronize()
            time.sleep(0.005)  # longer than any gap within a step
    kernels = [(event.start, event.end) for event in trace.events() if event.kind == "kernel"]
    return idle_between(kernels, count) / 1e9


def _medians(
    iterations: Sequence[dict[int, NodeRecord]], value: Callable[[NodeRecord], float], count: int
) -> np.ndarray:
    """Rank → median over the iterations; 0 for a placeholder, which does nothing."""
    table = np.zeros((len(iterations), count))
    for row, records in zip(table, iterations, strict=True):
        for rank, record in records.items():
            row[rank] = value(record)
    return np.median(table, axis=0)


def _owned_bytes(analysis: StorageAnalysis) -> int:
    rounding = default_rounding(analysis.device)
    return sum(
        rounded(storage.bytes, rounding)
        for storage in analysis.storages
        if storage.owned_by_user and storage.device == analysis.device
    )


def _output_bytes(analysis: StorageAnalysis) -> np.ndarray:
    """Rank → bytes of the storages that the node makes on the step's device; a placeholder makes none."""
    outputs = np.zeros(len(analysis.nodes), dtype=np.int64)
    for storage in analysis.storages:
        if not storage.owned_by_user and storage.device == analysis.device:
            outputs[storage.created] += rounded(storage.bytes, default_rounding(analysis.device))
    return outputs


def _for_the_model(
    analysis: StorageAnalysis,
    base: int,
    before: np.ndarray,
    peak: np.ndarray,
    after: np.ndarray,
    outputs: np.ndarray,
) -> MeasuredMemory:
    """Split what a node used beyond its outputs into what stays with them and what is gone after it."""
    workspace: dict[int, int] = {}
    excess: dict[int, int] = {}
    for rank in range(len(analysis.nodes)):
        made = [analysis.storages[index] for index in analysis.created[rank]]
        made = [storage for storage in made if not storage.owned_by_user and storage.device == analysis.device]
        stays = int(after[rank] - before[rank] - outputs[rank]) if made else 0
        if stays:
            excess[max(made, key=lambda storage: storage.bytes).index] = stays
        gone = int(peak[rank] - before[rank] - outputs[rank]) - stays
        if gone:
            workspace[rank] = gone
    return MeasuredMemory(workspace, excess, resident=base - _owned_bytes(analysis))
