"""Batch norm's output recomputed from the batch statistics, which are kept: one pass over the input instead of two.

Batch norm in training computes the mean and inverse deviation of the batch, and then scales every element by them.
The backward keeps those two vectors anyway, so a second run needs only the second half, which is `batch_norm_elemt`.
Whether that gives the bits of the first run depends on the kernel that ran; here it is tried on random numbers of the
same shape and layout, on the device, and timed there. Where the bits differ, the whole operator runs again instead.
"""

import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from checkpointing.operators.purity import BATCH_NORMS, updates_running_statistics, without_running_statistics
from profiler import StorageAnalysis

TRIES = 5  # timed runs of each operator


@dataclass(frozen=True)
class Substitute:
    """A cheaper way to make the value of a node again: `target(*inputs, *constants)`, inputs being ranks of nodes."""

    target: Callable[..., Any]
    inputs: tuple[int, ...]
    constants: tuple[Any, ...]
    seconds: float
    workspace: int = 0


def elementwise_batch_norms(
    analysis: StorageAnalysis, time: list[float]
) -> Iterator[tuple[int, Substitute, list[int]]]:
    """Rank of the node that takes the output out, its substitute, and the storages to keep for it."""
    if analysis.device.type != "cuda":
        return  # batch_norm_elemt has no CPU kernel
    known: dict[Any, float | None] = {}
    for rank, node in enumerate(analysis.nodes):
        if node.target not in BATCH_NORMS or not updates_running_statistics(node):
            continue
        results = {user.args[1]: user for user in node.users if len(user.args) == 2}
        inputs = [value for value in (*node.args[:3], results.get(1), results.get(2)) if isinstance(value, fx.Node)]
        if 0 not in results or len(inputs) < 5:
            continue
        signature = _signature(node)
        if signature not in known:
            known[signature] = _seconds_if_equal(node, inputs[:3])
        share = known[signature]
        if share is None:
            continue
        kept = {index for number, user in results.items() if number for index in analysis.held_by(user)}
        ranks = tuple(analysis.rank_of[value] for value in inputs)
        target: Callable[..., Tensor] = torch.ops.aten.batch_norm_elemt.default
        substitute = Substitute(target, ranks, (_epsilon(node),), share * time[rank])
        yield analysis.rank_of[results[0]], substitute, sorted(kept)


def _epsilon(node: fx.Node) -> float:
    position = BATCH_NORMS[node.target][2]
    value: Any = node.args[position + 2 if position >= 0 else 6]
    return float(value)


def _signature(node: fx.Node) -> Any:
    tensors = [value.meta["val"] for value in node.args[:3] if isinstance(value, fx.Node)]
    return (node.target, _epsilon(node), *((tuple(t.shape), t.stride(), t.dtype) for t in tensors))


def _seconds_if_equal(node: fx.Node, inputs: list[fx.Node]) -> float | None:
    """Time of the elementwise half over that of the whole operator, or None if their results differ in a bit."""
    x, weight, bias = (_random_like(value.meta["val"]) for value in inputs)
    whole, arguments = without_running_statistics(node)
    rest = arguments[3:]
    with torch.no_grad():
        output, mean, inverse, *_ = whole(x, weight, bias, *rest)
        half = torch.ops.aten.batch_norm_elemt.default
        if not torch.equal(output, half(x, weight, bias, mean, inverse, _epsilon(node))):
            return None
        of_half = _time(lambda: half(x, weight, bias, mean, inverse, _epsilon(node)))
        return of_half / _time(lambda: whole(x, weight, bias, *rest))


def _random_like(fake: Tensor) -> Tensor:
    real = torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device)
    generator = torch.Generator(device=fake.device).manual_seed(0)  # the user's generator is left alone
    return real.normal_(generator=generator)


def _time(run: Callable[[], Any]) -> float:
    """Median milliseconds on the device."""
    times = []
    for _ in range(TRIES + 1):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        run()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[1:])
