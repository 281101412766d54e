"""The tensors that a step reads or updates, and where in the user's objects each of them is found again.

state = lift(model, optimizer)              # one Lifted for each parameter, buffer and optimizer state
state[0].current(optimizer)                 # the tensor that is there now
"""

from dataclasses import dataclass, field
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
    signature: tuple[Any, ...] = field(init=False)  # shape, stride, dtype and device at the trace

    def __post_init__(self) -> None:
        object.__setattr__(self, "signature", _signature(self.tensor))

    def current(self, optimizer: Optimizer) -> Tensor:
        """The tensor that is there now (a checkpoint may have been loaded since the trace)."""
        holder = optimizer.state[self.holder] if isinstance(self.holder, Tensor) else self.holder
        now = holder.get(self.key)
        if not isinstance(now, Tensor):
            raise StaleStepError(f"{self.kind.value} {self.name} is no longer there: trace again")
        if self.kind is NodeType.PARAM and now is not self.tensor:
            raise StaleStepError(
                f"parameter {self.name} is another object than when the step was traced, and the optimizer does not "
                "know it (load_state_dict without assign=True keeps the parameters): trace again"
            )
        if _signature(now) != self.signature:
            raise StaleStepError(
                f"{self.kind.value} {self.name} was {_in_words(self.signature)} when the step was traced and is now "
                f"{_in_words(_signature(now))}: convert it back, or trace again"
            )
        return now


def _signature(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _in_words(signature: tuple[Any, ...]) -> str:
    shape, stride, dtype, device = signature
    return f"{dtype} of shape {tuple(shape)} and stride {stride} on {device}"


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
