"""Which values of a joint graph occupy memory, and in which kernels they are made.

    kernels = find_kernels(graph, fused=True)      # as inductor will fuse them
    kernels = find_kernels(graph, fused=False)     # each operator a kernel of its own

Inductor inlines a pointwise operator into its readers. A value is *materialised*, i.e. written to memory, where an
operator that inductor calls and does not generate (matmul, convolution, attention) reads it, where it leaves the graph,
where it is a reduction's, and where inlining it twice would read or compute too much. The last rule follows
`torch._inductor.ir.StorageBox.should_realize_on_reuse`, and its two thresholds are inductor's own.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

import torch
from torch import fx

from checkpointing.compiled.loss.ordered_matmuls import total_of

aten, prims = torch.ops.aten, torch.ops.prims

# Operators that inductor calls, or generates from templates: they read their inputs from memory.
_CALLED = frozenset(
    getattr(aten, name)
    for name in (
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "_scaled_mm",
        "_int_mm",
        "convolution",
        "convolution_backward",
        "_scaled_dot_product_flash_attention",
        "_scaled_dot_product_flash_attention_backward",
        "_scaled_dot_product_efficient_attention",
        "_scaled_dot_product_efficient_attention_backward",
        "_scaled_dot_product_cudnn_attention",
        "_scaled_dot_product_cudnn_attention_backward",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_flash_attention_for_cpu_backward",
        "embedding_dense_backward",
        "index_put",
        "_unsafe_index_put",
        "_unsafe_masked_index_put_accumulate",
        "scatter",
        "scatter_add",
        "scatter_reduce",
        "sort",
        "topk",
        "cumsum",
        "cumprod",
        "max_pool2d_with_indices_backward",
        "upsample_bilinear2d",
    )
    if hasattr(aten, name)
)
_ADDED_IN_PLACE = frozenset(  # inductor writes over a first argument that dies
    getattr(aten, name)
    for name in ("index_put", "_unsafe_index_put", "_unsafe_masked_index_put_accumulate")
    if hasattr(aten, name)
)
_GATHERS = frozenset((aten.embedding, aten.index, aten._unsafe_index, aten.gather, aten.index_select))
_UNSAFE_VIEWS = frozenset((aten._unsafe_view, aten.reshape))  # views that their schema does not call views
_MOST_OPERATORS = 30  # where inductor's configuration leaves it to inductor


@dataclass(frozen=True)
class Kernel:
    """A node whose results are written to memory. `reads` are kernels and placeholders, what is inlined left out."""

    node: fx.Node
    reads: tuple[fx.Node, ...]
    called: bool  # measured as it stands; otherwise generated, and priced by the bytes that it moves


@dataclass
class Kernels:
    """The kernels of a graph in its order, and for each node the tensor in memory that it names."""

    of: dict[fx.Node, Kernel] = field(default_factory=dict)
    root: dict[fx.Node, fx.Node] = field(default_factory=dict)  # a view, an element → what owns the memory
    inlined: dict[fx.Node, frozenset[fx.Node]] = field(default_factory=dict)  # not in memory → what it reads instead
    padded: dict[fx.Node, fx.Node] = field(default_factory=dict)  # what is padded where it is → the padding

    def reads(self, node: fx.Node) -> frozenset[fx.Node]:
        """What must be in memory for a reader of `node`: itself, or what an inlined node reads."""
        root = self.root[node]
        return self.inlined.get(root, frozenset((root,)))


def find_kernels(graph: fx.Graph, fused: bool, saved: Collection[fx.Node] = ()) -> Kernels:
    """The kernels of `graph`, whose nodes carry fake tensors; `saved` nodes are materialised whatever they are."""
    found = Kernels()
    for node in graph.nodes:
        found.root[node] = _root(node, found.root, fused)
        if found.root[node] is not node and node.target is aten.constant_pad_nd.default:
            found.padded[found.root[node]] = node
    wanted = {found.root[node] for node in saved}
    readers = _readers(graph, found.root)
    operators: dict[fx.Node, int] = {}  # how many operators an inlined node stands for
    for node in graph.nodes:
        if node.op in ("placeholder", "get_attr", "output") or found.root[node] is not node:
            continue
        if is_element(node):
            found.of[node] = Kernel(node, tuple(node.all_input_nodes), False)
            continue
        reads: dict[fx.Node, None] = {}
        inputs = _inputs_from_memory(node)
        for source in inputs:
            for read in sorted(found.reads(source), key=lambda n: n.name) if fused else [found.root[source]]:
                reads[read] = None
        operators[node] = 1 + sum(operators.get(found.root[source], 0) for source in inputs)
        called = is_called(node)
        if called or not fused or node in wanted or _is_written(node, readers[node], len(reads), operators[node]):
            found.of[node] = Kernel(node, tuple(reads), called or not fused)
            operators[node] = 0
        else:
            found.inlined[node] = frozenset(reads)
    return found


def is_called(node: fx.Node) -> bool:
    """Whether inductor calls a library for the operator, or has a template or a fallback for it."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # higher-order operators: collectives, triton kernels of the user, flex attention
    return is_library_call(node.target) or node.target.namespace not in ("aten", "prims") or is_random(node)


