"""The kernels of a joint graph of AOTAutograd in the order in which they run.

    joint = JointStep.of(graph_module, num_fwd_outputs, static_input_indices, fused=True, default=saved)
    joint.saved_nodes(plan.kept)                    # for the partitioner

The joint graph holds the forward, and the backward that reads its results. Here its kernels (`kernels.py`) are brought
into the order in which they run: the forward; what the compiler makes there for the backward alone (a mask in the place
of what it is computed from), as early as it can; the backward.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from checkpointing.compiled.kernels import Kernel, Kernels, bytes_of, find_kernels, is_element, is_sum_so_far, tensors
from checkpointing.compiled.loss.ordered_matmuls import total_of
from checkpointing.compiled.partition import IN_FORWARD
from profiler.costs.memory import default_rounding, rounded

if TYPE_CHECKING:
    from torch._functorch.partitioners import NodeInfo

_VARIABLE = re.compile(r"^[LG]\['(\w+)'\]")  # local or global
_BY_DICT = re.compile(r"\.__dict__\['_modules'\]\['(\w+)'\]")  # and where a module has a __getattr__ of its own
_PERMUTATIONS = (torch.ops.aten.permute.default, torch.ops.aten.transpose.int)
_MODELS = ("self", "model", "fn")  # the last is torch.compile's own, where a container of torch.nn is compiled


@dataclass
class JointStep:
    """The kernels of a joint graph in their order, the forward's first."""

    graph: fx.Graph
    kernels: Kernels
    order: list[Kernel]
    forward: frozenset[fx.Node]  # those that the forward can run
    outputs: tuple[fx.Node, ...]  # of the forward
    gradients: tuple[fx.Node, ...]  # and other outputs of the backward
    tangents: tuple[fx.Node, ...]
    default: tuple[fx.Node, ...]  # what the compiler saves if nobody asks for less
    updated: frozenset[fx.Node]  # inputs that the forward writes to: what reads them cannot run again
    device: torch.device
    fused: bool

    @classmethod
    def of(
        cls,
        module: fx.GraphModule,
        num_fwd_outputs: int,
        static_input_indices: Collection[int],
        fused: bool,
        default: Collection[fx.Node],
        info: NodeInfo | None = None,
    ) -> JointStep:
        """`default` are the nodes that the compiler saves by itself; `info` is torch's classification of all, if it is
        known."""
        from torch._functorch.partitioners import classify_nodes

        info = info or classify_nodes(module, list(static_input_indices), num_fwd_outputs)
        graph = module.graph
        kernels = find_kernels(graph, fused, default)
        position = {node: index for index, node in enumerate(graph.nodes)}
        early = _with_ancestors(kernels, (kernels.root[node] for node in default)).intersection(info.unclaimed_nodes)
        forward = frozenset({*info.required_fw_nodes, *early})
        written = _with_ancestors(kernels, (kernels.root[node] for node in graph.nodes if node.meta.get(IN_FORWARD)))
        where_it_is = written.union(info.required_fw_nodes)  # chunks of a loss, in the order in which they were written
        key: dict[fx.Node, tuple[int, int, int]] = {}
        for node, kernel in kernels.of.items():
            if node in forward and node in where_it_is:
                key[node] = (0, position[node], 0)
            elif node in forward:
                earliest = max((key[read][1] for read in kernel.reads if read in key), default=0)
                key[node] = (0, earliest, position[node])
            else:
                key[node] = (1, position[node], 0)
        [output] = graph.find_nodes(op="output")
        results = output.args[0]
        assert isinstance(results, tuple | list)
        nodes = [kernels.root[node] if isinstance(node, fx.Node) else None for node in results]
        placeholders = graph.find_nodes(op="placeholder")
        return cls(
            graph=graph,
            kernels=kernels,
            order=sorted(kernels.of.values(), key=lambda kernel: key[kernel.node]),
            forward=forward,
            outputs=tuple(node for node in nodes[:num_fwd_outputs] if node is not None),
            gradients=tuple(node for node in nodes[num_fwd_outputs:] if node is not None),
            tangents=tuple(node for node in placeholders if "tangents" in str(node.target)),
            default=tuple(dict.fromkeys(default)),
            updated=frozenset(_updated(graph, kernels.root)),
            device=_device(graph),
            fused=fused,
        )

    @cached_property
    def storages(self) -> dict[fx.Node, int]:
        """Kernel or tangent → the index of its storage in the problem; what has elements has one for each."""
        found: dict[fx.Node, int] = {}
        for node in (*self.tangents, *(kernel.node for kernel in self.order)):
            if isinstance(node.meta.get("val"), torch.Tensor):
                found[node] = len(found)
        return found

    def added_to(self, node: fx.Node) -> fx.Node | None:
        """The kernel whose result the node adds to, where that is; None if it is no such addition."""
        total = total_of(node)
        while total is not None and total_of(total) is not None:
            total = total_of(total)
        return None if total is None else self.kernels.root[total]

    @property
    def default_roots(self) -> set[fx.Node]:
        """The kernels whose results the compiler saves by itself."""
        return {self.kernels.root[node] for node in self.default}

    def size(self, node: fx.Node) -> int:
        """Bytes of the node's result, as the allocator counts them."""
        rounding = default_rounding(self.device)
        larger = self.kernels.padded.get(node, node)
        return sum(rounded(bytes_of(t), rounding) for t in tensors(larger) if t.device.type == self.device.type)

    def saved_nodes(self, kept: Collection[int]) -> list[fx.Node]:
        """The nodes of the forward that the partition saves when the storages `kept` are kept.

        Of a sum that grows in place it is the last, which holds all of it: from an earlier one the backward would add
        the rest a second time. Of images [N, H, W, C] that are only read as [N, C, H, W], it is the permutation: before
        a convolution, inductor lays out whatever has four dimensions as if the second were the channels, and the
        convolution would find strides that few kernels take.
        """
        wanted = set(kept)
        whole = {self.added_to(node): node for node in self.graph.nodes if is_sum_so_far(node)}
        storages = [(node, index) for node, index in self.storages.items() if node in self.forward]
        return [_as_read(whole.get(node, node)) for node, index in storages if index in wanted]


