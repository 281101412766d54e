"""What ranks do in tests of collectives: importable, as a task for RankPool must be."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from blockshock.collectives import reductions
from blockshock.collectives.choice import CollectiveOptions, choose, time_ways
from blockshock.collectives.matmul_all_reduce import MatmulAllReduce
from blockshock.collectives.symmetric import live_bytes, symmetric_buffer
from blockshock.jobs.correctness import MARGIN, CheckFailed
from blockshock.measure.timing import capture
from blockshock.methods import ring_roundings
from blockshock.phases.benchmark.all_reduce import check_sum, time_all_reduce
from blockshock.problem import Problem
from blockshock.ranks import distributed
from blockshock.ranks.launched import RankInfo
from blockshock.ranks.outcome import Outcome
from tests.blockshock.rank_tasks import join, method_yaml, problem_of


def whole_numbers(problem: Problem, rows: int, columns: int, seed: int) -> torch.Tensor:
    """Whole numbers, so that every order of addition gives the same bits."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, (rows, columns), generator=generator).to(problem.dtype)


def in_chunks_and_whole(info: RankInfo, spec: dict[str, Any], chunks: int, say: Any) -> Outcome:
    """What differs between a layer that sums in chunks and one that does not, and what the first says of itself."""
    join(info)
    problem = problem_of(spec)
    weight = whole_numbers(problem, problem.N, problem.K, 1)
    results = []
    for count in (1, chunks):
        layer = method_yaml(spec["method"], overlap_chunks=count).build(problem, weight)
        x = layer.shard_input(whole_numbers(problem, problem.B, problem.K, 2)).requires_grad_()
        y = layer(x)
        kept = y.detach().clone()
        layer(layer.shard_input(whole_numbers(problem, problem.B, problem.K, 3)))
        y.backward(whole_numbers(problem, problem.B, problem.N, 4))
        results.append({"Y": kept, "Y later": y.detach(), "dX": x.grad, "dW": [p.grad for p in layer.parameters()]})
    whole, chunked = results
    exact = whole_numbers(problem, problem.B, problem.K, 2) @ weight.t()
    different = [name for name in whole if name != "dW" and not torch.equal(whole[name], chunked[name])]
    different += ["dW" for a, b in zip(whole["dW"], chunked["dW"], strict=True) if not torch.equal(a, b)]
    different += [name for name in ("Y", "Y later") if not torch.equal(chunked[name], exact)]
    return Outcome(value=(different, layer.describe()))


class LosesOne(reductions.GlooAllReduce):
    """Like a reduction whose last row is not waited for."""

    def finish(self, total: torch.Tensor) -> torch.Tensor:
        super().finish(total)[-1] /= 2
        return total


def checked_sums(info: RankInfo, dtype: torch.dtype, say: Any) -> Outcome:
    """What the benchmark's check says of a right sum, and of a wrong one."""
    join(info)
    like = torch.empty(0, dtype=dtype)
    found: list[Any] = []
    for kind in (reductions.GlooAllReduce, LosesOne):
        reduction = kind(dist.group.WORLD, 256)
        partial, total = reduction.place(64, like, whole=True)
        try:
            found.append(check_sum(reduction, partial, total))
        except CheckFailed as error:
            found.append(str(error))
    return Outcome(value=found)


class Slow:
    """A sum that takes `ms` on this rank, and longer the more of them have run before: a processor that gets hot."""

    ran = 0

    def __init__(self, ms: float) -> None:
        self.ms = ms

    def __call__(self, x: torch.Tensor, multiply: Any) -> torch.Tensor:
        time.sleep(self.ms / 1e3 * (1 + Slow.ran / 40))
        Slow.ran += 1
        return x


def timed_while_getting_hot(info: RankInfo, ways: dict[str, list[float]], say: Any) -> Outcome:
    """What every rank measures of ways that take so many milliseconds on each rank at first."""
    join(info)
    Slow.ran = 0
    slow = {name: Slow(ms[info.rank]) for name, ms in ways.items()}
    found = time_ways(slow, lambda x, out: x, (4, 4), torch.float32, torch.device("cpu"))
    everyone: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(everyone, found)
    return Outcome(value=everyone)


