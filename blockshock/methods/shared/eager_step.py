"""A training step as PyTorch runs it, with a loss computed one way or another: what the peers have in common."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from checkpointing import Proof
    from profiler.models import TrainingTask

Loss = Callable[..., Tensor]


@dataclass
class EagerStep:
    """`step(*batch)` trains the model with `loss(*batch)`, and leaves no gradients behind."""

    problem: TrainingTask
    optimizer: torch.optim.Optimizer
    loss: Loss
    reference: Loss | None = None  # of the step that this one is compared with; None: as the model computes it
    variant: str = ""  # what tells this step from others of its method

    def __call__(self, *batch: Any) -> Tensor:
        loss = self.loss(*batch)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def verify(self, batch: tuple[Tensor, ...]) -> Proof:
        """Compare a step with a plain one from the same state, as `checkpointing.rewriting.proof` does."""
        from checkpointing.rewriting.proof import BASELINE_RUNS, compare_runs, deterministic_algorithms

        self(*batch)  # the optimizer has its state from now on
        state = {key: tensor.detach().clone() for key, tensor in self._state().items()}
        generators = torch.get_rng_state(), torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
        runs = []
        with deterministic_algorithms():
            for loss in [self.reference or self.plain] * BASELINE_RUNS + [self.loss]:
                self._restore(state, generators)
                runs.append(self._results(loss, batch))
        self._restore(state, generators)
        return replace(compare_runs(runs[:-1], runs[-1]), gradient_error=gradient_error(runs[0], runs[-1]))

    def plain(self, *batch: Any) -> Tensor:
        """The loss as the model computes it by itself."""
        return self.problem.loss_fn(self.problem.model, *batch)

    def _results(self, loss_of: Loss, batch: tuple[Tensor, ...]) -> dict[tuple[str, str], Tensor]:
        loss = loss_of(*batch)
        loss.backward()
        results = {("loss", "loss"): loss.detach().clone()}
        for name, parameter in self.problem.model.named_parameters():
            if parameter.grad is not None:
                results["gradient", name] = parameter.grad.detach().clone()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return results | {key: tensor.detach().clone() for key, tensor in self._state().items()}

    def _state(self) -> dict[tuple[str, str], Tensor]:
        model = self.problem.model
        tensors = {("PARAM", name): parameter.data for name, parameter in model.named_parameters()}
        tensors |= {("BUFFER", name): buffer for name, buffer in model.named_buffers()}
        for name, parameter in model.named_parameters():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors["OPT_STATE", f"{name}.{key}"] = value
        return tensors

    def _restore(self, state: dict[tuple[str, str], Tensor], generators: tuple[Tensor, Tensor | None]) -> None:
        with torch.no_grad():
            for key, tensor in self._state().items():
                tensor.copy_(state[key])
        torch.set_rng_state(generators[0])
        if generators[1] is not None:
            torch.cuda.set_rng_state(generators[1])


def gradient_error(expected: dict[tuple[str, str], Tensor], actual: dict[tuple[str, str], Tensor]) -> float:
    """‖g − g*‖ / ‖g*‖ over all gradients together. Rounding gives some epsilons; a dropout mask drawn anew in the
    backward, the square root of the dropout probability or so."""
    norms = [
        (float((actual[key].double() - value.double()).norm()), float(value.double().norm()))
        for key, value in expected.items()
        if key[0] == "gradient"
    ]
    return math.hypot(*(error for error, _ in norms)) / math.hypot(*(size for _, size in norms))
