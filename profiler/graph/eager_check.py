"""Does the traced step do what PyTorch does? Both run once from the same state, and all that they leave is compared.

    match = step.matches_eager(batch)
    assert match, match.summary()

Compared bit for bit are the loss, the gradients, and every tensor that can be reached from the model, the loss
function, the optimizer and the batch. Parameters, buffers, optimizer state, gradients, the batch, Python attributes
and random generators are put back. Where the two differ, eager runs once more: what differs between its own two runs
can't be judged, and is named.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.optim import Optimizer

from profiler.errors import TraceError
from profiler.graph.batch import BatchSignature
from profiler.graph.capture.python_random import PythonGenerators
from profiler.graph.capture.user_objects import UserObjects
from profiler.graph.lift import Lifted
from profiler.graph.two_runs import deterministic_algorithms, same_bits, where_there_is_room

Results = dict[str, Tensor]  # name → what a step left


class Step(Protocol):
    """What is used of a `TracedStep`."""

    graph_module: fx.GraphModule
    first_graph_module: fx.GraphModule | None
    model: nn.Module
    optimizer: Optimizer
    lifted: list[Lifted]
    batch: BatchSignature
    gradients: dict[str, fx.Node]
    device: torch.device
    generators: list[torch.Generator]
    steps_run: int

    @property
    def loss_fn(self) -> Callable[..., Tensor]: ...

    def arguments(self, batch: Sequence[Any]) -> list[Tensor]: ...


@dataclass(frozen=True)
class EagerMatch:
    """True if the traced step left what eager left. `differing` and `unsteady` are names of tensors."""

    compared: int
    differing: tuple[str, ...]
    unsteady: tuple[str, ...]  # not the same in two eager steps, so that nothing can be said

    def __bool__(self) -> bool:
        return not self.differing

    def summary(self) -> str:
        """One line."""
        text = f"the traced step equals an eager one: {self.compared} tensors, bitwise"
        if self.differing:
            more = f" and {len(self.differing) - 1} more" if len(self.differing) > 1 else ""
            text = f"the traced step differs from an eager one in {self.differing[0]}{more}, of {self.compared} tensors"
        if self.unsteady:
            text += f"; {len(self.unsteady)} tensors differ between two eager steps, too"
        return text


def matches_eager(step: Step, batch: Sequence[Any]) -> EagerMatch:
    """Run an eager step and the traced one on `batch`, each from the present state, which is put back.

    Raises TraceError, with module and operator, if the graph doesn't run; and what the batch or stale constants raise.
    """
    step.arguments(batch)  # rejects another batch, and a step that is out of date, before anything runs
    with _preserved(step, batch) as state, deterministic_algorithms():
        expected = _eager(step, batch, state)
        state.restore()
        found = _traced(step, batch, state)
        state.restore()
        differing = _different(expected, found)
        unsteady: set[str] = set()
        if differing:  # is it eager that differs from itself?
            unsteady = set(_different(expected, _eager(step, batch, state)))
    return EagerMatch(
        compared=len(expected.keys() | found.keys()),
        differing=tuple(name for name in differing if name not in unsteady),
        unsteady=tuple(name for name in differing if name in unsteady),
    )


def _eager(step: Step, batch: Sequence[Any], state: "_State") -> Results:
    optimizer = step.optimizer
    if step.first_graph_module is not None and step.steps_run == 0:
        _forget_momentum(optimizer)
    with torch.enable_grad():
        loss = step.loss_fn(step.model, *batch)
        loss.backward()
    gradients = {
        f"gradient of {name}": parameter.grad.detach().to(state.device, copy=True)
        for name, parameter in step.model.named_parameters()
        if parameter.grad is not None and name in step.gradients
    }
    optimizer.step()
    return {"the loss": loss.detach().to(state.device, copy=True)} | gradients | state.now()


def _forget_momentum(optimizer: Optimizer) -> None:
    """The trace gives SGD a momentum of zero; eager has none in its first step, which dampening makes a difference."""
    for values in optimizer.state.values():
        if "momentum_buffer" in values:
            values["momentum_buffer"] = None


def _traced(step: Step, batch: Sequence[Any], state: "_State") -> Results:
    first = step.first_graph_module if step.steps_run == 0 else None
    interpreter = _Interpreter(first or step.graph_module, {} if first else step.gradients, state.device)
    with torch.no_grad(), torch._C._DisableAutocast():
        loss: Tensor = interpreter.run(*step.arguments(batch))
    return {"the loss": loss.detach().to(state.device, copy=True)} | interpreter.found | state.now()


class _Interpreter(fx.Interpreter):
    """Runs the graph node by node: copies the gradients as they are made, and says where it fails."""

    def __init__(self, module: fx.GraphModule, gradients: dict[str, fx.Node], device: torch.device | str) -> None:
        super().__init__(module)
        self.extra_traceback = False
        self.names = {node.name: name for name, node in gradients.items()}
        self.device = device
        self.found: Results = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            value = super().run_node(n)
        except (RuntimeError, TypeError, ValueError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            where = f"in the {n.meta['region'].value}, module {n.meta['module']}"
            raise TraceError(
                f"{where}: {n.target} does not run as it was traced: {lines[0]}; "
                "its fake kernel promises another result than the real one gives"
            ) from error
        if n.name in self.names:
            self.found[f"gradient of {self.names[n.name]}"] = value.detach().to(self.device, copy=True)
        return value


def _different(a: Results, b: Results) -> list[str]:
    """The names that only one of the two has, or that differ in a bit. Gradients count where both have them."""
    names = [n for n in {**a, **b} if not (n.startswith("gradient of ") and (n not in a or n not in b))]
    return [name for name in names if name not in a or name not in b or not same_bits(a[name], b[name])]


class _State:
    """All that a step may change, as it was: containers by entry, tensors by value, generators."""

    def __init__(self, step: Step, batch: Sequence[Any]) -> None:
        self.step = step
        self.objects = UserObjects(step.model, step.optimizer, step.loss_fn)
        self.python = PythonGenerators(self.objects.generators)
        self.places = {name: (container, key) for _, name, container, key in self.objects.places()}
        lifted = {item.name: item.current(step.optimizer) for item in step.lifted}
        self.batch = {f"batch[{i}]": leaf for i, leaf in enumerate(step.batch.check(batch))}
        held = {name: tensor for tensor, name, _, _ in self.objects.places()} | lifted | self.batch
        held = {name: tensor for name, tensor in held.items() if tensor.layout is torch.strided}
        self.gradients = [(parameter, parameter.grad) for parameter in step.model.parameters()]
        held |= {f"old gradient {i}": g for i, (_, g) in enumerate(self.gradients) if g is not None}
        unique = {id(tensor): tensor for tensor in held.values()}
        self.device = where_there_is_room(step.device, unique.values(), copies=4)
        self.saved = [(t, t.data, t.detach().to(self.device, copy=True)) for t in unique.values()]
        self.cpu = torch.get_rng_state()
        self.cuda = torch.cuda.get_rng_state(step.device) if step.device.type == "cuda" else None
        self.own = [(generator, generator.get_state()) for generator in step.generators]

    def now(self) -> Results:
        """What every tensor that the step can reach is now, by name."""
        tensors = {name: self.step_tensor(container, key) for name, (container, key) in self.places.items()}
        tensors |= {item.name: item.current(self.step.optimizer) for item in self.step.lifted} | self.batch
        return {
            name: tensor.detach().to(self.device, copy=True)
            for name, tensor in tensors.items()
            if isinstance(tensor, Tensor) and tensor.layout is torch.strided
        }

    @staticmethod
    def step_tensor(container: Any, key: Any) -> Any:
        """What lies in an entry now."""
        try:
            return container.cell_contents if hasattr(container, "cell_contents") else container[key]
        except (KeyError, IndexError, TypeError, ValueError):  # it has been taken out, or the container has no order
            return None

    def restore(self) -> None:
        """Put everything back; gradients are gone until `restore_gradients`."""
        self.objects.restore()
        with torch.no_grad():
            for tensor, data, value in self.saved:
                if tensor.data_ptr() != data.data_ptr() or tensor.shape != data.shape:
                    tensor.data = data
                tensor.copy_(value)
        for parameter, _ in self.gradients:
            parameter.grad = None
        self.python.restore()
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.step.device)
        for generator, drawn in self.own:
            generator.set_state(drawn)

    def restore_gradients(self) -> None:
        for parameter, gradient in self.gradients:
            parameter.grad = gradient


@contextmanager
def _preserved(step: Step, batch: Sequence[Any]) -> Iterator[_State]:
    state = _State(step, batch)
    try:
        for parameter, _ in state.gradients:
            parameter.grad = None
        yield state
    finally:
        state.restore()
        state.restore_gradients()
