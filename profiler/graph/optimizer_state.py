"""How an optimizer's state gets into a graph, above all before its first step, when there is none yet.

    with provisional_state(optimizer, fakes) as fresh:      # every parameter has a state, of fake tensors
        ...                                                 # trace
    real, used = install_state(optimizer, lifted, fresh, graded)

Eager makes a parameter's state in the first step in which it gets a gradient. Which parameters do is known
only when the step has been traced: the trace starts from stand-ins, and the real ones are made after it.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.optimizer import _get_foreach_kernels_supported_devices

from profiler.errors import TraceError
from profiler.graph.fake_tensors import Fakes
from profiler.graph.lift import Lifted, NodeType


def check_optimizer(optimizer: Optimizer) -> None:
    """Refuse an optimizer whose step cannot be written as one graph, and say which can."""
    kind = type(optimizer)
    if kind not in (SGD, Adam, AdamW):
        raise TraceError(
            f"the optimizer {kind.__name__} cannot be traced: use torch.optim.SGD, Adam or AdamW "
            "(plain, foreach or fused; LBFGS and others with a closure run the model several times per step)"
        )
    for index, group in enumerate(optimizer.param_groups):
        if group.get("differentiable"):
            raise TraceError(f"parameter group {index} has differentiable=True: build the optimizer without it")


def use_eager_implementation(optimizer: Optimizer) -> None:
    """Write into each group the implementation (foreach or plain) that the optimizer takes in eager.

    Left to itself it would look at the type of the parameters, and stand-ins have another type.
    """
    for group in optimizer.param_groups:
        if group["foreach"] is None and group["fused"] is None:
            devices = _get_foreach_kernels_supported_devices()
            foreach = all(
                p.device.type in devices and type(p) in (Tensor, nn.Parameter, FakeTensor) for p in group["params"]
            )
            scalar_lr = not isinstance(group["lr"], Tensor) or group.get("capturable", False)
            group["foreach"] = foreach and (scalar_lr or isinstance(optimizer, SGD))


def missing_state(optimizer: Optimizer) -> list[nn.Parameter]:
    """The parameters that get their state in their first step, which has not yet happened."""
    return [
        parameter
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad and not optimizer.state.get(parameter) and _has_state(optimizer, group)
    ]


def _has_state(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    return not isinstance(optimizer, SGD) or group["momentum"] != 0


def initial_state(optimizer: Optimizer, parameter: Tensor, group: Mapping[str, Any]) -> dict[str, Any]:
    """The state with which the first step of `parameter` starts; the optimizer is left as it was.

    Adam makes it with its own code. SGD's momentum starts at zero, which gives the first step's gradient to
    the bit when there is no dampening (`trace_train_step` deals with dampening).
    """
    if isinstance(optimizer, SGD):
        return {"momentum_buffer": torch.zeros_like(parameter, memory_format=torch.preserve_format)}
    state, gradient = optimizer.state, parameter.grad
    optimizer.state = defaultdict(dict)
    parameter.grad = parameter.detach()  # only its presence is looked at
    try:
        adam: Any = optimizer
        adam._init_group({**group, "params": [parameter]}, [], [], [], [], [], [])
        made: dict[str, Any] = optimizer.state[parameter]
    finally:
        optimizer.state, parameter.grad = state, gradient
    return made


def groups_in_their_first_step(optimizer: Optimizer, fresh: Sequence[Tensor], graded: Sequence[Tensor]) -> list[int]:
    """Groups of SGD whose first step differs from the following: it takes the gradient undampened."""
    if not isinstance(optimizer, SGD):
        return []
    new, indices = {id(parameter) for parameter in fresh}, []
    with_gradient = {id(parameter) for parameter in graded}
    for index, group in enumerate(optimizer.param_groups):
        first = [id(p) in new for p in group["params"] if id(p) in with_gradient]
        if group["dampening"] != 0 and any(first):
            if not all(first):
                raise TraceError(
                    f"parameter group {index} of SGD has dampening, and momentum for some of its "
                    "parameters only: run one eager step first"
                )
            indices.append(index)
    return indices


@contextmanager
def provisional_state(optimizer: Optimizer, fakes: Fakes) -> Iterator[list[nn.Parameter]]:
    """Inside, parameters without state have one of fake tensors. Gives those parameters."""
    fresh = missing_state(optimizer)
    try:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if any(parameter is one for one in fresh):
                    with fakes.mode:
                        optimizer.state[parameter] = initial_state(optimizer, fakes.of(parameter), group)
        yield fresh
    finally:
        for parameter in fresh:
            optimizer.state.pop(parameter, None)


def install_state(
    optimizer: Optimizer,
    lifted: Sequence[Lifted],
    fresh: Sequence[nn.Parameter],
    graded: set[str],
) -> tuple[list[Lifted], list[bool]]:
    """Make the real state of the parameters that got a gradient; eager gives the others none.

    Returns what is lifted with the real tensors, and for each of `lifted` whether it is still an input.
    """
    name_of = {id(item.tensor): item.name for item in lifted if item.kind is NodeType.PARAM}
    new = {id(parameter) for parameter in fresh}
    group_of = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    real: list[Lifted] = []
    used: list[bool] = []
    for item in lifted:
        provisional = isinstance(item.holder, Tensor) and id(item.holder) in new
        used.append(not provisional or name_of[id(item.holder)] in graded)
        if not used[-1]:
            continue
        if provisional:
            parameter = item.holder
            if isinstance(parameter, FakeTensor):
                optimizer.state[parameter][item.key] = item.tensor
            elif not optimizer.state.get(parameter):
                optimizer.state[parameter] = initial_state(optimizer, parameter, group_of[id(parameter)])
            item = replace(item, tensor=optimizer.state[parameter][item.key])
        real.append(item)
    return real, used