# On GPUs ------------------------------------------------------------------------------------------------------------

B, K, CALLS = 2112, 192, 6  # rows that no number of chunks divides; calls, of which each keeps its result
WIDTHS = (512, 264)  # of two layers that share a buffer


def operands(rank: int, call: int, width: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """One rank's X (B, K) and W (width, K): known to all ranks, different in every call."""
    generator = torch.Generator("cuda").manual_seed(1000 * call + 10 * rank + width)
    x, w = (torch.randn(rows, K, generator=generator, device="cuda") for rows in (B, width))
    return x.to(dtype), w.to(dtype)


def judge(got: torch.Tensor, call: int, ranks: list[int], width: int) -> str | None:
    """What is wrong with the sum over `ranks`; None if nothing is."""
    dtype = got.dtype
    parts = [operands(rank, call, width, dtype) for rank in ranks]
    x, w = (torch.cat([part[i] for part in parts], dim=1) for i in (0, 1))
    exact = x.double() @ w.double().t()
    error, dense = (float((y.double() - exact).norm() / exact.norm()) for y in (got, x @ w.t()))
    limit = 1e-12 if dtype == torch.float64 else MARGIN * ring_roundings(len(ranks)) * dense
    if error <= limit:
        return None
    wrong = ((got.double() - exact).abs() > 0.1 * exact.abs().mean()) | got.isnan()
    rows = wrong.any(dim=1).nonzero().flatten().tolist()
    where = f"{len(rows)} rows, {rows[:3]}..{rows[-1:]}, {int(got.isnan().sum())} NaN" if rows else "all over"
    return f"error {error:.3g} exceeds {limit:.3g}: {where}"


def every_way(info: RankInfo, name: str, dtype_name: str, group_size: int, say: Any) -> Outcome:
    """Every number of chunks of one implementation, eagerly and in a CUDA graph; a line for everything wrong.

    Two layers of different widths share the buffer; X and W change from call to call, ranks are late in turn, the
    results are kept until the end, and they and the buffer start as NaN.
    """
    device = join(info, "cuda")
    dtype = getattr(torch, dtype_name)
    group = distributed.subgroup(group_size, 1)
    assert group is not None
    ranks = dist.get_process_group_ranks(group)
    buffer = None
    if reductions.REDUCTIONS[name].symmetric:
        buffer, problem = symmetric_buffer(group, device, B * max(WIDTHS) * dtype.itemsize)
        if problem:
            return Outcome(value=[f"no symmetric memory: {problem}"])
        assert buffer is not None
        buffer.memory.fill_(255)  # NaN in every dtype
        distributed.barrier()
    wrong: list[str] = []
    torch.use_deterministic_algorithms(True, warn_only=True)  # then torch.empty is full of NaN
    try:
        for chunks in (1, 2, 4, 8):
            layers = [
                MatmulAllReduce(reductions.REDUCTIONS[name].build(group, width, buffer), chunks) for width in WIDTHS
            ]
            for how, calls in (("eager", _eagerly(layers, dtype)), ("graph", _in_graph(layers, dtype))):
                for call, results in enumerate(calls):
                    for width, y in zip(WIDTHS, results, strict=True):
                        found = judge(y, call, ranks, width)
                        everyone = [torch.empty_like(y) for _ in ranks]
                        dist.all_gather(everyone, y.contiguous(), group=group)
                        if not found and not all(torch.equal(y, other) for other in everyone):
                            found = "ranks have different results"
                        if found:
                            wrong.append(
                                f"rank {info.rank}: {chunks} chunks, {how}, call {call}, width {width}: {found}"
                            )
    finally:
        torch.use_deterministic_algorithms(False)
    return Outcome(value=_of_all(wrong))


def _late(call: int) -> None:
    """Keep the ranks' streams out of step: each is late by about a millisecond in its turn."""
    if call % distributed.world_size() == distributed.rank():
        torch.cuda._sleep(2_000_000)


def _eagerly(layers: list[MatmulAllReduce], dtype: torch.dtype) -> list[list[torch.Tensor]]:
    kept = []
    for call in range(CALLS):
        inputs = [operands(distributed.rank(), call, width, dtype) for width in WIDTHS]
        _late(call)
        kept.append([layer(x, _multiply_by(w)) for layer, (x, w) in zip(layers, inputs, strict=True)])
    torch.cuda.synchronize()
    return kept


def _in_graph(layers: list[MatmulAllReduce], dtype: torch.dtype) -> list[list[torch.Tensor]]:
    """Both layers in one graph; replayed without waiting for the host between."""
    fixed = [operands(distributed.rank(), 0, width, dtype) for width in WIDTHS]
    results: list[torch.Tensor] = []

    def step() -> None:
        results[:] = [layer(x, _multiply_by(w)) for layer, (x, w) in zip(layers, fixed, strict=True)]

    step()
    graph = capture(step)
    changing = [[operands(distributed.rank(), call, width, dtype) for width in WIDTHS] for call in range(CALLS)]
    kept = []
    for call, inputs in enumerate(changing):
        for (x, w), (new_x, new_w) in zip(fixed, inputs, strict=True):
            x.copy_(new_x)
            w.copy_(new_w)
        for y in results:
            y.fill_(float("nan"))
        _late(call)
        graph.replay()
        kept.append([y.clone() for y in results])
    torch.cuda.synchronize()
    return kept


def _multiply_by(w: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]:
    return lambda x, out: torch.mm(x, w.t(), out=out)


def _of_all(lines: list[str]) -> list[str]:
    gathered: list[list[str]] = [[] for _ in range(distributed.world_size())]
    dist.all_gather_object(gathered, lines)
    return [line for each in gathered for line in each]


def choose_twice(info: RankInfo, options: dict[str, Any], cache: str, say: Any) -> Outcome:
    """Every rank's description of two choices for one product, and how often the product ran for each of them."""
    device = join(info, "cuda")
    os.environ["XDG_CACHE_HOME"] = cache
    w = torch.randn(512, K, device=device).bfloat16()
    found, products = [], []
    for _ in range(2):
        count = 0

        def multiply(x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
            nonlocal count
            count += 1
            return torch.mm(x, w.t(), out=out)

        chosen = choose(
            CollectiveOptions(**options), multiply, dist.group.WORLD,
            batch=1024, features=K, width=512, dtype=torch.bfloat16, device=device, kernel={"name": "test"},
        )  # fmt: skip
        found.append(chosen.describe())
        products.append(count)
    everyone: list[Any] = [None] * distributed.world_size()
    dist.all_gather_object(everyone, found)
    return Outcome(value=(everyone, products))


def buffers_grow_and_go(info: RankInfo, say: Any) -> Outcome:
    """Bytes of symmetric memory held: before (what earlier layers left), with one buffer, with a larger one too."""
    device = join(info, "cuda")
    gc.collect()
    held = [live_bytes()]
    first, problem = symmetric_buffer(dist.group.WORLD, device, 1 << 20)
    assert first is not None, problem
    held.append(live_bytes())
    again, _ = symmetric_buffer(dist.group.WORLD, device, 1 << 21)
    same = again is first
    larger, _ = symmetric_buffer(dist.group.WORLD, device, 1 << 23)
    held.append(live_bytes())
    if info.rank == 1:
        del larger  # this rank alone: what it dropped can't be used again by the other
    third, _ = symmetric_buffer(dist.group.WORLD, device, 1 << 20)
    assert third is not None
    third.view((4,), torch.float32).fill_(info.rank + 1.0)
    total = torch.empty(4, device=device)
    torch.ops.symm_mem.one_shot_all_reduce_out(third.view((4,), torch.float32), "sum", third.group_name, total)
    return Outcome(value=(held, same, total.tolist()))


def time_sums(info: RankInfo, names: list[str], say: Any) -> Outcome:
    """{implementation: {mode: ms}} of 1 MiB in bf16."""
    join(info, "cuda")
    modes = ("cuda_graph", "cuda_events")
    return Outcome(
        value={
            name: {mode: time_all_reduce(name, 1 << 19, torch.bfloat16, dist.group.WORLD, mode) for mode in modes}
            for name in names
        }
    )
