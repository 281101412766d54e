"""Turns parameters, buffers and optimizer state into inputs of a function, and back.

    state = lift(model, optimizer)              # one Lifted for each tensor that a step reads or updates
    with swapped(model, optimizer, {id(item.tensor): stand_in for ...}):
        ...                                     # the model and the optimizer now hold the stand-ins

Nothing of the user's objects has changed afterwards: every attribute of every module is put back.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from profiler.errors import StaleStepError, TraceError
from profiler.graph.regions import OPTIMIZER, ROOT


class NodeType(StrEnum):
    """What the output of a node is."""

    PARAM = "PARAM"
    BUFFER = "BUFFER"
    INPUT = "INPUT"  # a tensor of the batch
    ACT = "ACT"  # made in the forward or the loss, used in the backward
    GRAD = "GRAD"  # the gradient of a parameter
    OPT_STATE = "OPT_STATE"
    OTHER = "OTHER"


@dataclass(frozen=True)
class Lifted:
    """One tensor that the step finds in the user's objects, and where to find it again.

    `name` is `layer.weight` for a parameter or buffer and `layer.weight.exp_avg` for a state; a learning
    rate that is a tensor is `group0.lr`. `module` is the path of the module that owns it.
    """

    kind: NodeType
    name: str
    module: str
    tensor: Tensor
    holder: Any  # parameters, buffers: the module's dict; state: the parameter; groups: the group
    key: str

    def current(self, optimizer: Optimizer) -> Tensor:
        """The tensor that is there now (a checkpoint may have been loaded since the trace)."""
        holder = optimizer.state[self.holder] if isinstance(self.holder, Tensor) else self.holder
        tensor = holder.get(self.key)
        if not isinstance(tensor, Tensor):
            raise StaleStepError(f"{self.kind.value} {self.name} is no longer there: trace again")
        return tensor


def lift(model: nn.Module, optimizer: Optimizer) -> list[Lifted]:
    """Parameters, buffers, then optimizer state, each tensor once (tied weights under their first name)."""
    found: list[Lifted] = []
    for kind, dicts in (
        (NodeType.PARAM, [(path, module, module._parameters) for path, module in model.named_modules()]),
        (NodeType.BUFFER, [(path, module, module._buffers) for path, module in model.named_modules()]),
    ):
        seen: set[int] = set()
        for path, _, tensors in dicts:
            for key, tensor in tensors.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    name = f"{path}.{key}" if path else key
                    found.append(Lifted(kind, name, path or ROOT, tensor, tensors, key))
    owner = {id(item.tensor): item for item in found}
    for index, group in enumerate(optimizer.param_groups):
        for parameter in group["params"]:
            if id(parameter) not in owner:
                raise TraceError(
                    f"parameter group {index} of the optimizer holds a tensor of shape "
                    f"{tuple(parameter.shape)} that is no parameter of the model: register it on the model, "
                    "or trace a module that holds both"
                )
            item = owner[id(parameter)]
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    name = f"{item.name}.{key}"
                    found.append(Lifted(NodeType.OPT_STATE, name, item.module, value, parameter, key))
        for key, value in group.items():
            if isinstance(value, Tensor):
                name = f"group{index}.{key}"
                found.append(Lifted(NodeType.OPT_STATE, name, OPTIMIZER, value, group, key))
    return found


@contextmanager
def swapped(model: nn.Module, optimizer: Optimizer, stand_in: Mapping[int, Tensor]) -> Iterator[None]:
    """Inside, `model` and `optimizer` hold `stand_in[id(tensor)]` for each of their tensors that is in it."""

    def replace(value: Any) -> Any:
        return stand_in.get(id(value), value)

    modules = list(model.modules())
    before = [(dict(m.__dict__), dict(m._parameters), dict(m._buffers)) for m in modules]
    groups, state = optimizer.param_groups, optimizer.state
    try:
        for module in modules:
            for tensors in (module._parameters, module._buffers):
                for key, tensor in tensors.items():
                    tensors[key] = replace(tensor)
            if isinstance(module, nn.RNNBase):  # keeps a second list of its weights
                module.__dict__["_flat_weights"] = [replace(weight) for weight in module._flat_weights]
        optimizer.param_groups = [
            {key: [replace(p) for p in value] if key == "params" else replace(value) for key, value in group.items()}
            for group in groups
        ]
        optimizer.state = defaultdict(dict)
        for parameter, values in state.items():
            optimizer.state[replace(parameter)] = {key: replace(value) for key, value in values.items()}
        yield
    finally:
        optimizer.param_groups, optimizer.state = groups, state
        for module, (attributes, parameters, buffers) in zip(modules, before, strict=True):
            module.__dict__.clear()
            module.__dict__.update(attributes)
            module._parameters.clear()
            module._parameters.update(parameters)
            module._buffers.clear()
            module._buffers.update(buffers)
