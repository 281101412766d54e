"""Everything that a training step changes, to be put back: parameters, buffers, optimizer state, generators."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from profiler import TracedStep


@dataclass
class State:
    """Copies of the tensors that `step` finds in the user's objects, in the order of `step.lifted`."""

    tensors: list[Tensor]
    cpu_generator: Tensor
    cuda_generator: Tensor | None


def save(step: TracedStep, device: torch.device | str = "cpu") -> State:
    """Copy the state to `device`."""
    on_cuda = step.device.type == "cuda"
    return State(
        [item.current(step.optimizer).detach().to(device, copy=True) for item in step.lifted],
        torch.get_rng_state(),
        torch.cuda.get_rng_state(step.device) if on_cuda else None,
    )


def restore(step: TracedStep, state: State) -> None:
    """Write the saved values back into the user's tensors."""
    with torch.no_grad():
        for item, saved in zip(step.lifted, state.tensors, strict=True):
            item.current(step.optimizer).copy_(saved)
    torch.set_rng_state(state.cpu_generator)
    if state.cuda_generator is not None:
        torch.cuda.set_rng_state(state.cuda_generator, step.device)


def where_there_is_room(step: TracedStep) -> torch.device | str:
    """The step's device if copies of all that it changes take less than a tenth of its free memory, else "cpu"."""
    if step.device.type != "cuda":
        return "cpu"
    free, _ = torch.cuda.mem_get_info(step.device)
    needed = sum(t.numel() * t.element_size() for t in (item.current(step.optimizer) for item in step.lifted))
    return step.device if 10 * needed < free else "cpu"


@contextmanager
def preserved(step: TracedStep, device: torch.device | str = "cpu") -> Iterator[State]:
    """Whatever is trained inside is undone at the end."""
    state = save(step, device)
    try:
        yield state
    finally:
        restore(step, state)
