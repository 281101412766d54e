"""Writes a whole training step, with its loss, backward and optimizer, as one graph of ATen operators.

    step = trace_train_step(model, loss_fn, optimizer, batch)        # loss_fn(model, *batch) -> scalar

`make_fx` runs the step once on fake tensors and writes down every operator. The model and the optimizer run
their own code, with their tensors swapped for inputs of the graph, so the graph does what eager does:
autograd decides the backward, and the optimizer's own `step` the update, in place. A number that changes from
step to step (Adam's bias correction, when the step counter is on the CPU) is arithmetic in the graph.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.optim import Optimizer
from torch.utils import _pytree as pytree

from profiler.errors import TraceError
from profiler.graph.fake_tensors import Fakes, explained, refuse_unfaithful
from profiler.graph.lift import Lifted, NodeType, lift, swapped
from profiler.graph.optimizer_state import (
    check_optimizer,
    groups_in_their_first_step,
    install_state,
    provisional_state,
    use_eager_implementation,
)
from profiler.graph.regions import BATCH, Recorder, Region
from profiler.graph.step import BatchSignature, TracedStep, constants_of

LossFn = Callable[..., Tensor]


def trace_train_step(model: nn.Module, loss_fn: LossFn, optimizer: Optimizer, batch: Sequence[Any]) -> TracedStep:
    """Trace `loss_fn(model, *batch)`, its backward and `optimizer.step()` as one graph.

    `loss_fn` returns a scalar tensor. `optimizer` is torch.optim SGD, Adam or AdamW, with or without state.
    `batch` is a tuple or list of any nesting of tensors and constants; constants, shapes and learning rates
    become part of the graph. Nothing runs and nothing of the user's objects changes, except that an optimizer
    without state gets the state with which its first step would start. The model may hold fake tensors: then
    there is a graph to analyse and nothing to run.

    Raises TraceError, with the module or operator in it, for what cannot be written as one graph.
    """
    started = time.perf_counter()
    _check_arguments(model, optimizer, batch)
    leaves, spec = pytree.tree_flatten(tuple(batch))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    fakes = Fakes()
    with provisional_state(optimizer, fakes) as fresh:
        lifted = lift(model, optimizer)
        stand_in = {id(item.tensor): fakes.of(item.tensor) for item in lifted}
        inputs = [stand_in[id(item.tensor)] for item in lifted] + [fakes.unaliased(t) for t in tensors]
        batch_at = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

        def trace(undampened: Sequence[int]) -> tuple[fx.GraphModule, list[str]]:
            graded: list[str] = []  # the parameters that got a gradient, in the order of their nodes

            def train_step(*arguments: Tensor) -> list[Tensor]:
                static = arguments[: len(lifted)]
                for position, tensor in zip(batch_at, arguments[len(lifted) :], strict=True):
                    leaves[position] = tensor
                of = {id(item.tensor): tensor for item, tensor in zip(lifted, static, strict=True)}
                with swapped(model, optimizer, of):
                    use_eager_implementation(optimizer)
                    for index in undampened:
                        optimizer.param_groups[index]["dampening"] = 0
                    loss = _run_step(model, loss_fn, optimizer, pytree.tree_unflatten(leaves, spec))
                    _copy_back_replaced(model, optimizer, lifted, static)
                    gradients = _gradients(lifted, static)
                graded.extend(gradients)
                return [loss, *gradients.values()]

            module = make_fx(train_step, tracing_mode="fake")(*inputs)
            refuse_unfaithful(module.graph)
            return module, graded

        graph_module, graded = trace(undampened=())
        parameters = {item.name: item.tensor for item in lifted if item.kind is NodeType.PARAM}
        dampened = groups_in_their_first_step(optimizer, fresh, [parameters[name] for name in graded])
        first = trace(undampened=dampened)[0] if dampened else None

    real, used = install_state(optimizer, lifted, fresh, set(graded))
    gradients: dict[str, fx.Node] = {}
    for module in (graph_module, first):
        if module is not None:
            found = _tidy(module, lifted, used)
            gradients = gradients or dict(zip(graded, found, strict=True))
    return TracedStep(
        graph_module=graph_module,
        first_graph_module=first,
        model=model,
        optimizer=optimizer,
        lifted=real,
        batch=BatchSignature.of(batch),
        batch_storages=[(t.untyped_storage()._cdata, t.untyped_storage().nbytes()) for t in tensors],
        gradients=gradients,
        device=next(p for p in model.parameters() if p.requires_grad).device,
        constants=constants_of(optimizer),
        training=model.training,
        trace_seconds=time.perf_counter() - started,
    )


def _check_arguments(model: nn.Module, optimizer: Optimizer, batch: Any) -> None:
    if not isinstance(batch, tuple | list):
        raise TraceError(
            f"batch is a {type(batch).__name__}: give a tuple or list of what loss_fn takes after the model"
        )
    check_optimizer(optimizer)
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not trainable:
        raise TraceError("the model has no trainable parameters: there is no training step to trace")
    devices = sorted({str(p.device) for p in trainable.values()})
    if len(devices) > 1:
        raise TraceError(f"the model's parameters are on {devices}: put the whole model on one device")
    if devices[0].startswith("cuda") and not torch.cuda.is_available():
        raise TraceError(
            "the model's (fake) parameters are on cuda and there is no GPU here, without which PyTorch's "
            "autograd runs no backward on cuda: put them on the cpu, and forecast with memory(rounding=512)"
        )
    for name, p in trainable.items():
        if p._backward_hooks or getattr(p, "_post_accumulate_grad_hooks", None):
            raise TraceError(f"parameter {name} has a gradient hook, which a graph cannot call: remove it")
    for index, leaf in enumerate(pytree.tree_leaves(tuple(batch))):
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            raise TraceError(f"tensor {index} of the batch requires a gradient: give it detached")


def _run_step(model: nn.Module, loss_fn: LossFn, optimizer: Optimizer, batch: Sequence[Any]) -> Tensor:
    """One training step under the tracer, region by region. Returns the detached loss."""
    recorder = Recorder(model)
    with recorder.recording(), explained(recorder), torch.enable_grad(), _autocast_cache():
        loss = loss_fn(model, *batch)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise TraceError(f"loss_fn returned {what}, and a loss is one number: reduce it, such as with .mean()")
        if not loss.requires_grad:
            raise TraceError("the loss does not depend on a trainable parameter: is loss_fn detached or in no_grad?")
        result = loss.detach()
        recorder.end_forward(loss)
        with torch.autograd.set_multithreading_enabled(False):
            loss.backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None and parameter.grad.layout is not torch.strided:
                raise TraceError(
                    f"parameter {name} gets a gradient of layout {parameter.grad.layout}: "
                    "build its module with sparse=False"
                )
        recorder.region = Region.OPTIMIZER
        optimizer.step()
        return result


@contextmanager
def _autocast_cache() -> Iterator[None]:
    """Let autocast cast a weight once, as in eager (make_fx turns that off), and forget the casts."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(before)


