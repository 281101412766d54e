"""Parts `forward`, `train` and `law`: whole layers over the ranks, every method as a user would configure it.

A contender is a method with its options and, where it needs one, a mask. All of a job are built side by side and
compared with float64 before they take turns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from blockshock.config import with_choices
from blockshock.errors import ConfigError
from blockshock.jobs import correctness
from blockshock.jobs.execution import Execution
from blockshock.masks import reject_pruning
from blockshock.methods import ParallelModule
from blockshock.methods.shared.halves import HalvesLinear
from blockshock.methods.shared.windows import WindowsLinear
from blockshock.phases import TrainingOptions
from blockshock.phases.benchmark.contenders import Admitted, Contender, Entry, admit, naming
from blockshock.phases.benchmark.turns import Benchmark
from blockshock.problem import Problem, problem_of
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job


@dataclass
class LayerContender(Contender):
    method: Any = None  # of conf/method, with its options
    mask: Any = None  # of conf/mask; null: the job's own
    least_ranks: int = 2  # left out on fewer, where it is the same as another


@dataclass
class Built:
    """A contender's layer, checked, and what its record says of it."""

    key: str
    job: Job
    variant: str
    problem: Problem
    layer: ParallelModule
    about: dict[str, Any]

    def entry(self, step: Callable[[], Any], **about: Any) -> Entry:
        return Entry(self.key, self.job.method.name, step, self.variant, self.about | about)


@dataclass
class LayerBenchmark(Benchmark):
    """What the parts share: their contenders, built and checked."""

    BASELINE: ClassVar[str] = "dtensor_row"
    RANKS: ClassVar[str] = "even"
    QUANTITIES: ClassVar[tuple[str, ...]] = ("Y",)  # compared with float64

    contenders: dict[str, LayerContender] = field(default_factory=dict)

    def admitted(self, job: Job) -> Admitted[LayerContender]:
        ranks = job.hardware.world_size
        few = {key: c.least_ranks for key, c in self.contenders.items() if ranks < c.least_ranks}
        found = admit({key: c for key, c in self.contenders.items() if key not in few}, partial(_check, job))
        found.left_out |= {key: f"is for {least} ranks or more" for key, least in few.items()}
        return found

    def built(self, execution: Execution, admitted: Admitted[LayerContender]) -> Iterator[Built]:
        for key, contender in admitted.contenders.items():
            execution.log("building and checking %s", key)
            with naming(key):
                own = _own_job(execution.job, contender)
                problem = problem_of(own, execution.device)
                layer = problem.build(own.method, problem.weights())
                about = _checked(own, problem, layer, self.QUANTITIES)
            yield Built(key, own, _variant(key, own.method.name), problem, layer, about)


@dataclass
class Forward(LayerBenchmark):
    """Y on every rank from this rank's input."""

    PART: ClassVar[str] = "forward"
    acts_on: ClassVar[str] = "built"

    time_parts: bool = False

    def entries(self, execution: Execution, admitted: Admitted[LayerContender]) -> Iterator[Entry]:
        for built in self.built(execution, admitted):
            layer = built.layer.requires_grad_(False)
            x = layer.shard_input(built.problem.inputs())
            about = {**asdict(execution.rates), "roofline": execution.roofline([layer.costs()["forward"]], None)}
            with naming(built.key), torch.no_grad():
                parts = layer.parts(x) if self.time_parts else None
            yield replace(built.entry(partial(_without_gradients, layer, x), **about), parts=parts)


@dataclass
class Train(LayerBenchmark):
    """Forward, mean squared error, dX and dW, a capturable fused AdamW."""

    PART: ClassVar[str] = "train"
    acts_on: ClassVar[str] = "built"
    QUANTITIES: ClassVar[tuple[str, ...]] = correctness.QUANTITIES

    def entries(self, execution: Execution, admitted: Admitted[LayerContender]) -> Iterator[Entry]:
        for built in self.built(execution, admitted):
            layer, problem = built.layer, built.problem
            with naming(built.key):
                step, optimizer = TrainingOptions().make_step(layer, problem)
                step()  # so that there is optimizer state to count
                state = layer.weight_bytes() + distributed.local_bytes(layer.parameters()) + _state_bytes(optimizer)
            dense = 4 * distributed.local_bytes(problem.dense(problem.dtype).parameters())  # and gradient, two moments
            yield built.entry(step, state_bytes=state, dense_state_bytes=dense)


