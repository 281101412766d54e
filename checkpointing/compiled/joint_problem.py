"""A joint graph of AOTAutograd as the planners' question.

    joint = JointStep.of(graph_module, num_fwd_outputs, static_input_indices, fused=True, saved=default)
    problem = joint.problem(seconds, resident=torch.cuda.memory_allocated())
    plan = decide_checkpoints(problem, "8GB")
    joint.saved_nodes(plan.kept)                    # for the partitioner

The joint graph holds the forward, and the backward that reads its results. Here its kernels (`kernels.py`) are brought
into the order in which they run: the forward; what the compiler makes there for the backward alone (a mask in the place
of what it is computed from), as early as it can; the backward.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import fx

from checkpointing.compiled.kernels import (
    Kernel,
    Kernels,
    bytes_of,
    find_kernels,
    gathers,
    is_element,
    is_random,
    tensors,
)
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import make_schedule
from profiler import Region
from profiler.costs.memory import default_rounding, rounded

SOLVING_S = 4.0  # seconds for the solver: compiling takes tens of them
NEGLIGIBLE = 1 / 2000  # of the saved bytes: values smaller than that are kept without asking what they cost

_VARIABLE = re.compile(r"^[LG]\['(\w+)'\]")  # local or global
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
    ) -> JointStep:
        """`default` are the nodes that the compiler saves by itself."""
        from torch._functorch.partitioners import classify_nodes

        info = classify_nodes(module, list(static_input_indices), num_fwd_outputs)
        graph = module.graph
        kernels = find_kernels(graph, fused, default)
        position = {node: index for index, node in enumerate(graph.nodes)}
        early = _with_ancestors(kernels, (kernels.root[node] for node in default)).intersection(info.unclaimed_nodes)
        forward = frozenset({*info.required_fw_nodes, *early})
        key: dict[fx.Node, tuple[int, int, int]] = {}
        for node, kernel in kernels.of.items():
            if node in info.required_fw_nodes:
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

    @property
    def default_roots(self) -> set[fx.Node]:
        """The kernels whose results the compiler saves by itself."""
        return {self.kernels.root[node] for node in self.default}

    def size(self, node: fx.Node) -> int:
        """Bytes of the node's result, as the allocator counts them."""
        rounding = default_rounding(self.device)
        larger = self.kernels.padded.get(node, node)
        return sum(rounded(bytes_of(t), rounding) for t in tensors(larger) if t.device.type == self.device.type)

    def problem(
        self,
        seconds: Callable[[fx.Node], float],
        moving: Callable[[int], float],
        resident: int,
        pinned: Mapping[fx.Node, str],
        forced: Collection[fx.Node] = (),
    ) -> PlanningProblem:
        """`seconds` of a called kernel, `moving` a number of bytes (seconds), `resident` bytes that are there anyway.

        `pinned` are kernels whose results must be kept, and why; `forced` those whose results must be recomputed. What
        is small or an output of the forward is kept as well.
        """
        return _Builder(self, seconds, moving, resident, pinned, frozenset(forced)).build()

    def saved_nodes(self, kept: Collection[int]) -> list[fx.Node]:
        """The nodes of the forward that the partition saves when the storages `kept` are kept."""
        wanted = set(kept)
        return [node for node, index in self.storages.items() if index in wanted and node in self.forward]


