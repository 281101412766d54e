"""The part of a joint graph that computes a loss from logits, and the gradients of what they are computed from.

    region = find_loss(graph, logits)           # a `LossRegion`, or one sentence that says why there is none
    region.kept, region.ends, region.exits

Nothing is asked of the loss but that it treats each row of the logits alone: whatever comes between the linear layer
and the sum over the rows (cast, scale, soft cap, label smoothing, class weights, ignored labels, a z-loss), and
whatever the backward makes of it, is recognised by `RowRules`, whether it was decomposed or not. What leaves the rows
may be narrow values of a row (its loss), and three ends: the gradient of the hidden states (one more matmul of the
rows), that of the weight (a matmul over the rows) and that of the bias (a sum over the rows).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import fx

from checkpointing.compiled.loss.new_nodes import is_matrix
from checkpointing.compiled.loss.row_rules import COLUMNS, SOFTMAXES, RowRules, arguments, packet, value_of

aten = torch.ops.aten

LINEAR = (aten.mm.default, aten.addmm.default)


@dataclass(frozen=True)
class End:
    """An operator that reads rows as wide as the vocabulary and is no such thing itself.

    `by_row`: it computes a row from a row (the gradient of the hidden states); otherwise it sums over the rows.
    `cut` are the positions of its operands that are cut into rows, and their layouts.
    """

    node: fx.Node
    by_row: bool
    cut: Mapping[int, int]


@dataclass(frozen=True)
class LossRegion:
    """`kept` are the nodes to compute in chunks of rows, the logits first; `exits` those that others read too."""

    rules: RowRules
    logits: fx.Node
    layouts: Mapping[fx.Node, int]
    kept: tuple[fx.Node, ...]
    exits: tuple[fx.Node, ...]
    ends: tuple[End, ...]
    backward: frozenset[fx.Node]  # all that depends on a tangent, of the whole graph
    start: fx.Node  # the first node that reads what the region makes in the forward
    backward_start: fx.Node  # and in the backward

    @property
    def hidden(self) -> fx.Node:
        return arguments(self.logits)[-2]

    @property
    def weight(self) -> fx.Node:
        """[H, V]: as the matmul reads it."""
        return arguments(self.logits)[-1]


def linear_layers(graph: fx.Graph, backward: frozenset[fx.Node]) -> list[fx.Node]:
    """The matmuls of the forward that could make logits, the last first."""
    found = [node for node in graph.nodes if node.target in LINEAR and node not in backward]
    return [node for node in reversed(found) if all(is_matrix(a) for a in arguments(node)[-2:]) and not node.kwargs]


def below_tangents(graph: fx.Graph) -> frozenset[fx.Node]:
    """What depends on a tangent."""
    return _below(graph, {n for n in graph.find_nodes(op="placeholder") if "tangents" in str(n.target)})


def find_loss(graph: fx.Graph, logits: fx.Node, backward: frozenset[fx.Node]) -> LossRegion | str:
    """The region below `logits`, a matmul of the forward, or why it cannot be computed in chunks of rows."""
    rows, vocabulary = logits.meta["val"].shape
    name = f"the {vocabulary} results per row of {logits.name}"
    if rows < 2:
        return f"{name} are of {rows} {'row' if rows == 1 else 'rows'}, which cannot be divided"
    if logits.target is aten.addmm.default and arguments(logits)[0].meta["val"].shape != (vocabulary,):
        return f"{name} have a bias that is no vector of the vocabulary"
    rules = RowRules(rows)

    def is_wide(node: fx.Node) -> bool:
        return 2 * rules.width(node) > vocabulary

    layouts: dict[fx.Node, int] = {logits: 1}
    ends: list[End] = []
    for node in _after(logits):
        sources = [source for source in node.all_input_nodes if source in layouts]
        if not sources:
            continue
        layout = rules.layout(node, layouts)
        if layout is not None:
            layouts[node] = layout
        elif any(is_wide(source) for source in sources):
            end = _end(node, layouts, rules)
            if end is None:
                read = next(source for source in sources if is_wide(source))
                by = "the caller, as a result of the step" if node.op == "output" else str(node.target)
                return f"{name} are read by {by} ({read.name}), which does not treat each row alone"
            ends.append(end)
    kept = _kept(graph, layouts, is_wide)
    if not any(packet(node) in SOFTMAXES for node in kept):
        return f"{name} go through no softmax: they are no logits of a cross entropy"
    if not any(end.node in backward for end in ends):
        return f"{name} have no gradient"
    exits = [n for n in kept if any(u not in kept and all(u is not e.node for e in ends) for u in n.users)]
    wide = next((node for node in exits if is_wide(node) or layouts[node] == COLUMNS), None)
    if wide is not None:
        return f"{name} are used as a whole ({wide.name})"
    made, below = {*kept, *(end.node for end in ends)}, _below(graph, {logits})
    for node in [*kept[1:], *(end.node for end in ends)]:
        total = next((source for source in node.all_input_nodes if source in below and source not in made), None)
        if total is not None or any(source is end.node for end in ends for source in node.all_input_nodes):
            return f"{name} have a gradient that needs all rows at once ({(total or node).name})"
    return _placed(
        graph, LossRegion(rules, logits, layouts, kept, tuple(exits), tuple(ends), backward, logits, logits), name
    )


def _placed(graph: fx.Graph, region: LossRegion, name: str) -> LossRegion | str:
    """With the places where its chunks go, if what they read can be computed there."""
    made = {*region.kept, *(end.node for end in region.ends)}
    leaving = [*region.exits, *(end.node for end in region.ends)]
    starts: list[fx.Node] = []
    position = {node: index for index, node in enumerate(graph.nodes)}
    for in_backward in (False, True):
        readers = {u for n in leaving if (n in region.backward) == in_backward for u in n.users if u not in made}
        if not readers:
            return f"{name} have no loss that is returned" if not in_backward else f"{name} have no gradient"
        starts.append(min(readers, key=lambda node: position[node]))
    starts[0] = min(starts, key=lambda node: position[node])
    region = replace(region, start=starts[0], backward_start=starts[1])
    given = {s for node in made for s in node.all_input_nodes if s not in made}
    places = {True: position[region.backward_start], False: position[region.start]}
    late = _late(given, places, region.backward, position)
    called = next((node for node in late if not region.rules.is_light(node)), None)
    if called is not None:
        return f"{name} meet a value in their loss that is computed after it ({called.name})"
    return region


def _late(
    nodes: set[fx.Node], places: Mapping[bool, int], backward: frozenset[fx.Node], position: Mapping[fx.Node, int]
) -> list[fx.Node]:
    """Of `nodes` and what they are computed from, the operators at or after the place where the chunks go."""
    found: dict[fx.Node, None] = {}
    pending = sorted(nodes, key=lambda node: position[node])
    while pending:
        node = pending.pop()
        late = position[node] >= places[node in backward]
        if node not in found and node.op == "call_function" and (late or node in backward):
            if late:
                found[node] = None
            pending += node.all_input_nodes
    return list(found)


def _end(node: fx.Node, layouts: Mapping[fx.Node, int], rules: RowRules) -> End | None:
    """The node as an end of the region, if it is one of the three."""
    if node.target is aten.mm.default:
        left, right = arguments(node)
        if not (is_matrix(left) and is_matrix(right)) or (left in layouts and right in layouts):
            return None
        if layouts.get(left) == 1:
            return End(node, True, {0: 1})
        if layouts.get(left) == COLUMNS or layouts.get(right) == 1:
            return End(node, False, {0: COLUMNS, 1: 1})
        return None
    if packet(node) is not aten.sum:
        return None
    [source] = node.all_input_nodes
    layout = layouts[source]
    value = value_of(source)
    assert value is not None
    dims = arguments(node)[1] if len(arguments(node)) > 1 else None
    along = {d % value.dim() for d in dims} if isinstance(dims, list | tuple) and dims else set(range(value.dim()))
    return End(node, False, {0: layout}) if layout >= 1 and set(range(layout)) <= along else None


def _kept(graph: fx.Graph, layouts: Mapping[fx.Node, int], is_wide: object) -> tuple[fx.Node, ...]:
    """What must be computed in chunks: what is wide, what reads it, and what is on the way to something wide."""
    assert callable(is_wide)
    found: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node in layouts and (
            is_wide(node)
            or any(is_wide(source) for source in node.all_input_nodes if source in layouts)
            or any(user in found for user in node.users)
        ):
            found.add(node)
    for node in graph.nodes:  # what takes one result out of several
        if node in layouts and any(isinstance(s.meta.get("val"), tuple) and s in found for s in node.all_input_nodes):
            found.add(node)
    return tuple(node for node in graph.nodes if node in found)


def _after(node: fx.Node) -> Iterator[fx.Node]:
    while (node := node.next).op != "root":
        yield node


def _below(graph: fx.Graph, roots: set[fx.Node]) -> frozenset[fx.Node]:
    found = set(roots)
    for node in graph.nodes:
        if any(source in found for source in node.all_input_nodes):
            found.add(node)
    return frozenset(found)
