"""The optimizer state that does not exist yet: most optimizers make it in their first step, after the first backward.

missing_optimizer_state(parameters, device)     # bytes of each tensor, of every live optimizer that holds one of them
"""

from __future__ import annotations

import copy
import gc
import inspect
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim import Optimizer

from profiler.costs.memory import default_rounding, rounded

log = logging.getLogger(__name__)


def missing_optimizer_state(parameters: Collection[Tensor], device: torch.device) -> list[int]:
    """Bytes of each tensor on `device` that the first steps of the optimizers of `parameters` will make, and keep.

    Each optimizer's own `step` runs on fake tensors in its place. One that cannot run so is named in a warning, and
    counts nothing: the check of the first steps sees its state. Of several optimizers of one parameter (one that was
    replaced lives on in a traceback, say) the one with the most state counts.
    """
    wanted = {id(parameter) for parameter in parameters}
    counted: list[tuple[set[int], list[int]]] = []
    for optimizer in _optimizers(wanted):
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        rivals = [entry for entry in counted if entry[0] & held]
        missing = _missing(optimizer, device)
        if sum(missing) >= sum(sum(sizes) for _, sizes in rivals):
            counted = [entry for entry in counted if entry not in rivals] + [(held, missing)]
    return [size for _, sizes in counted for size in sizes]


def present_optimizer_state(parameters: Collection[Tensor]) -> list[Tensor]:
    """The tensors of optimizer state that the parameters have by now."""
    wanted = {id(parameter) for parameter in parameters}
    states = [optimizer.state for optimizer in _optimizers(wanted)]
    return [t for state in states for parameter in parameters for t in _tensors(state.get(parameter, {}))]


def _optimizers(wanted: Collection[int]) -> Iterator[Optimizer]:
    for candidate in gc.get_objects():
        if issubclass(type(candidate), Optimizer) and any(
            id(parameter) in wanted for group in candidate.param_groups for parameter in group["params"]
        ):
            yield candidate


def _missing(optimizer: Optimizer, device: torch.device) -> list[int]:
    groups = [
        [p for p in group["params"] if p.requires_grad and not optimizer.state.get(p)]
        for group in optimizer.param_groups
    ]
    if not any(groups):
        return []
    shadow: Any = copy.copy(optimizer)
    shadow.__dict__ = {key: value for key, value in optimizer.__dict__.items() if key != "step"}  # a schedule wraps it
    shadow.state = defaultdict(dict)
    step = inspect.getattr_static(type(optimizer), "step")  # wrapped by torch, to call the user's hooks
    without_hooks = getattr(step, "__wrapped__", step)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.no_grad():
            shadow.param_groups = [
                {**group, "params": [_fake(mode, p) for p in new]}
                for group, new in zip(optimizer.param_groups, groups, strict=True)
                if new
            ]
            without_hooks(shadow)
    except Exception as error:  # any optimizer's own code
        name = type(optimizer).__name__
        log.warning("the state of the optimizer %s cannot be predicted (%s): its first step will show it", name, error)
        return []
    rounding = default_rounding(device)
    return [rounded(t.untyped_storage().nbytes(), rounding) for t in _tensors(shadow.state) if t.device == device]


def _fake(mode: FakeTensorMode, parameter: Tensor) -> Tensor:
    fake = mode.from_tensor(parameter)
    fake.grad = torch.empty_like(fake)
    return fake


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
