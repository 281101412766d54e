"""A training step as PyTorch runs it, with a loss computed one way or another: what the peers have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from blockshock.methods.shared.data_parallel import collectives_started, whole
from blockshock.ranks.distributed import local_part

if TYPE_CHECKING:
    from checkpointing import Proof
    from profiler.models import TrainingTask

Loss = Callable[..., Tensor]
Results = dict[tuple[str, str], Tensor]  # (kind, name) -> what a step left


@dataclass
class EagerStep:
    """`step(*batch)` trains the model with `loss(*batch)`, and leaves no gradients behind."""

    problem: TrainingTask
    optimizer: torch.optim.Optimizer
    loss: Loss
    reference: Loss | None = None  # of the step that this one is compared with; None: as the model computes it
    variant: str = ""  # what tells this step from others of its method
    collectives: dict[str, int] = field(default_factory=dict)  # started in a "step" and the "reference", by `verify`
    _initial: Results = field(init=False, repr=False)  # parameters and buffers before any step, in the host's memory

    def __post_init__(self) -> None:
        self._initial = {key: tensor.cpu().clone() for key, tensor in self._model_state().items()}

    def __call__(self, *batch: Any) -> Tensor:
        loss = self._run(self.loss, batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _run(self, loss_of: Loss, batch: tuple[Any, ...]) -> Tensor:
        return self.problem.within(loss_of, *batch) if self.problem.within else loss_of(*batch)

    def verify(self, batch: tuple[Tensor, ...]) -> Proof:
        """Compare the second step of a training with the reference's, as `checkpointing.rewriting.proof` does.

        After many steps on one batch the gradients are near zero, and the rounding of a sum is as large as the sum.
        A compiled step runs as it was timed: PyTorch's deterministic algorithms would have Dynamo compile another one.
        Of parameters that are sharded over the ranks, gradients are compared as a whole, all else is this rank's part.
        """
        from checkpointing.rewriting.proof import BASELINE_RUNS, compare_runs
        from profiler.graph.two_runs import deterministic_algorithms

        baseline_runs = 2 if self.reference else BASELINE_RUNS  # each is a copy of all parameters, states and gradients

        self._restore(self._initial)
        self.optimizer.state.clear()
        self(*batch)  # the optimizer has its state from now on
        state = {key: tensor.detach().clone() for key, tensor in self._state().items()}
        generators = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        runs, collectives = [], []
        with nullcontext() if self.reference else deterministic_algorithms():
            for loss in [self.reference or self.plain] * baseline_runs + [self.loss]:
                self._restore(state)
                _restore_generators(generators)
                results, started = self._results(loss, batch)
                runs.append(results)
                collectives.append(started)
        self.collectives = {"step": collectives[-1], "reference": collectives[0]}
        self._restore(state)
        _restore_generators(generators)
        return replace(
            compare_runs(runs[:-1], runs[-1]),
            gradient_error=gradient_error(runs[0], runs[-1]),
            buffer_error=buffer_error(state, runs[0], runs[-1]),
            rounding_limit=rounding_limit(self.problem),
        )

    def plain(self, *batch: Any) -> Tensor:
        """The loss as the model computes it by itself."""
        return self.problem.loss_fn(self.problem.model, *batch)

    def _results(self, loss_of: Loss, batch: tuple[Tensor, ...]) -> tuple[Results, int]:
        """What a step leaves, and how many collectives it starts."""
        before = collectives_started()
        loss = self._run(loss_of, batch)
        loss.backward()
        started = collectives_started() - before
        results = {("loss", "loss"): loss.detach().clone()}
        for name, parameter in self.problem.model.named_parameters():
            if parameter.grad is not None:
                results["gradient", name] = whole(parameter.grad.detach()).clone()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return results | {key: tensor.detach().clone() for key, tensor in self._state().items()}, started

    def _model_state(self) -> Results:
        model = self.problem.model
        tensors = {("PARAM", name): local_part(parameter.detach()) for name, parameter in model.named_parameters()}
        return tensors | {("BUFFER", name): buffer for name, buffer in model.named_buffers()}

    def _state(self) -> Results:
        model, tensors = self.problem.model, self._model_state()
        for name, parameter in model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors["OPT_STATE", f"{name}.{key}"] = local_part(value)
        return tensors

    def _restore(self, state: Results) -> None:
        current = self._state()
        with torch.no_grad():
            for key, tensor in state.items():
                current[key].copy_(tensor)


def _restore_generators(states: tuple[Tensor, Tensor | None]) -> None:
    torch.set_rng_state(states[0])
    if states[1] is not None:
        torch.cuda.set_rng_state(states[1])


def compiled_alone(problem: TrainingTask, backend: str) -> Loss:
    """The loss through torch.compile and nothing else: what a compiled step is compared with.

    A function of its own, so that Dynamo compiles it apart from a loss that is compiled in another way.
    """

    def alone(*batch: Tensor) -> Tensor:
        return problem.loss_fn(problem.model, *batch)

    compiled: Loss = torch.compile(alone, backend=backend, dynamic=False)
    return compiled


def gradient_error(expected: Results, actual: Results) -> float:
    """‖g − g*‖ / ‖g*‖ of a parameter's gradient, which three quarters of the parameters stay below.

    Rounding gives some epsilons. Where dropout masks are drawn anew in the backward it is 0.3 to 1; in the norm of all
    gradients together that could go unseen, as one large gradient may hide the others (BERT: 0.01). A few gradients are
    nothing but rounding (of the bias of attention's keys), and so off by 1 in any step.
    """
    found = [
        _ratio(_norm([actual[key].double() - value.double()]), _norm([value]))
        for key, value in expected.items()
        if key[0] == "gradient"
    ]
    return sorted(found)[3 * len(found) // 4]


def buffer_error(before: Results, expected: Results, actual: Results) -> float:
    """‖b − b*‖ / ‖b* − b₀‖ over all buffers together, of which b₀ is `before` the step. Batch norm's running statistics
    that were updated twice are off by nearly 1, however little one update changes them."""
    found = [key for key in expected if key[0] == "BUFFER"]
    change = _norm(expected[key].double() - before[key].double() for key in found)
    return _ratio(_norm(actual[key].double() - expected[key].double() for key in found), change)


def rounding_limit(problem: TrainingTask) -> float:
    """What two steps that differ in rounding alone stay below: half of the digits of the coarsest dtype in use."""
    dtypes = {parameter.dtype for parameter in problem.model.parameters()} | {problem.autocast or torch.float64}
    return max(math.sqrt(torch.finfo(dtype).eps) for dtype in dtypes)


def _norm(tensors: Iterable[Tensor]) -> float:
    return math.hypot(*(float(tensor.double().norm()) for tensor in tensors))


def _ratio(error: float, size: float) -> float:
    return error / size if size else math.inf if error else 0.0
