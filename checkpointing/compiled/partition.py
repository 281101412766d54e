"""A joint graph split into forward and backward: the backward starts from chosen values, and recomputes the rest.

    default = default_split(joint, joint_inputs, num_fwd_outputs, static, fused=True)
    forward, backward = split(default.joint, saved, num_fwd_outputs, default.info)
    forward, backward = default.halves()

What is recomputed runs where the backward first needs it (`reordering_to_mimic_autograd_engine`), and it cannot be
hoisted into the forward: the two halves are graphs of their own. Random operators that run again start from the state
that they started from in the forward (`functionalize_rng_ops`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils.checkpoint import CheckpointPolicy

from checkpointing.compiled.kernels import is_random, is_view

if TYPE_CHECKING:
    from torch._functorch.partitioners import NodeInfo

IN_FORWARD = "computed_in_forward"  # metadata of what the forward computes for the backward, though it need not


_FROM_SEED = "prims.inductor_random.default"  # random numbers of inductor, which may not be imported yet
_OF_DRAWN = (  # what makes a mask of numbers
    torch.ops.aten.gt.Scalar,
    torch.ops.aten.ge.Scalar,
    torch.ops.aten.lt.Scalar,
    torch.ops.aten.le.Scalar,
    torch.ops.prims.convert_element_type.default,
)


Halves = tuple[fx.GraphModule, fx.GraphModule]


@dataclass(frozen=True)
class DefaultSplit:
    """What the compiler does by itself: the joint graph after its clean-up, torch's classification of its nodes, what
    it saves, and the two halves.

    The halves are made when they are asked for: they take as long as the choice of what to save, and a plan that
    recomputes anything has halves of its own.
    """

    joint: fx.GraphModule
    info: NodeInfo
    saved: tuple[fx.Node, ...]
    halves: Callable[[], Halves]


def default_split(
    joint: fx.GraphModule, inputs: Sequence[Any], num_fwd_outputs: int, static: Collection[int], fused: bool
) -> DefaultSplit:
    """Inductor's own choice if `fused` (a minimal cut: it recomputes what fuses into its readers), or else autograd's:
    everything that the backward reads. `joint` is cleaned up in place."""
    from torch._functorch.partitioners import classify_nodes

    early = _return_early(joint.graph, num_fwd_outputs)
    saved, halves, info = _partitioned(joint, inputs, num_fwd_outputs + early, static, fused)
    if early:
        returned = _results(joint.graph)[num_fwd_outputs : num_fwd_outputs + early]
        _take_out(joint.graph, num_fwd_outputs, early)
        saved = list(dict.fromkeys([*(node for node in returned if isinstance(node, fx.Node)), *saved]))
    if early or info is None:
        info = classify_nodes(joint, list(static), num_fwd_outputs)
    if early:
        halves = partial(split, joint, saved, num_fwd_outputs, info)
    return DefaultSplit(joint, info, tuple(node for node in saved if node.op == "call_function"), halves)


class _ChosenError(Exception):
    """Not an error: leaves torch's partitioner with what it has chosen, before it makes halves of that."""

    def __init__(self, nodes: list[fx.Node], info: NodeInfo) -> None:
        super().__init__()
        self.nodes, self.info = nodes, info


def _partitioned(
    module: fx.GraphModule, inputs: Sequence[Any], num_fwd_outputs: int, static: Collection[int], fused: bool
) -> tuple[list[fx.Node], Callable[[], Halves], NodeInfo | None]:
    """The nodes of `module` that torch's own partitioner hands to the backward, how to make its halves, and how it has
    classified all nodes, if it says so. It cleans `module` up in place."""
    import torch._functorch.config as functorch_config
    from torch._functorch import partitioners as torch_partitioners

    choose = torch_partitioners.choose_saved_values_set
    partition = (
        torch_partitioners.min_cut_rematerialization_partition if fused else torch_partitioners.default_partition
    )

    def partitioned(module: fx.GraphModule, choose_saved: Callable[..., list[fx.Node]]) -> Halves:
        with functorch_config.patch(activation_memory_budget=1.0), _choosing(choose_saved):
            return partition(
                module, inputs, num_fwd_outputs=num_fwd_outputs, static_lifetime_input_indices=list(static)
            )

    def leave(graph: fx.Graph, info: NodeInfo, *args: Any, **options: Any) -> list[fx.Node]:
        raise _ChosenError(choose(graph, info, *args, **options), info)

    info: NodeInfo | None = None
    try:
        forward, _ = partitioned(module, leave)
        handed_over = [node for node in _results(forward.graph)[num_fwd_outputs:] if isinstance(node, fx.Node)]
        chosen = saved = _named(module.graph, handed_over)
    except _ChosenError as left:
        chosen, info = left.nodes, left.info
        saved, _ = read_by_backward(module, frozenset(chosen), num_fwd_outputs, ())

    def halves() -> Halves:
        return partitioned(own_copy(module), lambda graph, *_, **__: _named(graph, chosen))

    return saved, halves, info


@contextmanager
def _choosing(choose: Callable[..., list[fx.Node]]) -> Iterator[None]:
    """Meanwhile, torch's partitioner saves what `choose` says."""
    from torch._functorch import partitioners as torch_partitioners

    original = torch_partitioners.choose_saved_values_set
    torch_partitioners.choose_saved_values_set = choose
    try:
        yield
    finally:
        torch_partitioners.choose_saved_values_set = original


def _results(graph: fx.Graph) -> list[Any]:
    [output] = graph.find_nodes(op="output")
    return list(output.args[0])


def _named(graph: fx.Graph, nodes: Iterable[fx.Node]) -> list[fx.Node]:
    """The nodes of `graph` with the names of those of another."""
    by_name = {node.name: node for node in graph.nodes}
    return [by_name[node.name] for node in nodes if node.name in by_name]


