"""A joint graph in which the losses of linear layers are computed in chunks of rows.

    joint, said = with_chunked_losses(joint, chunks=8)

No more than one chunk of logits is there at any time. What is no such loss stays as it is; `said` says why.
"""

from __future__ import annotations

from torch import fx

from checkpointing.compiled.joint_step import module_of
from checkpointing.compiled.loss.alignment import is_padded, without_padding
from checkpointing.compiled.loss.chunks import write_chunks
from checkpointing.compiled.loss.loss_region import LossRegion, below_tangents, find_loss, linear_layers
from checkpointing.compiled.loss.nll_sums import sum_apart
from checkpointing.compiled.loss.row_kernel.forms import UnknownFormError
from checkpointing.compiled.loss.row_kernel.operators import is_kernel_there
from checkpointing.compiled.loss.row_kernel.row_form import RowForm, row_form
from checkpointing.compiled.loss.shifted_rows import is_shifted, without_shift
from checkpointing.compiled.partition import copied, module_of_graph
from checkpointing.errors import CheckpointingError

_LAYER = "linear_layer"  # metadata: the number of a layer that could make logits


def chunks_of(asked: object, execution: str) -> int | str | None:
    """The number of chunks that `chunked_loss` asks for, "auto", or None: the loss as it is.

    None is the planner's choice where kernels round in their own way anyway, and the loss as it is where a step is
    bitwise that of the unplanned graph. Raises CheckpointingError for what is no number.
    """
    if asked is None:
        return "auto" if execution == "inductor" else None
    if asked == "plain":
        return None
    if asked != "auto" and (not isinstance(asked, int) or isinstance(asked, bool) or asked < 1):
        raise CheckpointingError(
            f'chunked_loss={asked!r}: give the number of chunks, a positive whole number, "auto", or "plain"'
        )
    return asked


def with_chunked_losses(
    joint: fx.GraphModule, chunks: int | None, kernel: bool | None = None, layers_with_loss: list[int] | None = None
) -> tuple[fx.GraphModule, str]:
    """A copy of `joint` with its losses in chunks, and one sentence of what was done or why nothing was.

    Without such a loss, or with None chunks, it is `joint` itself. With a `kernel`, chunks that it knows are computed
    by it, and the sentence says which are; None: if there is one for the device. `layers_with_loss` are the numbers of
    the layers that a loss was found at in this graph: of an empty list, they are looked for and put there.
    """
    if chunks is None:
        return joint, ""
    graph = copied(joint.graph)
    sum_apart(graph)
    done: list[str] = []
    reasons: list[str] = []
    backward = below_tangents(graph)
    layers = dict(enumerate(linear_layers(graph, backward)))
    for number, node in layers.items():
        node.meta[_LAYER] = number  # by which it is found in a copy
    known = [] if layers_with_loss is None else layers_with_loss
    for number in list(known) or range(len(layers)):
        found, graph = _found(graph, layers[number], backward)
        if isinstance(found, LossRegion):
            form, by = _by_kernel(found, kernel)
            where = module_of(found.logits) or found.logits.name
            done.append(
                f"{where} in {write_chunks(graph, found, chunks, form)} chunks of its {found.rules.rows} rows{by}"
            )
            backward, layers = below_tangents(graph), _layers(graph)
            known += [] if number in known else [number]
        else:
            reasons.append(found)
    if not done:
        return joint, f"the loss is not in chunks: {reasons[0] if reasons else 'the step has no linear layer'}"
    graph.lint()
    return module_of_graph(joint, graph), f"the loss of {', and of '.join(done)}"


def _by_kernel(region: LossRegion, kernel: bool | None) -> tuple[RowForm | None, str]:
    """The loss as the kernel computes it, and what is said of that: nothing where there is no kernel."""
    device = region.logits.meta["val"].device
    if not (is_kernel_there(device) if kernel is None else kernel):
        return None, ""
    try:
        return row_form(region), ", each by one kernel"
    except UnknownFormError as error:
        return None, f", by generated code (the kernel does not know {error})"


def _found(graph: fx.Graph, logits: fx.Node, backward: frozenset[fx.Node]) -> tuple[LossRegion | str, fx.Graph]:
    """The loss of a linear layer and the graph that it is in: a copy, if inductor's padding of it had to be undone, or
    a part of its rows to be taken before it."""
    found = find_loss(graph, logits, backward)
    if not is_padded(logits) and (isinstance(found, LossRegion) or not is_shifted(logits)):
        return found, graph
    other = copied(graph)
    logits = without_shift(other, without_padding(other, _layers(other)[logits.meta[_LAYER]]))
    rewritten = find_loss(other, logits, below_tangents(other))
    return (rewritten, other) if isinstance(rewritten, LossRegion) else (found, graph)


def _layers(graph: fx.Graph) -> dict[int, fx.Node]:
    return {node.meta[_LAYER]: node for node in reversed(graph.nodes) if _LAYER in node.meta}
