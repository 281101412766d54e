"""One forward and backward by any compiler, from the same parameters, buffers and seed, and all that it leaves.

steps = OneStep(loss_fn, model, batch, seed=0)
with undone(model):
    results = steps.run(steps.compiled("inductor"))         # ("gradient", "blocks.0.weight") → tensor on the CPU
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from checkpointing.compiled.proof.exact_step import Reference
from checkpointing.errors import CheckpointingError
from profiler.graph.two_runs import same_bits

CHANGED = 0.01  # of each parameter, for another draw

Key = tuple[str, str]  # kind and name: ("gradient", "blocks.0.weight")
Results = dict[Key, Tensor]  # on the CPU
LossFn = Callable[..., Tensor]


@dataclass
class OneStep:
    """Runs the step, compiled by one backend or another, from the same state and seed."""

    loss_fn: LossFn
    model: nn.Module
    batch: tuple[Any, ...]
    seed: int

    def __post_init__(self) -> None:
        self.buffers = _buffers(self.model)

    def compiled(self, by: Any) -> LossFn:
        loss_fn = self.loss_fn

        def step(model: nn.Module, *batch: Any) -> Tensor:
            return loss_fn(model, *batch)

        # Dynamo counts compilations by code object; each of these is the first of its own
        own = types.FunctionType(step.__code__.replace(), step.__globals__, "step", None, step.__closure__)
        return torch.compile(own, backend=by, dynamic=False)

    def run(self, compiled: LossFn, reference: Reference | None = None) -> Results:
        """Loss, gradients and buffers after one step, on the CPU. What the step writes to is put back."""
        copy_of = reference.copy_of if reference is not None else _itself
        leaves = [leaf for leaf in tree_leaves(self.batch) if isinstance(leaf, Tensor)]
        written = [(tensor, _on_cpu(tensor)) for tensor in (*self.model.parameters(), *leaves)]
        try:
            _forget_gradients(self.model, copy_of)
            torch.manual_seed(self.seed)
            loss = compiled(self.model, *self.batch)
            if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
                raise CheckpointingError(
                    "loss_fn(model, *batch) must return the loss, a scalar that requires a gradient"
                )
            loss.backward()
            results: Results = {("loss", "loss"): _on_cpu(loss)}
            for name, parameter in self.model.named_parameters():
                gradient = copy_of(parameter).grad
                if gradient is not None:
                    results["gradient", name] = _on_cpu(gradient)
            for name, buffer in self.model.named_buffers():
                results["buffer", name] = _on_cpu(copy_of(buffer))
        finally:
            _forget_gradients(self.model, copy_of)
            _put_back(self.buffers)
            with torch.no_grad():
                for tensor, copy in written:
                    if not same_bits(_on_cpu(tensor), copy):  # the model clips its weights, or changes the batch
                        tensor.copy_(copy)
        return results


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)


def _itself(tensor: Tensor) -> Tensor:
    return tensor


def _forget_gradients(model: nn.Module, copy_of: Callable[[Tensor], Tensor]) -> None:
    for parameter in model.parameters():
        parameter.grad = None
        copy_of(parameter).grad = None


@dataclass(frozen=True)
class _Buffer:
    owner: dict[str, Any]
    name: str
    tensor: Tensor
    copy: Tensor


def _buffers(model: nn.Module) -> list[_Buffer]:
    """Those that are registered, and tensors that are attributes without being registered."""
    return [
        _Buffer(owner, name, value, _on_cpu(value))
        for module in model.modules()
        for owner in (module._buffers, vars(module))
        for name, value in owner.items()
        if isinstance(value, Tensor)
    ]


@torch.no_grad()
def _put_back(buffers: Sequence[_Buffer]) -> None:
    for buffer in buffers:
        buffer.owner[buffer.name] = buffer.tensor  # a module may have put another tensor in its place
        buffer.tensor.copy_(buffer.copy)


@contextmanager
def undone(model: nn.Module) -> Iterator[None]:
    """Gradients and generators as they were. Buffers are put back after each step."""
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for parameter, gradient in gradients:
                parameter.grad = gradient


@contextmanager
def changed(model: nn.Module, draw: int) -> Iterator[None]:
    """Every parameter times 1 ± `CHANGED` at random inside, and as it was outside."""
    generator = torch.Generator().manual_seed(draw)
    saved = [(parameter, _on_cpu(parameter)) for parameter in model.parameters()]
    with torch.no_grad():
        for parameter, value in saved:
            noise = torch.randn(value.shape, generator=generator).to(parameter)
            parameter.mul_(1 + CHANGED * noise)
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in saved:
                parameter.copy_(value)