def _copy_back_replaced(
    model: nn.Module, optimizer: Optimizer, lifted: Sequence[Lifted], static: Sequence[Tensor]
) -> None:
    """Where the model or the optimizer put a new tensor in the place of a lifted one, copy it there."""
    stand_in = {id(item.tensor): tensor for item, tensor in zip(lifted, static, strict=True)}
    for item, tensor in zip(lifted, static, strict=True):
        holder = optimizer.state[stand_in[id(item.holder)]] if isinstance(item.holder, Tensor) else item.holder
        now = holder.get(item.key) if item.kind is not NodeType.OPT_STATE or isinstance(item.holder, Tensor) else tensor
        if now is tensor:
            continue
        if item.kind is NodeType.PARAM or now is None or now.shape != tensor.shape or now.dtype != tensor.dtype:
            raise TraceError(
                f"{item.kind.value} {item.name} is replaced by another object while the step runs: update it in place"
            )
        with torch.no_grad():
            tensor.copy_(now)


def _gradients(lifted: Sequence[Lifted], static: Sequence[Tensor]) -> dict[str, Tensor]:
    pairs = zip(lifted, static, strict=True)
    return {i.name: t.grad for i, t in pairs if i.kind is NodeType.PARAM and t.grad is not None}


def _tidy(module: fx.GraphModule, lifted: Sequence[Lifted], used: Sequence[bool]) -> list[fx.Node]:
    """Name the placeholders, drop unused states and annotations, and make the loss the only output.

    Returns the nodes whose outputs are the gradients.
    """
    graph = module.graph
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and str(node.target).startswith("profiler._record_function"):
            graph.erase_node(node)
    placeholders = graph.find_nodes(op="placeholder")
    for node, item, keep in zip(placeholders[: len(lifted)], lifted, used, strict=True):
        if not keep:
            graph.erase_node(node)
            continue
        node.meta.update(node_type=item.kind, region=Region.INPUT, module=item.module, source=item.name)
        _rename(node, f"{item.kind.value.lower()}_{item.name}")
    for index, node in enumerate(placeholders[len(lifted) :]):
        node.meta.update(node_type=NodeType.INPUT, region=Region.INPUT, module=BATCH, source=f"batch[{index}]")
        _rename(node, f"batch_{index}")
    for node in graph.nodes:
        if node.op == "get_attr":  # a tensor that the model keeps neither as parameter nor as buffer
            node.meta.update(node_type=NodeType.OTHER)
    output = graph.output_node()
    outputs: Any = output.args[0]
    loss, *gradients = outputs
    output.args = (loss,)
    output.meta.update(region=Region.OUTPUT, module="(output)")
    graph.lint()
    module.recompile()
    return list(gradients)


def _rename(node: fx.Node, name: str) -> None:
    node._rename("".join(c if c.isalnum() else "_" for c in name))
    node.target = node.name