def _return_early(graph: fx.Graph, num_fwd_outputs: int) -> int:
    """Let the forward return what it is to compute for the backward (`IN_FORWARD`), and say how many that are: the
    compiler computes in the forward what its results need, and puts off what the backward alone needs."""
    early = [node for node in graph.nodes if node.meta.get(IN_FORWARD)]
    [output] = graph.find_nodes(op="output")
    results = list(output.args[0])
    results[num_fwd_outputs:num_fwd_outputs] = early
    output.args = (tuple(results),)
    if output.meta.get("desc") is not None:
        descriptions = list(output.meta["desc"])
        descriptions[num_fwd_outputs:num_fwd_outputs] = [None] * len(early)
        output.meta["desc"] = descriptions
    return len(early)


def _take_out(graph: fx.Graph, start: int, count: int) -> None:
    """Undo `_return_early`."""
    [output] = graph.find_nodes(op="output")
    results = list(output.args[0])
    del results[start : start + count]
    output.args = (tuple(results),)
    if output.meta.get("desc") is not None:
        output.meta["desc"] = [*output.meta["desc"][:start], *output.meta["desc"][start + count :]]


def copied(graph: fx.Graph) -> fx.Graph:
    """A graph of its own with the same nodes, names and metadata."""
    new = fx.Graph()
    new.set_codegen(graph._codegen)
    of: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        of[node] = new.node_copy(node, lambda source: of[source])
    return new


def module_of_graph(root: fx.GraphModule, graph: fx.Graph) -> fx.GraphModule:
    """`graph` with what `root` holds. Its Python code is generated if it is run: for most of our graphs, never."""
    from torch.fx._lazy_graph_module import _LazyGraphModule

    return _LazyGraphModule(root, graph)


def own_copy(module: fx.GraphModule) -> fx.GraphModule:
    """The module with a graph of its own."""
    return module_of_graph(module, copied(module.graph))


def split(joint: fx.GraphModule, saved: Collection[fx.Node], num_fwd_outputs: int, info: NodeInfo) -> Halves:
    """The halves when the backward may read `saved`, the step's inputs and nothing else of the forward. `info` is
    of `joint`, which stays as it is: the halves share the metadata of what is saved with a copy."""
    from torch._functorch import partitioners as torch_partitioners
    from torch._functorch.compile_utils import raise_getitems
    from torch.utils._ordered_set import OrderedSet

    joint = own_copy(joint)
    in_copy = partial(_named, joint.graph)
    read, again = read_by_backward(
        joint, frozenset(in_copy(saved)), num_fwd_outputs, frozenset(in_copy(info.required_bw_nodes))
    )
    random_again = [node for node in again if is_random(node)]
    for node in random_again:
        node.meta["recompute"] = CheckpointPolicy.MUST_RECOMPUTE
    symbols: list[fx.Node] = []
    forward, backward = torch_partitioners._extract_fwd_bwd_modules(
        joint,
        read,
        saved_sym_nodes=symbols,
        num_fwd_outputs=num_fwd_outputs,
        static_lifetime_input_nodes=OrderedSet(in_copy(info.static_lifetime_input_nodes)),
    )
    if random_again:
        forward, backward = torch_partitioners.functionalize_rng_ops(joint, forward, backward, len(symbols))
    backward = torch_partitioners.reordering_to_mimic_autograd_engine(backward)
    backward = module_of_graph(backward, backward.graph)  # or its code is generated with every change
    _draw_for_each_reader(backward.graph)
    forward, backward = raise_getitems(forward), raise_getitems(backward)
    return (
        torch_partitioners.thread_graphsafe_rng_from_hops(forward, is_backward=False),
        torch_partitioners.thread_graphsafe_rng_from_hops(backward, is_backward=True),
    )


def _draw_for_each_reader(graph: fx.Graph) -> None:
    """Draw what several operators read of random numbers once for each of them, in place.

    Inductor writes random numbers to memory in float32 where two kernels need them: a dropout mask that is recomputed
    for the block's own backward would take four bytes per element from one to the other. From one seed come the same
    numbers each time, in the kernel that reads them.
    """
    for drawn in [node for node in graph.nodes if str(node.target) == _FROM_SEED]:
        chain = [drawn]
        while len(chain[-1].users) == 1 and (user := next(iter(chain[-1].users))).target in _OF_DRAWN:
            chain.append(user)
        for reader in list(chain[-1].users)[1:]:
            with graph.inserting_before(reader):
                reader.replace_input_with(chain[-1], _copied_chain(graph, chain))


def _copied_chain(graph: fx.Graph, chain: Sequence[fx.Node]) -> fx.Node:
    of: dict[fx.Node, fx.Node] = {}
    for node in chain:
        of[node] = graph.node_copy(node, lambda source: of.get(source, source))
    return of[chain[-1]]


def read_by_backward(
    joint: fx.GraphModule, saved: frozenset[fx.Node], num_fwd_outputs: int, backward_only: Collection[fx.Node]
) -> tuple[list[fx.Node], list[fx.Node]]:
    """(what the forward hands over: inputs of the step and nodes of `saved`; the nodes that run again), in order."""
    [output] = joint.graph.find_nodes(op="output")
    pending = [node for node in output.args[0][num_fwd_outputs:] if isinstance(node, fx.Node)]
    seen: set[fx.Node] = set()
    read: set[fx.Node] = set()
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in saved or (node.op != "call_function" and "tangents" not in str(node.target)):
            read.add(node)
        else:
            pending += node.all_input_nodes
    runs = seen - read
    again = [n for n in joint.graph.nodes if n in runs and n not in backward_only and not is_view(n)]
    return [node for node in joint.graph.nodes if node in read and node.op != "get_attr"], again