def is_library_call(operator: torch._ops.OpOverload) -> bool:
    """Whether inductor calls a library for the operator, which it knows by name."""
    return operator.overloadpacket in _CALLED


def is_random(node: fx.Node) -> bool:
    """Whether the operator draws from a generator's state. Inductor's own random operators read a seed instead."""
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded in node.target.tags


def is_view(node: fx.Node) -> bool:
    """Whether the node's result lies in the memory of its first argument."""
    target = node.target
    if target is operator.getitem:
        source = node.args[0]
        return isinstance(source, fx.Node) and is_view(source)
    if not isinstance(target, torch._ops.OpOverload):
        return False
    if target.overloadpacket in _UNSAFE_VIEWS:
        return True
    returned = target._schema.returns
    return bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write


def is_element(node: fx.Node) -> bool:
    """Whether the node takes one result out of an operator that has several, each with memory of its own."""
    return node.target is operator.getitem and not is_view(node) and not is_sum_so_far(node)


def is_added_in_place(node: fx.Node) -> bool:
    """Whether inductor lets the operator write into its first argument, if nothing reads that later: the zeros to which
    the gradient of an embedding is added."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket in _ADDED_IN_PLACE


def is_reduction(node: fx.Node) -> bool:
    """Whether each result is computed from many elements, so that it is written before it is read."""
    if not isinstance(node.target, torch._ops.OpOverload) or node.target.overloadpacket in _GATHERS:
        return False
    out = list(tensors(node))
    largest = max((t.numel() for source in node.all_input_nodes for t in tensors(source)), default=0)
    return bool(out) and max(t.numel() for t in out) < largest and not is_view(node)


def tensors(node: fx.Node) -> Iterator[torch.Tensor]:
    """The fake tensors of the node's results."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        yield from (item for item in value if isinstance(item, torch.Tensor))


def bytes_of(tensor: torch.Tensor) -> int:
    """Bytes from the first element of a dense or strided tensor to its last."""
    if tensor.numel() == 0:
        return 0
    return (1 + sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))) * tensor.element_size()


def gathers(node: fx.Node) -> bool:
    """Whether the node reads a few rows of its first argument and not the whole."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target.overloadpacket in _GATHERS


def _root(node: fx.Node, roots: dict[fx.Node, fx.Node], fused: bool) -> fx.Node:
    source = node.args[0] if node.args else None
    same = isinstance(source, fx.Node) and (
        is_view(node) or is_sum_so_far(node) or (fused and _is_padded_in_place(node, source))
    )
    return roots[source] if same and isinstance(source, fx.Node) else node


def is_sum_so_far(node: fx.Node) -> bool:
    """Whether the node takes the sum out of an operator of ours that added to it: a reader reads what that wrote."""
    return node.target is operator.getitem and total_of(node) is not None


def _is_padded_in_place(node: fx.Node, source: fx.Node) -> bool:
    """Whether inductor makes `source` with room for the padding of a matmul's input, and pads it where it is.

    The rule of `torch._inductor.lowering.inplace_constant_pad_nd`.
    """
    if node.target is not aten.constant_pad_nd.default or source.op != "call_function":
        return False
    padding = node.args[1]  # two numbers a dimension; inductor pads matrices only
    if not isinstance(padding, list | tuple) or len(padding) != 4:
        return False
    users = list(node.users)
    one_matmul = len(users) == 1 and users[0].target in (aten.mm.default, aten.addmm.default)
    return one_matmul and not is_view(source) and not is_called(source)


def _inputs_from_memory(node: fx.Node) -> list[fx.Node]:
    return [source for source in node.all_input_nodes if not isinstance(source.meta.get("val"), torch.SymInt)]


def _readers(graph: fx.Graph, root: dict[fx.Node, fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Node → the nodes that read its memory, through views too."""
    found: dict[fx.Node, list[fx.Node]] = {node: [] for node in graph.nodes}
    for node in graph.nodes:
        if node.op == "output" or root[node] is node:
            for source in node.all_input_nodes:
                found[root[source]].append(node)
    return found


def _is_written(node: fx.Node, readers: list[fx.Node], reads: int, operators: int) -> bool:
    import torch._inductor.config as inductor_config

    if any(reader.op == "output" or is_called(reader) for reader in readers):
        return True
    if any(user.target is aten.as_strided.default for user in node.users):
        return True
    if any(is_element(reader) for reader in readers) or is_reduction(node):
        return True
    most_operators = inductor_config.realize_opcount_threshold or _MOST_OPERATORS
    return len(readers) > 1 and (reads > inductor_config.realize_reads_threshold or operators > most_operators)
