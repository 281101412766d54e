"""Parts `product` and `backward`: one rank's matmul and its gradients, against the dense matmul over half of K.

The half-K matmul is the floor that algebra sets for masks made of dense blocks: the same multiplications, its operands
already in place. For any other mask the floor is bytes: 9/16 of the dense weight, X and Y at the copy rate.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from blockshock.config import with_choices
from blockshock.errors import ConfigError
from blockshock.jobs.correctness import CheckFailed, errors
from blockshock.jobs.execution import Execution
from blockshock.kernels import Kernel, check_kernel, make
from blockshock.masks import reject_pruning
from blockshock.phases.benchmark.contenders import Admitted, Contender, Entry, admit, naming
from blockshock.phases.benchmark.turns import Benchmark

if TYPE_CHECKING:
    from blockshock.config import Job
    from blockshock.problem import Problem


@dataclass
class KernelContender(Contender):
    mask: Any = None  # of conf/mask; null: the job's own
    kernel: str = "auto"  # as method.kernel


@dataclass
class Built:
    """A contender's kernel for half 0 of its mask, and its packed values."""

    name: str
    mask: str
    asked: str  # the kernel's name as it was given: `auto`, say
    kernel: Kernel
    values: torch.Tensor

    def about(self) -> dict[str, Any]:
        return {"mask": self.mask, "kernel": self.asked, "detail": self.kernel.describe()}


@dataclass
class KernelBenchmark(Benchmark):
    """What both parts share: their contenders, and the operands."""

    BASELINE: ClassVar[str] = "half_k_dense"
    RANKS: ClassVar[str] = "one"

    contenders: dict[str, KernelContender] = field(default_factory=dict)

    def admitted(self, job: Job) -> Admitted[KernelContender]:
        for name, size in (("N", job.model.N), ("K", job.model.K)):
            if size % 4:
                raise ConfigError(f"model.{name}", size, f"part {self.part} needs a multiple of 4, for 2:4 groups")
        return admit(self.contenders, partial(self._check, job))

    def _check(self, job: Job, key: str, contender: KernelContender) -> str:
        own = _with_mask(job, contender)
        reject_pruning(own.mask, f"part {self.part}")
        try:
            check_kernel(own, contender.kernel, job.model.N, job.model.K)
        except ConfigError as error:
            raise type(error)("kernel", error.value, error.problem) from error
        return self.name_of(own.mask.name, contender.kernel)

    @staticmethod
    @abstractmethod
    def name_of(mask: str, kernel: str) -> str:
        """By which records tell a contender from others."""

    @staticmethod
    def _built(execution: Execution, admitted: Admitted[KernelContender], weight: torch.Tensor) -> Iterator[Built]:
        problem = execution.problem
        for key, contender in admitted.contenders.items():
            execution.log("building %s", key)
            with naming(key):
                mask = _with_mask(execution.job, contender).mask
                half, _ = dataclasses.replace(problem, mask=mask).halves(weight)
                kernel = make(contender.kernel, half, mask.period, problem.B, problem.dtype)
                values = kernel.adopt(kernel.layout.pack(weight))
            yield Built(key, mask.name, contender.kernel, kernel, values)


@dataclass
class Product(KernelBenchmark):
    """Forward: the half-K dense matmul, the whole dense one, and each mask's kernels."""

    PART: ClassVar[str] = "product"

    @staticmethod
    def name_of(mask: str, kernel: str) -> str:
        return f"{mask}/{kernel}"

    def entries(self, execution: Execution, admitted: Admitted[KernelContender]) -> Iterator[Entry]:
        problem = execution.problem
        x, weight = problem.inputs(), problem.weight()
        halved, half_weight, out = _half(x), _half(weight), x.new_empty(problem.B, problem.N)
        yield Entry("half_k_dense", "half_k_dense", partial(torch.mm, halved, half_weight.t()))
        yield Entry("dense", "dense", partial(torch.mm, x, weight.t()))
        for built in self._built(execution, admitted, weight):
            with naming(built.name):
                out.fill_(float("nan"))
                built.kernel.matmul(x, built.values, out)
                half = built.kernel.layout.unpack(built.values)
                checked = judged(out, x @ half.t(), x.double() @ half.double().t(), problem.K)
                del half
            step = partial(built.kernel.matmul, x, built.values)
            about = built.about() | checked | {"copy_gbs": execution.rates.copy_gbs}
            yield Entry(built.name, built.mask, step, built.asked, about)


@dataclass
class Backward(KernelBenchmark):
    """dX and dW of the packed weight, each against its half-K dense matmul."""

    PART: ClassVar[str] = "backward"

    @staticmethod
    def name_of(mask: str, kernel: str) -> str:
        return mask  # its variants are dX and dW

    def entries(self, execution: Execution, admitted: Admitted[KernelContender]) -> Iterator[Entry]:
        problem = execution.problem
        x, weight, dy = problem.inputs(), problem.weight(), problem.upstream_gradient()
        halved, half_weight = _half(x), _half(weight)
        yield Entry("half_k_dense", self.BASELINE, partial(torch.mm, dy, half_weight), "", {"quantity": "dX"})
        yield Entry("half_k_dense", self.BASELINE, partial(torch.mm, dy.t(), halved), "dW", {"quantity": "dW"})
        for built in self._built(execution, admitted, weight):
            with naming(built.name):
                checked = {
                    "dX": _judge_input_grad(built, problem, dy),
                    "dW": _judge_values_grad(built, problem, dy, x),
                }
            steps = {
                "dX": partial(built.kernel.input_grad, dy, built.values),
                "dW": partial(built.kernel.values_grad, dy, x),
            }
            for quantity, step in steps.items():
                about = built.about() | {"quantity": quantity} | checked[quantity]
                yield Entry(built.name, built.mask, step, quantity, about)


def _judge_input_grad(built: Built, problem: Problem, dy: torch.Tensor) -> dict[str, float]:
    half = built.kernel.layout.unpack(built.values)
    dx = built.kernel.input_grad(dy, built.values)
    return judged(dx, dy @ half, dy.double() @ half.double(), problem.N)


def _judge_values_grad(built: Built, problem: Problem, dy: torch.Tensor, x: torch.Tensor) -> dict[str, float]:
    layout = built.kernel.layout
    dw = layout.unpack(built.kernel.values_grad(dy, x))
    kept = layout.unpack(torch.ones_like(built.values)).bool()
    dense, exact = (torch.where(kept, a.t() @ b, 0) for a, b in ((dy, x), (dy.double(), x.double())))
    return judged(dw, dense, exact, problem.B)


def judged(got: torch.Tensor, dense: torch.Tensor, exact: torch.Tensor, terms: int) -> dict[str, float]:
    """Relative errors of a result and of a dense matmul in the same dtype; CheckFailed if it is wrong.

    A fifth more is allowed, and what float32 sums of that many terms in another order may differ by.
    """
    error, dense_error = errors(got, exact)[0], errors(dense, exact)[0]
    if not error <= 1.2 * dense_error + terms**0.5 * 2.0**-24:
        raise CheckFailed(f"relative error {error:.3g}, where a dense matmul has {dense_error:.3g}")
    return {"relative_error": error, "dense_relative_error": dense_error}


def _half(operand: torch.Tensor) -> torch.Tensor:
    """The first half of its columns, in place for a matmul over half of K."""
    return operand[:, : operand.shape[1] // 2].contiguous()


def _with_mask(job: Job, contender: KernelContender) -> Job:
    return with_choices(job, mask=contender.mask) if contender.mask else job
