"""The recomputation of each activation as a graph of its own, to look at or to test.

subgraphs = extract_recomputation_subgraphs(step.graph, plan)
print(subgraphs["relu_3"])            # placeholders are what is kept; the output is the activation
"""

from torch import fx

from checkpointing.errors import IllegalPlanError
from checkpointing.planners.plan import Plan


def extract_recomputation_subgraphs(graph: fx.Graph, plan: Plan) -> dict[str, fx.Graph]:
    """Name of each recomputed activation → the nodes that make it from what `plan` keeps.

    Nodes are those of the forward, under their own names: random operators and batch norm as they ran there.
    """
    problem, nodes = plan.problem, list(graph.nodes)
    if [node.name for node in nodes] != problem.names:
        raise IllegalPlanError("the plan was made for another graph: decide again for this one")
    kept = plan.kept | frozenset(problem.pinned)
    found: dict[str, fx.Graph] = {}
    for index in plan.recomputed:
        ranks, _ = problem.nodes_to_make(index, kept)
        last = problem.writers[index][-1]
        elements = [rank for rank in problem.elements.get(last, ()) if problem.held[rank] == (index,)]
        ranks |= set(elements)
        new = fx.Graph()
        value_of: dict[fx.Node, fx.Node] = {}
        for rank in sorted(ranks):
            for source in nodes[rank].all_input_nodes:
                if source not in value_of:
                    value_of[source] = new.placeholder(source.name)
                    value_of[source].meta = dict(source.meta)
            value_of[nodes[rank]] = new.node_copy(nodes[rank], value_of.__getitem__)
        new.output(value_of[nodes[(elements or [last])[0]]])
        new.lint()
        found[problem.storage_names[index]] = new
    return found
