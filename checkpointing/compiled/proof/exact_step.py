"""A captured step without its dropout: as it is otherwise, for the compiler; and in float64, as the truth.

    graph, dropouts = without_drops(graph_module)       # drops nothing, and compiles to the same kernels
    reference = Reference(torch.float64)
    torch.compile(loss_fn, backend=reference, dynamic=False)(model, *batch).backward()
    reference.copy_of(parameter).grad

Both rewrite the graph that Dynamo captured, where every dropout is a call with its probability as a constant, whether
a module's, a function's or one inside of `scaled_dot_product_attention`, and whoever wrote the model.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from checkpointing.compiled.partition import copied
from checkpointing.errors import CheckpointingError

# Probabilities that drop nothing. Not 0: the compiler would leave the operator out, and plan another graph.
NEVER = -1e-30  # a random number in [0, 1) is always above it
HARDLY_EVER = 1e-30  # attention takes none below 0; its kernels keep everything, those on a CPU all but 1 in 2**24

Rewrite = Callable[[fx.Node], None]


def without_drops(module: fx.GraphModule) -> tuple[fx.GraphModule, int]:
    """A copy of a captured graph whose dropouts draw their masks and drop nothing, and how many dropouts there are."""
    count = 0

    def rewrite(node: fx.Node) -> None:
        nonlocal count
        count += _change_dropout(node, _dropping_nothing, HARDLY_EVER)

    return _rewritten(module, rewrite), count


class Reference:
    """A backend of torch.compile that runs the captured graph operator by operator in `dtype`, without dropout.

    It runs on copies of its inputs; their gradients, and what the step writes into them, are the copies'. With
    `offload`, values saved for the backward wait on the host. Raises CheckpointingError if the step draws random
    numbers in another way than by dropout: then no two ways of running it have one truth.
    """

    def __init__(self, dtype: torch.dtype, offload: bool = False) -> None:
        self.dtype, self.offload = dtype, offload
        self.graph: fx.GraphModule | None = None
        self.copies: dict[int, Tensor] = {}

    def __call__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        self.graph = _rewritten(module, self._rewrite)
        for owner in self.graph.modules():
            for node in owner.graph.find_nodes(op="get_attr") if isinstance(owner, fx.GraphModule) else ():
                value = getattr(owner, str(node.target), None)
                if isinstance(value, Tensor):
                    setattr(owner, str(node.target), self._copied(value))
        return self._run

    def copy_of(self, tensor: Tensor) -> Tensor:
        """The copy of an input of the last run; what is no input, as it is."""
        return self.copies.get(id(tensor), tensor)

    def _run(self, *arguments: Any) -> Any:
        assert self.graph is not None
        self.copies = {id(value): self._copied(value) for value in arguments if isinstance(value, Tensor)}
        before = _generator_states(arguments)
        offloading = torch.autograd.graph.save_on_cpu() if self.offload else contextlib.nullcontext()
        with offloading:
            results = self.graph(*(self.copies.get(id(value), value) for value in arguments))
        if any(not torch.equal(a, b) for a, b in zip(before, _generator_states(arguments), strict=True)):
            raise CheckpointingError(
                "the step draws random numbers in another way than by dropout, so there is no reference that a "
                'compiled step comes near to: prove it with execution="eager", bitwise'
            )
        return results

    def _copied(self, tensor: Tensor) -> Tensor:
        dtype = self.dtype if tensor.is_floating_point() else tensor.dtype
        return tensor.detach().to(dtype, copy=True).requires_grad_(tensor.requires_grad)

    def _rewrite(self, node: fx.Node) -> None:
        _change_dropout(node, _identity, 0.0)
        target = node.target
        if target is torch.ops.higher_order.tag_activation_checkpoint:
            node.target = _call
        elif target in (torch.amp.autocast_mode._enter_autocast, torch.amp.autocast_mode._exit_autocast):
            node.target = _nothing
        elif node.op == "call_method" and target in ("float", "half", "bfloat16"):
            node.target, node.args = "to", (node.args[0], self.dtype)
        node.args = fx.node.map_aggregate(node.args, self._wide)
        node.kwargs = fx.node.map_aggregate(node.kwargs, self._wide)

    def _wide(self, value: Any) -> Any:
        return self.dtype if isinstance(value, torch.dtype) and value.is_floating_point else value


def _rewritten(module: fx.GraphModule, rewrite: Rewrite) -> fx.GraphModule:
    """A copy of the graph, and of the graphs inside of it, with `rewrite` applied to every node."""
    new = fx.GraphModule(module, copied(module.graph))
    for name, child in list(new.named_children()):
        if isinstance(child, fx.GraphModule):
            setattr(new, name, _rewritten(child, rewrite))
    for node in new.graph.nodes:
        rewrite(node)
    new.recompile()
    return new


def _change_dropout(node: fx.Node, function: Callable[..., Any], attention: float) -> bool:
    """Put `function` in the place of a dropout, or the probability `attention` into one inside of attention."""
    if node.target in (functional.dropout, torch.dropout):
        node.target = function
        return True
    if node.target is not functional.scaled_dot_product_attention:
        return False
    position = 4  # query, key, value, mask, probability
    given = node.args[position] if len(node.args) > position else node.kwargs.get("dropout_p", 0.0)
    if not given:
        return False
    if len(node.args) > position:
        node.args = (*node.args[:position], attention, *node.args[position + 1 :])
    else:
        node.kwargs = {**node.kwargs, "dropout_p": attention}
    return True


def _dropping_nothing(
    input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False, train: bool = True
) -> Tensor:
    """A dropout that draws its mask and keeps everything."""
    if not (p and training and train):
        return input
    result = torch.ops.aten.native_dropout.default(input, NEVER, True)[0]
    return input.copy_(result) if inplace else result


def _identity(input: Tensor, *_: Any, **__: Any) -> Tensor:
    return input


def _call(module: fx.GraphModule, *arguments: Any, **_: Any) -> Any:
    return module(*arguments)


def _nothing(*_: Any) -> None:
    return None


def _generator_states(arguments: Sequence[Any]) -> list[Tensor]:
    devices = {value.device for value in arguments if isinstance(value, Tensor) and value.device.type == "cuda"}
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in sorted(devices, key=str))]
