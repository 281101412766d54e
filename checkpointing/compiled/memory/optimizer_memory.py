"""The optimizer state that does not exist yet: most optimizers make it in their first step, after the first backward.

missing_optimizer_state(parameters, device)     # bytes of each tensor, of every live optimizer that holds one of them
"""

from __future__ import annotations

import copy
import gc
import inspect
import itertools
import logging
import sys
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.optim import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from profiler.costs.memory import default_rounding, rounded

log = logging.getLogger(__name__)


def missing_optimizer_state(parameters: Collection[Tensor], device: torch.device) -> list[int]:
    """Bytes of each tensor on `device` that the first steps of the optimizers of `parameters` will make, and keep.

    Each optimizer's own `step` runs on fake tensors in its place. One that cannot run so is named in a warning, and
    counts nothing: the check of the first steps sees its state. Of several optimizers of one parameter (one that was
    replaced lives on in a traceback, say) the one with the most state counts.
    """
    wanted = {id(parameter) for parameter in with_shards(parameters)}
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
    parameters = with_shards(parameters)
    wanted = {id(parameter) for parameter in parameters}
    states = [optimizer.state for optimizer in _optimizers(wanted)]
    return [t for state in states for parameter in parameters for t in _tensors(state.get(parameter, {}))]


def trained_bytes(parameters: Collection[Tensor], device: torch.device) -> int:
    """Bytes on `device` of the gradients and the optimizer state that the parameters have by now; of shards, this
    rank's."""
    gradients = [parameter.grad for parameter in with_shards(parameters) if parameter.grad is not None]
    found = [_local(tensor) for tensor in (*gradients, *present_optimizer_state(parameters))]
    return sum(storage_bytes(tensor for tensor in found if tensor.device == device))


def storage_bytes(tensors: Iterable[Tensor]) -> list[int]:
    """Bytes of each storage among them."""
    return list({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}.values())


def with_shards(parameters: Collection[Tensor]) -> list[Tensor]:
    """`parameters`, and this rank's shards of those that FSDP2 has gathered: optimizers hold the shards."""
    gathered = {id(parameter) for parameter in parameters}
    module = sys.modules.get("torch.distributed.fsdp._fully_shard._fsdp_param")
    if module is None:
        return list(parameters)
    found = [held for held in gc.get_objects() if type(held) is module.FSDPParam]
    return [*parameters, *(p.sharded_param for p in found if id(getattr(p, "_unsharded_param", None)) in gathered)]


def _optimizers(wanted: Collection[int]) -> Iterator[Optimizer]:
    """Those of the wanted parameters. One around another (Accelerate's, say) is left out: its step would move the
    other's real state, and the other is found by itself."""
    for candidate in gc.get_objects():
        if (
            issubclass(type(candidate), Optimizer)
            and not _is_wrapper(candidate)
            and any(id(parameter) in wanted for group in candidate.param_groups for parameter in group["params"])
        ):
            yield candidate


def _is_wrapper(optimizer: Optimizer) -> bool:
    """Whether its state or its groups are no attributes of its own, or it holds another optimizer."""
    own = vars(optimizer)
    return not {"state", "param_groups"} <= own.keys() or any(
        isinstance(held, Optimizer) and held is not optimizer for value in own.values() for held in _held(value)
    )


def _held(value: Any) -> Iterator[Any]:
    yield from value if isinstance(value, list | tuple) else value.values() if isinstance(value, dict) else (value,)
    yield getattr(value, "__self__", None)  # of a bound method


def _missing(optimizer: Optimizer, device: torch.device) -> list[int]:
    groups = [
        [p for p in group["params"] if p.requires_grad and not optimizer.state.get(p)]
        for group in optimizer.param_groups
    ]
    if not any(groups):
        return []
    name = type(optimizer).__name__
    if any(isinstance(held, nn.Module) for value in vars(optimizer).values() for held in _held(value)):
        log.warning(
            "the state of the optimizer %s cannot be predicted (its step may change a model that it holds)", name
        )
        return []
    shadow: Any = copy.copy(optimizer)
    shadow.__dict__ = {key: value for key, value in optimizer.__dict__.items() if key != "step"}  # a schedule wraps it
    shadow.state = defaultdict(dict)
    step = inspect.getattr_static(type(optimizer), "step")  # wrapped by torch, to call the user's hooks
    without_hooks = getattr(step, "__wrapped__", step)
    try:
        # a part of the step that is compiled (torchao's) must not be compiled here: Dynamo would skip it ever after
        eager = torch.compiler.set_stance("force_eager")
        with eager, FakeTensorMode(allow_non_fake_inputs=True) as mode, _Numbers(), torch.no_grad():
            shadow.param_groups = [
                {**group, "params": [_fake(mode, p) for p in new]}
                for group, new in zip(optimizer.param_groups, groups, strict=True)
                if new
            ]
            without_hooks(shadow, *_closure(without_hooks))
    except Exception as error:  # any optimizer's own code
        log.warning("the state of the optimizer %s cannot be predicted (%s): its first step will show it", name, error)
        return []
    rounding = default_rounding(device)
    return [rounded(t.untyped_storage().nbytes(), rounding) for t in _tensors(shadow.state) if t.device == device]


class _Numbers(TorchDispatchMode):
    """Where a step asks for a value that fake tensors do not have, it is a half, 1 or False: the state's size is no
    matter of it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        try:
            return func(*args, **(kwargs or {}))
        except DataDependentOutputException:
            if func is not torch.ops.aten._local_scalar_dense.default:
                raise
            return False if args[0].dtype == torch.bool else 0.5 if args[0].dtype.is_floating_point else 1


def _closure(step: Callable[..., Any]) -> tuple[Callable[[], float], ...]:
    """The arguments of a step that wants a closure (LBFGS): losses that fall, so that it goes on."""
    parameter = inspect.signature(step).parameters.get("closure")
    if parameter is None or parameter.default is not inspect.Parameter.empty:
        return ()
    falling = itertools.count(0.0, -1.0)
    return (lambda: next(falling),)


def _fake(mode: FakeTensorMode, parameter: Any) -> Tensor:
    fake: Tensor = mode.from_tensor(_local(parameter))
    fake.grad = torch.empty_like(fake)
    return fake


def _local(tensor: Any) -> Tensor:
    """This rank's part of it."""
    tensors = sys.modules.get("torch.distributed.tensor")  # not imported here: a process without ranks has no need
    over_ranks = tensors is not None and isinstance(tensor, tensors.DTensor)
    part: Tensor = tensor.to_local() if over_ranks else tensor
    return part


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)
