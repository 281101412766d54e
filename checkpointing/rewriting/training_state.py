"""Everything that a training step changes, to be put back: parameters, buffers, optimizer state, batch, generators."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from profiler import TracedStep
from profiler.costs.storage import tensors_of, written


@dataclass
class State:
    """Copies of the tensors that `step` finds in the user's objects, in the order of `step.lifted`."""

    tensors: list[Tensor]
    batch: list[tuple[Tensor, Tensor]]  # a tensor of the batch that the step changes, and its copy
    generators: list[Tensor]  # those of `step.generators`
    cpu_generator: Tensor
    cuda_generator: Tensor | None


def save(step: TracedStep, batch: Sequence[Any], device: torch.device | str = "cpu") -> State:
    """Copy the state to `device`, with what the step changes of `batch`."""
    on_cuda = step.device.type == "cuda"
    return State(
        [item.current(step.optimizer).detach().to(device, copy=True) for item in step.lifted],
        [(tensor, tensor.to(device, copy=True)) for tensor in _changed_of(step, batch)],
        [generator.get_state() for generator in step.generators],
        torch.get_rng_state(),
        torch.cuda.get_rng_state(step.device) if on_cuda else None,
    )


def restore(step: TracedStep, state: State) -> None:
    """Write the saved values back into the user's tensors."""
    with torch.no_grad():
        for item, saved in zip(step.lifted, state.tensors, strict=True):
            item.current(step.optimizer).copy_(saved)
        for tensor, saved in state.batch:
            tensor.copy_(saved)
    for generator, drawn in zip(step.generators, state.generators, strict=True):
        generator.set_state(drawn)
    torch.set_rng_state(state.cpu_generator)
    if state.cuda_generator is not None:
        torch.cuda.set_rng_state(state.cuda_generator, step.device)


def _changed_of(step: TracedStep, batch: Sequence[Any]) -> list[Tensor]:
    """The tensors of `batch` into which the graph writes."""
    changed = {
        tensor.untyped_storage()._cdata
        for node in step.nodes
        for argument in written(node)
        for tensor in tensors_of(argument)
    }
    places = step.graph.find_nodes(op="placeholder")[len(step.lifted) :]
    return [
        tensor
        for node, tensor in zip(places, step.batch.check(batch), strict=True)
        if node.meta["val"].untyped_storage()._cdata in changed
    ]


@contextmanager
def preserved(step: TracedStep, batch: Sequence[Any], device: torch.device | str = "cpu") -> Iterator[State]:
    """Whatever is trained on `batch` inside is undone at the end, also what the step changes of the batch."""
    state = save(step, batch, device)
    try:
        yield state
    finally:
        restore(step, state)
