"""What a plan is of: the step's inputs, its graph, PyTorch and the kind of device, to be compared with another's.

key = graph_key(dynamo_graph_module, inputs, joint_step)
why = key.difference(other)         # "" if they are the same step
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from checkpointing.compiled.joint_step import JointStep
from checkpointing.compiled.kernels import tensors


@dataclass(frozen=True)
class GraphKey:
    """`digest` covers every node of the joint graph; the rest says what differs where digests do."""

    torch: str
    device: str  # its kind
    inputs: dict[str, str]  # as Dynamo names them: {"x": "float32[8, 32]"}
    operators: list[str]  # of the kernels, in their order
    digest: str

    def difference(self, planned: GraphKey) -> str:
        """How this step differs from the one that was planned, in half a sentence; "" if it does not."""
        for what, here, there in (("PyTorch", self.torch, planned.torch), ("a device", self.device, planned.device)):
            if here != there:
                return f"it was made with {what} {there}, and this is {here}"
        for name in [*planned.inputs, *self.inputs]:
            here, there = self.inputs.get(name, "not there"), planned.inputs.get(name, "not there")
            if here != there:
                return f"input {name} is {here}, and {there} in the plan"
        for here, there in zip(self.operators, planned.operators, strict=False):
            if here != there:
                return f"the model runs {here} where the plan has {there}"
        if len(self.operators) != len(planned.operators):
            return f"the model runs {len(self.operators)} operators, and {len(planned.operators)} in the plan"
        return "" if self.digest == planned.digest else "the operators' shapes or constants are others"


def graph_key(module: fx.GraphModule, inputs: Sequence[str], step: JointStep) -> GraphKey:
    """`module` is Dynamo's graph, whose placeholders have the names of the user's variables; `inputs` describe them."""
    names = [str(node.target).removeprefix("L_").strip("_") for node in module.graph.find_nodes(op="placeholder")]
    return GraphKey(
        torch=torch.__version__.partition("+")[0],
        device=step.device.type,
        inputs=dict(zip(names, inputs, strict=True)),
        operators=[str(kernel.node.target) for kernel in step.order],
        digest=graph_digest(step.graph),
    )


def graph_digest(graph: fx.Graph) -> str:
    """The same for graphs with the same nodes: names, operators, constants, shapes and strides."""
    return hashlib.sha256("\n".join(map(_line, graph.nodes)).encode()).hexdigest()


def described(value: Any) -> str:
    """ "float32[8, 32]", or the name of another type."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _line(node: fx.Node) -> str:
    arguments = [_constant(a) for a in pytree.tree_leaves((node.args, node.kwargs), is_leaf=_is_node)]
    results = [f"{described(t)}{list(t.stride())}" for t in tensors(node)]
    return f"{node.name} {node.op} {_target(node)} {arguments} {results}"


def _is_node(value: Any) -> bool:
    return isinstance(value, fx.Node)


def _target(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)) if callable(node.target) else str(node.target)


def _constant(value: Any) -> str:
    plain = (fx.Node, int, float, bool, str, type(None), torch.dtype, torch.layout, torch.memory_format)
    return repr(value) if isinstance(value, plain) else getattr(value, "type", type(value).__name__)
