"""Fake tensors for tracing, and what their refusals mean to a user."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    UnsupportedFakeTensorException,
    UnsupportedOperatorException,
)
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.utils import _pytree as pytree

from profiler.errors import TraceError
from profiler.graph.fake_kernels import FaithfulFakeTensorMode
from profiler.graph.regions import Recorder, Region

_CHANGE_STORAGE = (torch.ops.aten.set_, torch.ops.aten.resize_, torch.ops.aten.set_data)
_EXPERTS = (
    "choose a mixture of experts whose shapes do not depend on data: "
    'model.set_experts_implementation("batched_mm"), or "grouped_mm" with a model in bfloat16'
)
_UNFAITHFUL = {  # operators whose fake kernel describes other outputs than the real one gives
    "aten.mkldnn_rnn_layer.default": "trace and run inside `torch.backends.mkldnn.flags(enabled=False)`",
}


class Fakes:
    """Makes fake tensors of one mode: the shape, stride, dtype, device and storage of a tensor, and no
    memory.

    Operators whose result has a shape that depends on values are refused; a number that depends on values is
    allowed, and becomes arithmetic in the graph.
    """

    def __init__(self) -> None:
        self.shapes = ShapeEnv(allow_dynamic_output_shape_ops=False)
        self.mode = FaithfulFakeTensorMode(allow_non_fake_inputs=True, shape_env=self.shapes, static_shapes=True)

    def of(self, tensor: Tensor) -> Tensor:
        """A fake of `tensor`, a parameter if it is one; tensors that share a storage give fakes that do."""
        if not isinstance(tensor, FakeTensor):
            fake: Tensor = self.mode.from_tensor(tensor, static_shapes=True)
            fake.grad = None  # a step starts without gradients, whatever the last one left
            return fake
        fake = self.unaliased(tensor)
        return nn.Parameter(fake, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else fake

    def unaliased(self, tensor: Tensor) -> Tensor:
        """A fake of the same shape, stride, dtype and device with a storage of its own."""
        with self.mode:
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)


def refuse_unfaithful(graph: fx.Graph) -> None:
    """Raise TraceError if the graph has an operator that would do something else than in eager.

    These are operators that give other outputs than their fake kernels say, and random numbers in the
    backward: a checkpointed forward puts the generator's state back before it draws them again, which a graph
    does not.
    """
    for node in graph.nodes:
        if node.op != "call_function":
            continue
        place = f"in the {node.meta['region'].value}, module {node.meta['module']}"
        if isinstance(node.target, torch._ops.HigherOrderOperator):
            raise TraceError(
                f"{place}: {node.target} holds graphs of its own, whose nodes can be neither measured nor "
                "planned: compute both branches and choose with torch.where, or write the loop in Python"
            )
        if getattr(node.target, "overloadpacket", None) in _CHANGE_STORAGE:
            raise TraceError(
                f"{place}: {node.target} gives a tensor another storage: write into the tensor with copy_(), or assign "
                "a new tensor to the attribute"
            )
        for value in pytree.tree_leaves(node.meta.get("val")):
            if isinstance(value, Tensor) and value.layout is not torch.strided:
                raise TraceError(
                    f"{place}: {node.target} makes a tensor of layout {value.layout}, which has no storage to plan: "
                    "compute with dense tensors, or with index tensors and index_add"
                )
        # attention's backward is tagged, but is given the forward's seed
        again = node.meta["region"] is Region.BACKWARD and "backward" not in str(node.target)
        if again and draws_random_numbers(node):
            raise TraceError(
                f"{place}: {node.target} would draw other random numbers than the forward did: take "
                "torch.utils.checkpoint out of this module, or its dropout"
            )
        advice = _UNFAITHFUL.get(str(node.target))
        if advice is not None:
            raise TraceError(
                f"{place}: {node.target} gives other outputs than its fake kernel promises, so its graph would not "
                f"run: {advice}"
            )


# How namespaces of operators begin that wait for other ranks.
_COLLECTIVES = ("c10d", "_c10d", "_dtensor", "symm_mem")


def communicates(node: fx.Node) -> bool:
    """Whether the node sends to other ranks, or waits for what they send."""
    return str(getattr(node.target, "namespace", "")).startswith(_COLLECTIVES)


def draws_random_numbers(node: fx.Node) -> bool:
    """Whether the node draws random numbers. Attention with a `dropout_p` of 0 draws none."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    return argument(node, "dropout_p", default=1.0) != 0


def argument(node: fx.Node, name: str, default: Any) -> Any:
    """The value of the argument `name` of the node's operator; `default` where the operator has none such."""
    target: Any = node.target
    for position, parameter in enumerate(target._schema.arguments):
        if parameter.name == name:
            given = node.args[position] if position < len(node.args) else node.kwargs.get(name)
            return parameter.default_value if given is None else given
    return default


@contextmanager
def explained(recorder: Recorder) -> Iterator[None]:
    """Turn a failure inside into a TraceError that names the module, the operator, and what to change."""
    try:
        yield
    except TraceError:
        raise
    except (DataDependentOutputException, GuardOnDataDependentSymNode, DynamicOutputShapeException) as error:
        operator = getattr(error, "func", None)
        what = f"the operator {operator}" if operator else "a Python condition on a tensor's value"
        raise TraceError(
            f"in {_place(recorder)}: {what} depends on data, so that no one graph holds the step "
            f"({_first(error)}): {_way_out(error)}"
        ) from error
    except (UnsupportedOperatorException, UnsupportedFakeTensorException) as error:
        operator = getattr(error, "func", None) or _first(error)
        raise TraceError(
            f"in {_place(recorder)}: {operator} does not run on fake tensors: "
            "give it a fake kernel with torch.library.register_fake, or replace it"
        ) from error
    except (RuntimeError, TypeError, AttributeError, ValueError, AssertionError) as error:
        if "inputs of BF16 type" in str(error):  # grouped_mm, whose fake kernel takes no other
            raise TraceError(f"in {_place(recorder)}: {_first(error)}: {_EXPERTS}") from error
        if type(error).__name__ == "UncapturedHigherOrderOpError":  # of torch._dynamo, which takes a second to import
            raise TraceError(
                f"in {_place(recorder)}: control flow operators (torch.cond, map, scan, while_loop) and flex_attention "
                "hold graphs of their own, whose nodes can be neither measured nor planned: compute both branches and "
                "choose with torch.where, write the loop in Python, or use scaled_dot_product_attention"
            ) from error
        raise TraceError(
            f"in {_place(recorder)}: {_first(error)} (while running on fake tensors, which have no "
            "values: if the step runs in eager, keep what fails here out of it, such as numpy, printing of "
            "values, compiled or scripted parts)"
        ) from error


def _way_out(error: BaseException) -> str:
    """What to change, by the code in which the values were asked for."""
    files, traceback = set[str](), error.__traceback__
    while traceback is not None:
        files.add(f"{traceback.tb_frame.f_code.co_filename}:{traceback.tb_frame.f_code.co_name}".replace("\\", "/"))
        traceback = traceback.tb_next
    if any("torch/distributions/" in name for name in files):
        return "build the torch.distributions object with validate_args=False, which checks no values"
    if any("transformers/" in name and "experts" in name for name in files):
        return _EXPERTS
    return (
        "use torch.where or masks in the place of conditions and of data-dependent shapes, keep numbers as tensors "
        "(not float(x)), or decide outside the model and pass a constant in the batch"
    )


def _place(recorder: Recorder) -> str:
    return f"the {recorder.region.value}, module {recorder.module}"


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
