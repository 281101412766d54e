"""A traced training step: the graph, what its inputs are, and how to run it.

step = trace_train_step(model, loss_fn, optimizer, batch)
loss = step(*batch)        # one training step: parameters, buffers and optimizer state are updated in place
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer

from profiler.errors import StaleStepError
from profiler.graph.batch import BatchSignature
from profiler.graph.capture.decisions import Decision
from profiler.graph.eager_check import EagerMatch, matches_eager
from profiler.graph.group_numbers import are_read
from profiler.graph.lift import Lifted
from profiler.graph.staleness import Assumptions


@dataclass(repr=False)
class TracedStep:
    """One training step as one graph.

    The placeholders of `graph_module` are `lifted` (parameters, buffers, optimizer state, other tensors that the step
    reads) in order, then the tensors of the batch; its output is the loss. Each node has `meta["region"]` (a `Region`),
    `meta["module"]` (a path) and, if it makes a value, `meta["val"]` (fake tensors with shape, dtype, device
    and storage).
    """

    graph_module: fx.GraphModule
    first_graph_module: fx.GraphModule | None  # a first step that differs (SGD with dampening), otherwise None
    model: nn.Module
    loss_fn: Callable[..., Tensor]
    optimizer: Optimizer
    lifted: list[Lifted]
    batch: BatchSignature
    batch_storages: list[tuple[int, int]]  # of each tensor of the batch at the trace: its storage's identity and bytes
    gradients: dict[str, fx.Node]  # name of a parameter → the node whose output is its gradient
    device: torch.device  # of the parameters
    constants: list[dict[str, Any]]  # per parameter group, the numbers that are written into the graph
    assumptions: Assumptions  # about the model's modules
    decisions: list[Decision]  # that the model took by the values of the batch
    generators: list[torch.Generator]  # that the step draws from, besides the device's
    trace_seconds: float
    steps_run: int = 0

    @property
    def graph(self) -> fx.Graph:
        return self.graph_module.graph

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes in the order in which they run; a node's rank is its index here."""
        return list(self.graph_module.graph.nodes)

    @property
    def is_fake(self) -> bool:
        """Whether the model holds fake tensors: there is a graph and a forecast, and nothing to run."""
        return any(isinstance(item.tensor, FakeTensor) for item in self.lifted)

    def __call__(self, *batch: Any) -> Tensor:
        """Run one training step and return the loss, a tensor of no dimensions, detached.

        Leaves parameters, buffers and optimizer state as `zero_grad(set_to_none=True)`, forward, `backward()`
        and `optimizer.step()` would; no gradient is kept. Nothing is held when it returns. Raises
        BatchMismatchError for a batch of another shape, StaleStepError if what was written into the graph has changed.
        """
        with running():
            loss: Tensor = self.executable()(*self.arguments(batch))
        self.steps_run += 1
        vars(self.optimizer)["_opt_called"] = True  # what a schedule looks for before it warns that no step came first
        return loss

    def matches_eager(self, batch: Sequence[Any]) -> EagerMatch:
        """Whether one step leaves what an eager step leaves, bit for bit; see `eager_check`. Everything is put back."""
        return matches_eager(self, batch)

    def __repr__(self) -> str:
        kinds = f"{type(self.model).__name__}, {type(self.optimizer).__name__}"
        return f"<{type(self).__name__} of {kinds}: {len(self.nodes)} nodes on {self.device}>"

    def executable(self) -> Callable[..., Tensor]:
        """The function that the next call runs; it takes `arguments(batch)`."""
        first = self.first_graph_module is not None and self.steps_run == 0
        module = self.first_graph_module if first and self.first_graph_module is not None else self.graph_module
        return module.forward

    def arguments(self, batch: Sequence[Any]) -> list[Tensor]:
        """The tensors for the placeholders, in order, looked up in the user's objects. Checks the batch."""
        tensors = self.batch.check(batch)
        self._check_constants()
        for decision in self.decisions:
            decision.check(tensors)
        return [item.current(self.optimizer) for item in self.lifted] + tensors

    def _check_constants(self) -> None:
        if self.is_fake:
            raise StaleStepError("this step was traced with fake tensors: it can be forecast, not run")
        self.assumptions.check()
        groups = self.optimizer.param_groups
        if len(groups) != len(self.constants):
            raise StaleStepError(
                f"the optimizer had {len(self.constants)} parameter groups when the step was traced and has "
                f"{len(groups)}: trace again"
            )
        for index, (group, constants) in enumerate(zip(groups, self.constants, strict=True)):
            for key, value in constants.items():
                if group[key] != value:
                    raise StaleStepError(
                        f"{key} of parameter group {index} was {value!r} when the step was traced and is now "
                        f"{group[key]!r}: trace again (a float lr without fused, or a tensor lr, may change)"
                    )


def constants_of(optimizer: Optimizer) -> list[dict[str, Any]]:
    """What of each parameter group is written into the graph: neither tensors nor numbers that each step reads."""
    return [
        {
            key: value
            for key, value in group.items()
            if key not in ("params", *are_read(group)) and not isinstance(value, Tensor)
        }
        for group in optimizer.param_groups
    ]


@contextmanager
def running() -> Iterator[None]:
    """Run a graph's operators as they are: no autograd, and no autocast on top of the casts in the graph."""
    with torch.no_grad(), torch._C._DisableAutocast():
        yield
