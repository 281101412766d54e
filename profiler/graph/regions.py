"""Which part of the step, and which module, each node of the graph came from: known by construction.

While the step is traced, a `Recorder` stands between the tracer and the graph. It stamps every node that is
created with the region and the module that are running at that moment:

    recorder.region = Region.BACKWARD
    loss.backward()                      # every node created in here carries Region.BACKWARD

The module is the innermost one whose `forward` is running. A node of the backward gets the module of the
forward operation that it differentiates: autograd numbers its nodes as they are created, so the recorder
notes the number at each module border and, before an autograd node runs, looks up who created it.
"""

from bisect import bisect_right
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import get_proxy_mode


class Region(StrEnum):
    """A part of the training step, in the order in which they run."""

    INPUT = "input"  # placeholders
    FORWARD = "forward"
    LOSS = "loss"  # what loss_fn does after the model's last return
    BACKWARD = "backward"
    OPTIMIZER = "optimizer"
    OUTPUT = "output"


ROOT = "(model)"  # the module path of the model itself
LOSS_FN = "(loss_fn)"  # outside every module of the model
OPTIMIZER = "(optimizer)"
BATCH = "(batch)"


class Recorder:
    """Stamps `node.meta["region"]` and `node.meta["module"]` on each node while a step is traced."""

    def __init__(self, model: nn.Module, owners: Mapping[int, str]) -> None:
        self.region = Region.FORWARD
        self.names = {module: name or ROOT for name, module in model.named_modules()}
        self.leaves: list[torch.Tensor] = []  # whose gradients the backward accumulates
        self._owner = owners  # id of the tensor that stands for a parameter → path of its module
        self._stack: list[str] = []
        self._backward_module = LOSS_FN
        self._since_return: list[fx.Node] = []  # forward nodes created since a module of the model returned
        self._called = False
        self._borders: tuple[list[int], list[str]] = ([0], [LOSS_FN])  # autograd number, module from there on

    @property
    def module(self) -> str:
        """The path of the module that is running; of the one differentiated, in the backward."""
        if self.region is Region.OPTIMIZER:
            return OPTIMIZER
        if self._stack:
            return self._stack[-1]
        return self._backward_module if self.region is Region.BACKWARD else LOSS_FN

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Stamp the nodes that the active tracer creates, and follow the model's modules, until the end."""
        mode = get_proxy_mode()
        if mode is None:
            raise RuntimeError("Recorder.recording() is for use inside a function that make_fx traces")
        tracer: Any = mode.tracer
        create_node = tracer.create_node

        def stamped(*args: Any, **kwargs: Any) -> fx.Node:
            node: fx.Node = create_node(*args, **kwargs)
            node.meta["region"], node.meta["module"] = self.region, self.module
            if self.region is Region.FORWARD and not self._stack:
                self._since_return.append(node)
            return node

        with ExitStack() as stack:
            tracer.create_node = stamped
            stack.callback(tracer.__dict__.pop, "create_node")
            for module in self.names:
                if not isinstance(module, torch.jit.ScriptModule):
                    stack.callback(module.register_forward_pre_hook(self._enter, prepend=True).remove)
                    stack.callback(module.register_forward_hook(self._leave).remove)
            yield

    def end_forward(self, loss: torch.Tensor) -> None:
        """Call when `loss_fn` has returned: what ran after the model's last return is the loss.

        Hooks are then put on the loss's autograd graph, so that each backward node finds its module.
        """
        if self._called:
            for node in self._since_return:
                node.meta["region"] = Region.LOSS
        pending, seen = [loss.grad_fn], set[Any]()
        while pending:
            autograd_node = pending.pop()
            if autograd_node in seen or autograd_node is None:
                continue
            seen.add(autograd_node)
            variable = getattr(autograd_node, "variable", None)
            if variable is not None:
                self.leaves.append(variable)
            module = self._created_in(autograd_node)
            autograd_node.register_prehook(lambda _grads, module=module: self._differentiate(module))
            pending += [successor for successor, _ in autograd_node.next_functions]
        self.region = Region.BACKWARD

    def _created_in(self, autograd_node: Any) -> str:
        variable = getattr(autograd_node, "variable", None)  # an AccumulateGrad node has its parameter
        if variable is not None:
            return self._owner.get(id(variable), LOSS_FN)
        numbers, modules = self._borders
        return modules[bisect_right(numbers, autograd_node._sequence_nr()) - 1]

    def _differentiate(self, module: str) -> None:
        self._backward_module = module

    def _enter(self, module: nn.Module, _args: Any) -> None:
        self._called = True
        self._since_return.clear()
        self._stack.append(self.names[module])
        self._border()

    def _leave(self, module: nn.Module, _args: Any, _output: Any) -> None:
        name = self.names[module]
        left = self._stack.pop()
        while left != name:  # one that an exception has left, which the model caught
            left = self._stack.pop()
        self._border()

    def _border(self) -> None:
        numbers, modules = self._borders
        numbers.append(torch._C._autograd._get_sequence_nr())
        modules.append(self.module)
