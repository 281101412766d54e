"""Turns what `make_fx` wrote down into the graph of a `TracedStep`: named placeholders, the loss as only output."""

from collections.abc import Sequence
from typing import Any

from torch import fx

from profiler.graph.lift import Lifted, NodeType
from profiler.graph.regions import BATCH, Region


def tidy(
    module: fx.GraphModule,
    lifted: Sequence[Lifted],
    used: Sequence[bool],
    captured: Sequence[tuple[fx.Node | None, Any, Lifted]],
) -> list[fx.Node]:
    """Name the placeholders, drop unused states, and make the loss the only output.

    `captured` are the tensors that become placeholders too: the node that reads it (None if none does), its fake, and
    what it is. Returns the nodes whose outputs are the gradients.
    """
    graph = module.graph
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and str(node.target).startswith("profiler._record_function"):
            graph.erase_node(node)
    placeholders = graph.find_nodes(op="placeholder")
    batch = placeholders[len(lifted) :]
    for node, item, keep in zip(placeholders[: len(lifted)], lifted, used, strict=True):
        if not keep:
            graph.erase_node(node)
            continue
        _describe(node, item)
    with graph.inserting_before(batch[0] if batch else _first_operation(graph)):
        for node, fake, item in captured:
            made = graph.placeholder("captured")
            made.meta["val"] = fake
            _describe(made, item)
            if node is not None:
                node.replace_all_uses_with(made)
                graph.erase_node(node)
    for index, node in enumerate(batch):
        node.meta.update(node_type=NodeType.INPUT, region=Region.INPUT, module=BATCH, source=f"batch[{index}]")
        _rename(node, f"batch_{index}")
    for node in graph.nodes:
        if node.op == "get_attr":  # a constant that the step makes, a generator
            node.meta.update(node_type=NodeType.OTHER)
    output = graph.output_node()
    outputs: Any = output.args[0]
    loss, *gradients = outputs
    output.args = (loss,)
    output.meta.update(region=Region.OUTPUT, module="(output)")
    module.delete_all_unused_submodules()
    graph.lint()
    module.recompile()
    return list(gradients)


def _first_operation(graph: fx.Graph) -> fx.Node:
    return next(node for node in graph.nodes if node.op != "placeholder")


def _describe(node: fx.Node, item: Lifted) -> None:
    node.meta.update(node_type=item.kind, region=Region.INPUT, module=item.module, source=item.name)
    _rename(node, f"{item.kind.value.lower()}_{item.name}")


def _rename(node: fx.Node, name: str) -> None:
    node._rename("".join(c if c.isalnum() else "_" for c in name))
    node.target = node.name
