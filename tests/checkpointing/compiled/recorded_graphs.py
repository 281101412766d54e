"""Joint graphs of full-size models as AOTAutograd and inductor's joint passes made them on an H200 (torch 2.11), with
the allocator's peaks of the compiled step there: GPT-2 8x1024, BERT 16x512, Llama 1B 4x1024 and ViT 64 in bf16,
ResNet-152 64 under bf16 autocast.

    graph = recorded("gpt2"); problem = problem_of(graph)
"""

from __future__ import annotations

import gzip
import json
import operator
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch._inductor.inductor_prims  # registers the operators that the graphs call
from torch import fx

from checkpointing.compiled import joint_step
from checkpointing.compiled.embedding.operators import add_rows_
from checkpointing.compiled.joint_problem import planning_problem
from checkpointing.compiled.joint_step import JointStep
from checkpointing.compiled.loss.candidates import Candidate, candidate
from checkpointing.compiled.rules import Rules
from checkpointing.planners.problem import PlanningProblem

FOLDER = Path(__file__).parent / "joint_graphs"
NAMES = ("gpt2", "bert", "llama", "vit", "resnet152")
RATE, BANDWIDTH, LAUNCH_S = 600e12, 3.6e12, 2e-6  # a card of about H200's speed: flop/s of matmuls, bytes/s, seconds


@dataclass(frozen=True)
class RecordedGraph:
    module: fx.GraphModule
    saved: list[fx.Node]  # by inductor, if nobody asks for less
    num_fwd_outputs: int
    static_inputs: list[int]
    static_bytes: int
    peak_bytes: int  # of forward and backward, measured


def recorded(name: str) -> RecordedGraph:
    with gzip.open(FOLDER / f"{name}.json.gz", "rt") as file:
        data = json.load(file)
    graph = _graph(data["nodes"])
    by_name = {node.name: node for node in graph.nodes}
    return RecordedGraph(
        module=fx.GraphModule(torch.nn.Module(), graph),
        saved=[by_name[saved] for saved in data["saved"]],
        num_fwd_outputs=data["num_fwd_outputs"],
        static_inputs=data["static"],
        static_bytes=data["static_bytes"],
        peak_bytes=max(data["peak_fwd"], data["peak_bwd"]),
    )


def problem_of(
    recorded_graph: RecordedGraph, monkeypatch: Any, inside: Callable[[fx.Node], int] = lambda node: 0
) -> PlanningProblem:
    """The planners' question, with times by a roofline, and bytes `inside` a called operator. The tensors are of the
    device "meta" in the place of "cuda"."""
    on_meta(monkeypatch)
    step = JointStep.of(
        recorded_graph.module,
        recorded_graph.num_fwd_outputs,
        recorded_graph.static_inputs,
        fused=True,
        default=recorded_graph.saved,
    )
    return planning_problem(step, _seconds, _moving, recorded_graph.static_bytes, {}, inside=inside)


def candidate_of(
    recorded_graph: RecordedGraph, chunks: int | None, monkeypatch: Any, kernel: bool = False
) -> Candidate:
    """The graph with its loss in chunks, and what inductor then saves by itself."""
    on_meta(monkeypatch)
    graph = recorded_graph
    return candidate(graph.module, [], graph.num_fwd_outputs, graph.static_inputs, True, kernel, chunks)


def chunked_problem_of(recorded_graph: RecordedGraph, step: JointStep) -> PlanningProblem:
    forward = [kernel.node for kernel in step.order if kernel.node in step.forward]
    pinned = {node: why for node in forward if (why := Rules().pinned(node))}
    return planning_problem(step, _seconds, _moving, recorded_graph.static_bytes, pinned)


def on_meta(monkeypatch: Any) -> None:
    """The tensors count as a GPU's."""
    monkeypatch.setattr(joint_step, "_device", lambda graph: torch.device("meta"))
    monkeypatch.setattr(joint_step, "default_rounding", lambda device: 512)


def _moving(size: int) -> float:
    return size / BANDWIDTH + LAUNCH_S


def _seconds(node: fx.Node) -> float:
    """Of a called operator: its operations at `RATE`, or its bytes, whichever takes longer."""
    tensors = [source.meta["val"] for source in node.all_input_nodes if isinstance(source.meta["val"], torch.Tensor)]
    moved = sum(t.numel() * t.element_size() for t in tensors) / BANDWIDTH
    return LAUNCH_S + max(moved, _operations(node, tensors) / RATE)


def _operations(node: fx.Node, tensors: list[torch.Tensor]) -> float:
    target = str(node.target)
    if add_rows_ in node.args:
        return 0.0
    if "mm" in target or "functionalized" in target:
        matrices = [t for t in tensors if t.dim() >= 2]
        if len(matrices) < 2:  # logits that their gradient replaces
            return 0.0
        left, right = matrices[-2:]
        return 2 * left.numel() * right.shape[-1]
    if "convolution" in target:
        images, weight = tensors[:2] if "backward" not in target else tensors[1:3]
        return 2 * images.numel() * weight.numel() / max(1, images.shape[1])
    if "attention" in target:
        batch, heads, length, width = tensors[0].shape
        return 4 * batch * heads * length * length * width
    return 0.0


def _graph(rows: list[list[Any]]) -> fx.Graph:
    graph = fx.Graph()
    nodes: dict[str, fx.Node] = {}
    for name, op, target, args, kwargs, value, module in rows:
        if op == "placeholder":
            node = graph.placeholder(target)
        elif op == "output":
            node = graph.output(tuple(_argument(args[0], nodes)))
        else:
            made = tuple(_argument(args, nodes))
            node = graph.create_node(op, _target(target), made, _argument(kwargs or {}, nodes), name=name)
        node.meta["val"] = _value(value)
        if module:
            node.meta["nn_module_stack"] = {"": (module, None)}
        nodes[name] = node
    return graph


def _target(text: str) -> Any:
    if text.startswith("<built-in function getitem"):
        return operator.getitem
    found: Any = torch.ops
    for part in text.split("."):
        found = getattr(found, part)
    return found


def _argument(value: Any, nodes: dict[str, fx.Node]) -> Any:
    if isinstance(value, list):
        return [_argument(item, nodes) for item in value]
    if not isinstance(value, dict):
        return value
    if "n" in value:
        return nodes[value["n"]]
    if "r" in value:
        text = value["r"]
        return getattr(torch, text.removeprefix("torch.")) if text.startswith("torch.") else text
    return {key: _argument(item, nodes) for key, item in value.get("d", {}).items()}


def _value(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_value(item) for item in value)
    if isinstance(value, dict):
        dtype = getattr(torch, value["dtype"].removeprefix("torch."))
        return torch.empty_strided(value["shape"], value["stride"], dtype=dtype, device="meta")
    return None
