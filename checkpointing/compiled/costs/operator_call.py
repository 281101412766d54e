"""One operator with the shapes it is called with, without any data: what the measured costs are kept by.

call = call_of(node)     # fx.Node of an ATen operator, with fake tensors in meta["val"] of its inputs
call = call_with(torch.ops.aten.mm.default, (left, right), {})
str(call)                # aten.mm.default(bfloat16[8192, 768]/[768, 1]@cuda, bfloat16[768, 2304]/[2304, 1]@cuda)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves, tree_map

from checkpointing.compiled.loss.ordered_matmuls import timed_as
from checkpointing.errors import CostError
from profiler.graph.fake_tensors import communicates

_PLAIN = (int, float, complex, str, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))


@dataclass(frozen=True)
class TensorSpec:
    """A tensor's layout. Strides count elements, and may be zero or leave gaps."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device_type: str

    @property
    def extent(self) -> int:
        """Elements from the first one to the last one in memory, gaps included."""
        if 0 in self.shape:
            return 0
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, self.stride, strict=True))

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{[*self.shape]}/{[*self.stride]}@{self.device_type}"


@dataclass(frozen=True)
class OperatorCall:
    """An operator and its arguments, with a TensorSpec in place of every tensor."""

    operator: OpOverload
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __str__(self) -> str:
        shown = [_shown(value) for value in self.args]
        shown += [f"{name}={_shown(value)}" for name, value in sorted(self.kwargs.items())]
        return f"{self.operator}({', '.join(shown)})"

    def named(self) -> dict[str, Any]:
        """The arguments that are given, by their names in the operator's schema."""
        names = [argument.name for argument in self.operator._schema.arguments]
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}

    def tensors(self) -> Iterator[TensorSpec]:
        return (leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, TensorSpec))

    def filled(self, value_of: Callable[[str, Any], Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and named arguments with `value_of(name, value)` in place of each."""
        names = [argument.name for argument in self.operator._schema.arguments]
        args = tuple(value_of(name, value) for name, value in zip(names, self.args, strict=False))
        return args, {name: value_of(name, value) for name, value in self.kwargs.items()}


def call_of(node: fx.Node) -> OperatorCall:
    """The call that a node of a traced graph makes.

    Raises CostError where it is no operator of PyTorch's dispatcher, where it communicates with other ranks, and where
    an argument is not known before the step runs.
    """
    target, args, kwargs = timed_as(node)
    if node.op != "call_function" or not isinstance(target, OpOverload):
        raise CostError(f"{node.name} ({node.op} of {node.target}) is not a single operator: only those have a cost")
    if communicates(node):
        raise CostError(f"{node.name}: {node.target} needs the other ranks, and cannot be timed on one")

    return _call(target, tuple(args), kwargs, f"{node.name}: {node.target}")


def call_with(operator: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> OperatorCall:
    """The call of `operator` with these arguments, real or fake, written as a traced graph writes it: by position.

    Raises CostError where an argument is no number, name or dense tensor.
    """
    names = [argument.name for argument in operator._schema.arguments[len(args) :] if not argument.kwarg_only]
    given = list(itertools.takewhile(kwargs.__contains__, names))
    named = {name: value for name, value in kwargs.items() if name not in given}
    return _call(operator, (*args, *(kwargs[name] for name in given)), named, str(operator))


def _call(operator: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any], who: str) -> OperatorCall:
    def spec(value: Any) -> Any:
        return _spec(value, who)

    return OperatorCall(operator, tuple(tree_map(spec, args)), dict(tree_map(spec, kwargs)))


def _spec(value: Any, who: str) -> Any:
    name = ""
    if isinstance(value, fx.Node):
        name = f" {value.name}"
        if "val" not in value.meta:
            raise CostError(f"{who} has no shape for its input{name}: trace it with fake tensors")
        value = value.meta["val"]
    if isinstance(value, torch.Tensor):
        if value.layout is not torch.strided:
            raise CostError(f"{who} reads{name} with layout {value.layout}; it has to be dense")
        numbers = (*value.shape, *value.stride())
        if all(isinstance(number, int) for number in numbers):
            return TensorSpec(tuple(value.shape), tuple(value.stride()), value.dtype, value.device.type)
    elif isinstance(value, _PLAIN):
        return value
    raise CostError(
        f"{who} is called with{name} = {value}, which is not known before the step runs: compile with dynamic=False"
    )


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_shown, value))}]"
    if isinstance(value, TensorSpec):
        return str(value)
    return value.type if isinstance(value, torch.device) else repr(value)