def _as_read(node: fx.Node) -> fx.Node:
    """The permutation of four dimensions through which alone the node is read, or itself."""
    value, readers = node.meta.get("val"), list(node.users)
    if isinstance(value, Tensor) and value.dim() == 4 and len(readers) == 1 and readers[0].target in _PERMUTATIONS:
        return readers[0]
    return node


def module_of(node: fx.Node) -> str:
    """The path of the module that ran the node, or whose backward it is; "" outside of all modules.

    As in `named_modules` of the model, where that is compiled itself or is `model` or `self` in the compiled function;
    with the variable's name in front where it is another.
    """
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return ""
    written = str(list(stack.values())[-1][0])  # as Dynamo writes it: L['model'].blocks.0
    path = _VARIABLE.sub(r"\1", _BY_DICT.sub(r".\1", written))
    first, _, below = path.partition(".")
    return below if first in _MODELS else path


def _updated(graph: fx.Graph, root: Mapping[fx.Node, fx.Node]) -> set[fx.Node]:
    """The inputs into which the graph copies, or AOTAutograd does after the forward (the statistics of batch norm)."""
    from torch._functorch._aot_autograd.descriptors import InputMutationAOTOutput

    copies = graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default)
    [output] = graph.find_nodes(op="output")
    results = [d for d in output.meta.get("desc", ()) if isinstance(d, InputMutationAOTOutput)]
    mutated = {result.mutated_input for result in results}
    inputs = graph.find_nodes(op="placeholder")
    return {root[node.args[0]] for node in copies} | {n for n in inputs if mutated and n.meta.get("desc") in mutated}


def _with_ancestors(kernels: Kernels, nodes: Iterable[fx.Node]) -> set[fx.Node]:
    found: set[fx.Node] = set()
    pending = list(nodes)
    while pending:
        node = pending.pop()
        if node not in found:
            found.add(node)
            pending += kernels.of[node].reads if node in kernels.of else ()
    return found


def made_by(node: fx.Node) -> fx.Node:
    """The operator that makes the node's result: itself, or what it takes one result out of."""
    source = node.args[0] if is_element(node) else node
    assert isinstance(source, fx.Node)
    return source


def _device(graph: fx.Graph) -> torch.device:
    """The device of the step's memory: the first GPU of a placeholder, or the CPU."""
    devices = [t.device for node in graph.find_nodes(op="placeholder") for t in tensors(node)]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