class _Builder:
    """Ranks: the tangents are made at the start of the backward, and one last node reads all that leaves the step."""

    def __init__(
        self,
        step: JointStep,
        seconds: Callable[[fx.Node], float],
        moving: Callable[[int], float],
        resident: int,
        pinned: Mapping[fx.Node, str],
        forced: frozenset[fx.Node],
    ) -> None:
        self.step, self.seconds, self.moving = step, seconds, moving
        self.resident, self.pinned_nodes, self.forced = resident, pinned, forced
        forward = [kernel for kernel in step.order if kernel.node in step.forward]
        backward = [kernel for kernel in step.order if kernel.node not in step.forward]
        self.nodes: list[fx.Node | None] = [k.node for k in forward]
        self.nodes += [*step.tangents, *(k.node for k in backward), None]
        self.rank = {node: rank for rank, node in enumerate(self.nodes) if node is not None}
        self.start = len(forward)

    def build(self) -> PlanningProblem:
        step, nodes, storages = self.step, self.nodes, self.step.storages
        owners: list[fx.Node] = list(storages)
        # autograd holds the tangents until the backward has returned
        leaving = [n for n in (*step.outputs, *step.tangents, *step.gradients) if n in self.rank]
        elements: dict[fx.Node, list[int]] = {}
        for node, index in storages.items():
            if is_element(node):
                elements.setdefault(_made_by(node), []).append(index)
        created: list[tuple[int, ...]] = []
        held: list[tuple[int, ...]] = []
        inputs: list[tuple[int, ...]] = []
        for run in nodes:
            mine = () if run is None else (storages[run],) if run in storages else tuple(elements.get(run, ()))
            held.append(mine)
            created.append(() if run is not None and is_element(run) else mine)
            reads = leaving if run is None else step.kernels.of[run].reads if run in step.kernels.of else ()
            inputs.append(tuple(dict.fromkeys(self.rank[read] for read in reads if read in self.rank)))
        writers: list[tuple[int, ...]] = [
            (self.rank[_made_by(node)],) if node in step.forward else () for node in owners
        ]
        size = [step.size(node) for node in owners]
        default = step.default_roots
        never = frozenset(i for i, n in enumerate(owners) if {n, _made_by(n)} & self.forced and n not in step.outputs)
        activations = [i for i, n in enumerate(owners) if n in step.forward and n in default and i not in never]
        problem = PlanningProblem(
            names=[node.name if node is not None else "output" for node in nodes],
            modules=[module_of(node) if node is not None else "" for node in nodes],
            regions=[Region.FORWARD if rank < self.start else Region.BACKWARD for rank in range(len(nodes))],
            time=[self._time(node) for node in nodes],
            workspace=[0] * len(nodes),
            inputs=inputs,
            held=held,
            created=created,
            runs_once=[rank >= self.start or node in step.outputs for rank, node in enumerate(nodes)],
            storage_names=[node.name for node in owners],
            size=size,
            owned=[False] * len(owners),
            writers=writers,
            activations=activations,
            pinned=self._pinned(owners, size, activations),
            resident=self.resident + self._generator_states(),
            targets=[str(node.target) if node is not None else "output" for node in nodes],
            never_kept=never,
            solving_s=SOLVING_S,
            copies_once=True,
        )
        problem = replace(problem, workspace=_reused(problem, [self._generated(node) for node in nodes]))
        unplanned = make_schedule(problem, problem.default_kept)
        return replace(problem, default_added_s=unplanned.added_seconds)

    def _pinned(self, owners: list[fx.Node], size: list[int], activations: list[int]) -> dict[int, str]:
        small = NEGLIGIBLE * sum(size[index] for index in activations)
        found: dict[int, str] = {}
        active = set(activations)
        for index, node in enumerate(owners):
            if node not in self.step.forward:
                continue
            why = self.pinned_nodes.get(node) or self.pinned_nodes.get(_made_by(node))
            if why:
                found[index] = why
            elif self._reads_updated(_made_by(node)):
                found[index] = "is made from an input that the step updates"
            elif node in self.step.outputs:
                found[index] = "is an output of the forward"
            elif index in active and size[index] <= small:
                found[index] = "is small"
        return found

    def _reads_updated(self, node: fx.Node) -> bool:
        return any(read in self.step.updated for read in self.step.kernels.of[node].reads)

    def _generator_states(self) -> int:
        """On a CPU, bytes of the states that random operators start from, if each of them is to run again. A GPU's
        states are a few bytes on the host."""
        if self.step.device.type != "cpu":
            return 0
        state = torch.get_rng_state().nbytes
        return state * sum(
            1 for kernel in self.step.order if kernel.node in self.step.forward and is_random(kernel.node)
        )

    def _generated(self, node: fx.Node | None) -> bool:
        kernel = self.step.kernels.of.get(node) if node is not None else None
        return kernel is not None and not kernel.called and not is_element(kernel.node)

    def _time(self, node: fx.Node | None) -> float:
        kernel = self.step.kernels.of.get(node) if node is not None else None
        if kernel is None or is_element(kernel.node):
            return 0.0
        if kernel.called:
            return self.seconds(kernel.node)
        written = self.step.size(kernel.node)
        read = 0
        for source in kernel.reads:
            size = min(self.step.size(source), written) if gathers(kernel.node) else self.step.size(source)
            made = self.step.kernels.of.get(source)
            # the generated kernel that makes the source, or one that reads it anyway, is fused with this one: half
            read += size // 2 if made is not None and not made.called else size
        return self.moving(written + read)


def _reused(problem: PlanningProblem, generated: list[bool]) -> list[int]:
    """Bytes that each node takes less than its results: a generated kernel writes over an input of the same size that
    nothing reads later, as inductor's in-place rule has it."""
    last: dict[int, int] = {}
    for rank, sources in enumerate(problem.inputs):
        for source in sources:
            for index in problem.held[source]:
                last[index] = rank
    workspace = [0] * problem.count
    for rank in range(problem.count):
        made = sum(problem.size[index] for index in problem.created[rank])
        if generated[rank] and made:
            dying = [i for source in problem.inputs[rank] for i in problem.held[source] if last[i] == rank]
            if any(problem.size[index] == made for index in dying):
                workspace[rank] = -made
    return workspace


def module_of(node: fx.Node) -> str:
    """The path of the module that ran the node, or whose backward it is; "" outside of all modules.

    As in `named_modules` of the model, where that is compiled itself or is `model` or `self` in the compiled function;
    with the variable's name in front where it is another.
    """
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    if not stack:
        return ""
    path = _VARIABLE.sub(r"\1", str(list(stack.values())[-1][0]))  # as Dynamo writes it: L['model'].blocks.0
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


def _made_by(node: fx.Node) -> fx.Node:
    """The operator that makes the node's result: itself, or what it takes one result out of."""
    source = node.args[0] if is_element(node) else node
    assert isinstance(source, fx.Node)
    return source


def _device(graph: fx.Graph) -> torch.device:
    """The device of the step's memory: the first GPU of a placeholder, or the CPU."""
    devices = [t.device for node in graph.find_nodes(op="placeholder") for t in tensors(node)]
    return next((device for device in devices if device.type != "cpu"), torch.device("cpu"))