@dataclass
class Law(LayerBenchmark):
    """What max(2/s, 9/8) relates: both layers with a plain all-reduce, their matmuls alone, the all-reduce alone."""

    PART: ClassVar[str] = "law"
    BASELINE: ClassVar[str] = ""  # it has a prediction instead
    RANKS: ClassVar[str] = "two"
    RELATED: ClassVar[tuple[str, ...]] = ("block_shock", "dense_tp_row")

    def check(self, job: Job) -> None:
        super().check(job)
        reject_pruning(job.mask, "part law")
        methods = sorted(str((contender.method or {}).get("name")) for contender in self.contenders.values())
        if methods != list(self.RELATED):
            problem = f"part law relates one contender of {' and one of '.join(self.RELATED)}"
            raise ConfigError("phase.contenders", f"[{','.join(self.contenders)}]", problem)

    def entries(self, execution: Execution, admitted: Admitted[LayerContender]) -> Iterator[Entry]:
        for built in self.built(execution, admitted):
            layer, problem = built.layer, built.problem
            layer.requires_grad_(False)
            x = layer.shard_input(problem.inputs())
            yield built.entry(partial(_without_gradients, layer, x))
            if isinstance(layer, HalvesLinear):
                yield Entry(built.key, "sparse_half", partial(_without_gradients, layer.matmul, x))
            else:
                weight = problem.weight()
                half = weight[:, : x.shape[1]].contiguous()
                yield Entry("dense", "dense", partial(torch.mm, problem.inputs(), weight.t()))
                yield Entry("half_k_dense", "half_k_dense", partial(torch.mm, x, half.t()))
        problem = execution.problem
        total = torch.randn(problem.B, problem.N, dtype=problem.dtype, device=problem.device)
        total.mul_(1e-3)  # it is summed in place again and again
        yield Entry("all_reduce", "all_reduce", partial(distributed.allreduce_sum, total))


def _check(job: Job, key: str, contender: LayerContender) -> str:
    if not contender.method:
        problem = f"names no method; choose one by +method@phase.contenders.{key}.method=NAME"
        raise ConfigError("method", contender.method, problem)
    name = _own_job(job, contender).method.name
    return f"{name}/{_variant(key, name)}"


def _own_job(job: Job, contender: LayerContender) -> Job:
    """The job with the contender's method and mask in place of its own."""
    mask = {"mask": contender.mask} if contender.mask else {}
    return with_choices(job, method=contender.method, **mask)


def _variant(key: str, method: str) -> str:
    """What tells contenders of one method apart: `nccl` of `dense_tp_row_nccl`, nothing of `dense_tp_row`."""
    return key.removeprefix(method).removeprefix("_")


def _checked(job: Job, problem: Problem, layer: ParallelModule, quantities: tuple[str, ...]) -> dict[str, Any]:
    """What the record says of a layer; CheckFailed where it computes something else."""
    verdicts = correctness.check(problem, layer, quantities)
    wrong = correctness.failure(verdicts)
    if wrong:
        raise correctness.CheckFailed(wrong)
    worst = max(verdicts.values(), key=lambda verdict: verdict["relative_error"] / verdict["limit"])
    masked = any(isinstance(part, HalvesLinear | WindowsLinear) for part in layer.modules())
    kept = problem.energy_kept()
    return {
        "kernel": getattr(job.method, "kernel", ""),
        "mask": job.mask.name if masked else "",
        "detail": layer.describe(),
        "relative_error": worst["relative_error"],
        "dense_relative_error": worst["dense_relative_error"],
        **({} if kept is None else {"energy_kept": kept}),
    }


@torch.no_grad()
def _without_gradients(work: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
    return work(x)


def _state_bytes(optimizer: torch.optim.Optimizer) -> int:
    tensors = (t for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor))
    return distributed.local_bytes(tensors)
