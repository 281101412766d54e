"""Python conditions on values that the trace can know: those of constants, and those of the batch alone.

A model may ask whether an attention mask is all ones, and skip the mask if it is. The trace then takes the branch that
eager takes for this batch. A `Decision` keeps what was asked, and the step asks it again of every batch.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import _disable_current_modes

from profiler.errors import BatchMismatchError
from profiler.graph.fake_tensors import draws_random_numbers


@dataclass(frozen=True)
class Decision:
    """A condition on the batch: the graph that computes it, the tensors it reads, and what it was at the trace."""

    condition: fx.GraphModule
    reads: tuple[int, ...]  # places among the tensors of the batch
    answer: Any  # a bool, an int, or lists of them
    module: str

    def check(self, tensors: Sequence[Tensor]) -> None:
        """Raise BatchMismatchError if the model would now take another branch."""
        with torch.no_grad():
            now = self.condition(*(tensors[index] for index in self.reads)).tolist()
        if now != self.answer:
            raise BatchMismatchError(
                f"module {self.module} decides by the values of the batch (such as: has a mask padding?), and decided "
                f"{self.answer} when the step was traced and {now} for this batch: trace one step for each of the two"
            )


def decide(tensor: Tensor, tracer: Any, batch: Sequence[Tensor | None], module: str) -> Decision | None:
    """What `tensor.tolist()` is in eager, if it depends on nothing but constants and the batch; otherwise None.

    `batch` has a real tensor for each placeholder of the graph that is one of the batch's, and None for the others.
    """
    if tensor not in tracer.tensor_tracker:
        return None
    node = tracer.tensor_tracker[tensor].proxy.node
    placeholders = tracer.graph.find_nodes(op="placeholder")
    real = dict(zip(placeholders, batch, strict=True))
    needed = _needed(node)
    if any(_is_unknown(one, real) for one in needed):
        return None
    graph, copies, reads = fx.Graph(), dict[fx.Node, fx.Node](), list[int]()
    first = len(batch) - sum(value is not None for value in batch)
    for one in (one for one in tracer.graph.nodes if one in needed):
        if one.op == "placeholder":
            reads.append(placeholders.index(one) - first)
        copies[one] = graph.node_copy(one, copies.__getitem__)
        copies[one].meta = {}
    graph.output(copies[node])
    with _disable_current_modes(), torch._C.DisableTorchFunction(), torch.no_grad():
        condition = fx.GraphModule(tracer.root, graph)
        answer = condition(*(real[one] for one in placeholders if one in needed)).tolist()
    return Decision(condition, tuple(reads), answer, module)


def _needed(node: fx.Node) -> set[fx.Node]:
    pending, needed = [node], set[fx.Node]()
    while pending:
        one = pending.pop()
        if one not in needed:
            needed.add(one)
            pending.extend(one.all_input_nodes)
    return needed


def _is_unknown(node: fx.Node, real: dict[fx.Node, Tensor | None]) -> bool:
    if node.op == "placeholder":
        return real[node] is None or isinstance(real[node], FakeTensor)
    if node.op == "get_attr":
        return not str(node.target).startswith("_tensor_constant")
    schema = getattr(node.target, "_schema", None)
    return schema is None or schema.is_mutable or draws_random_numbers(node) or _is_written(node)


def _is_written(node: fx.Node) -> bool:
    return any(getattr(getattr(user.target, "_schema", None), "is_mutable", False) for user in node.users)


@contextmanager
def untold_of_tracing() -> Iterator[None]:
    """Hugging Face's models ask whether a tensor is fake, and then leave eager's path: answer that it is not."""
    library: Any = sys.modules.get("transformers.utils.import_utils")
    original = getattr(library, "is_fake_tensor", None)
    if original is not None:
        library.is_fake_tensor = lambda _: False
    try:
        yield
    finally:
        if original is not None:
            library.is_fake_tensor = original
