"""Writes a whole training step, with its loss, backward and optimizer, as one graph of ATen operators.

    step = trace_train_step(model, loss_fn, optimizer, batch)        # loss_fn(model, *batch) -> scalar

`make_fx` runs the step once on fake tensors and writes down every operator. The model and the optimizer run
their own code, with their tensors swapped for inputs of the graph, so the graph does what eager does:
autograd decides the backward, and the optimizer's own `step` the update, in place. A number that changes from
step to step (Adam's bias correction, when the step counter is on the CPU) is arithmetic in the graph.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.optim import Optimizer

from profiler.errors import TraceError
from profiler.graph.batch import BatchSignature, check_leaves, flatten
from profiler.graph.capture.stand_ins import unsupported
from profiler.graph.capture.wrappers import is_wrapper, refuse_wrapper
from profiler.graph.fake_tensors import Fakes
from profiler.graph.lift import Lifted, NodeType, lift
from profiler.graph.one_trace import LossFn, StepTrace, TraceResult
from profiler.graph.optimizer_state import (
    check_optimizer,
    groups_in_their_first_step,
    install_state,
    provisional_state,
)
from profiler.graph.regions import ROOT
from profiler.graph.staleness import Assumptions
from profiler.graph.step import TracedStep, constants_of
from profiler.graph.tidy import tidy


def trace_train_step(
    model: nn.Module, loss_fn: LossFn, optimizer: Optimizer, batch: Sequence[Any], check: bool = False
) -> TracedStep:
    """Trace `loss_fn(model, *batch)`, its backward and `optimizer.step()` as one graph.

    `loss_fn` returns a scalar tensor. `optimizer` is torch.optim SGD, Adam or AdamW, with or without state.
    `batch` is a tuple or list of any nesting of tensors and constants (mappings and dataclasses included). Constants
    and shapes become part of the graph. Learning rates and betas are read in every step, unless the optimizer is fused.
    Nothing runs and nothing of the user's objects changes, except that an optimizer without state gets the state with
    which its first step would start. The model may hold fake tensors: then there is a graph to analyse and nothing to
    run.

    With `check`, one eager step and one traced step run from the present state and must leave the same bits; everything
    is put back.

    Raises TraceError, with the module or operator in it, for what cannot be written as one graph.
    """
    started = time.perf_counter()
    _check_arguments(model, optimizer, batch)
    leaves, structure = flatten(tuple(batch))
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    fakes = Fakes()
    with provisional_state(optimizer, fakes) as fresh:
        lifted = lift(model, optimizer)
        fake_model = any(isinstance(p, FakeTensor) for p in model.parameters())
        tracer = StepTrace(model, loss_fn, optimizer, lifted, fakes, leaves, structure, fake_model)
        result = tracer.run()
        parameters = {item.name: item.tensor for item in lifted if item.kind is NodeType.PARAM}
        dampened = groups_in_their_first_step(optimizer, fresh, [parameters[name] for name in result.graded])
        first = tracer.run(undampened=dampened) if dampened else None
        reached = _as_lifted(tracer, [trace for trace in (result, first) if trace])

    real, used = install_state(optimizer, lifted, fresh, set(result.graded))
    gradients: dict[str, fx.Node] = {}
    for trace in (result, first):
        if trace is not None:
            node_of = {id(one.tensor): one.node for one in trace.captured}
            inputs = [(node_of.get(id(item.tensor)), fake, item) for item, fake in reached]
            found = tidy(trace.module, lifted, used, inputs)
            gradients = gradients or dict(zip(trace.graded, found, strict=True))
    real += [item for item, _ in reached]
    own = {key: value for key, value in result.read.items() if (id(vars(value[0])), value[1]) not in result.changed}
    step = TracedStep(
        graph_module=result.module,
        first_graph_module=first.module if first else None,
        model=model,
        loss_fn=loss_fn,
        optimizer=optimizer,
        lifted=real,
        batch=BatchSignature.of(batch),
        batch_storages=[(t.untyped_storage()._cdata, t.untyped_storage().nbytes()) for t in tensors],
        gradients=gradients,
        device=next(p for p in model.parameters() if p.requires_grad).device,
        constants=constants_of(optimizer),
        assumptions=Assumptions.of(result.names, real, own),
        decisions=result.decisions,
        generators=result.generators,
        trace_seconds=time.perf_counter() - started,
    )
    if check:
        match = step.matches_eager(batch)
        if not match:
            raise TraceError(f"{match.summary()}: what makes it differ cannot be written as one graph")
    return step


def _as_lifted(tracer: StepTrace, traces: Sequence[TraceResult]) -> list[tuple[Lifted, Any]]:
    """The tensors that the step reached besides parameters, buffers and states, with the fakes that stand for them."""
    places = {id(tensor): (name, holder, key) for tensor, name, holder, key in reversed(list(tracer.objects.places()))}
    found: dict[int, tuple[Lifted, Any]] = {}
    taken: set[str] = set()
    for one in (one for trace in traces for one in trace.captured):
        name, holder, key = places.get(id(one.tensor), ("", {}, ""))
        if not name or name in taken:
            name = f"captured_{len(found)}"
        if not isinstance(holder, dict) or holder.get(key) is not one.tensor:
            holder, key = {name: one.tensor}, name
        taken.add(name)
        found.setdefault(
            id(one.tensor),
            (
                Lifted(NodeType.BUFFER, name, name.rpartition(".")[0] or ROOT, one.tensor, holder, key),
                one.node.meta["val"],
            ),
        )
    return list(found.values())


def _check_arguments(model: nn.Module, optimizer: Optimizer, batch: Any) -> None:
    if not isinstance(batch, tuple | list):
        raise TraceError(
            f"batch is a {type(batch).__name__}: give a tuple or list of what loss_fn takes after the model"
        )
    check_leaves(batch)
    for path, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise TraceError(
                f"module {path or ROOT} is scripted, and runs outside of Python: use the module it was made of"
            )
        if is_wrapper(module):
            refuse_wrapper(module, path or ROOT)
    for kind, named in (("parameter", model.named_parameters()), ("buffer", model.named_buffers())):
        for name, tensor in named:
            obstacle = unsupported(tensor)
            if obstacle:
                raise TraceError(f"{kind} {name} {obstacle}")
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
    for index, leaf in enumerate(flatten(tuple(batch))[0]):
        if isinstance(leaf, Tensor):
            obstacle = unsupported(leaf)
            if obstacle:
                raise TraceError(f"tensor {index} of the batch {obstacle}")
            if leaf.requires_grad:
                raise TraceError(f"tensor {index} of the batch requires a gradient: give it detached")
