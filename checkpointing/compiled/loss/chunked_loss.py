"""A joint graph in which the losses of linear layers are computed in chunks of rows.

    joint, said = with_chunked_losses(joint, chunks=8)

No more than one chunk of logits is there at any time. What is no such loss stays as it is; `said` says why.
"""

from __future__ import annotations

from torch import fx

from checkpointing.compiled.joint_step import module_of
from checkpointing.compiled.loss.chunks import write_chunks
from checkpointing.compiled.loss.loss_region import LossRegion, below_tangents, find_loss, linear_layers
from checkpointing.compiled.loss.nll_sums import sum_apart
from checkpointing.compiled.partition import copied
from checkpointing.errors import CheckpointingError


def check_chunks(chunks: object) -> None:
    """Raise CheckpointingError for a number of chunks that is none."""
    if chunks is not None and (not isinstance(chunks, int) or isinstance(chunks, bool) or chunks < 1):
        raise CheckpointingError(
            f"chunked_loss={chunks!r}: give the number of chunks, a positive whole number, or None"
        )


def with_chunked_losses(joint: fx.GraphModule, chunks: int | None) -> tuple[fx.GraphModule, str]:
    """A copy of `joint` with its losses in chunks, and one sentence of what was done or why nothing was.

    Without such a loss, or with None chunks, it is `joint` itself.
    """
    if chunks is None:
        return joint, ""
    graph = copied(joint.graph)
    sum_apart(graph)
    done: list[str] = []
    reasons: list[str] = []
    for logits in linear_layers(graph, below_tangents(graph)):
        found = find_loss(graph, logits, below_tangents(graph))
        if isinstance(found, LossRegion):
            where = module_of(logits) or logits.name
            done.append(f"{where} in {write_chunks(graph, found, chunks)} chunks of its {found.rules.rows} rows")
        else:
            reasons.append(found)
    if not done:
        return joint, f"the loss is not in chunks: {reasons[0] if reasons else 'the step has no linear layer'}"
    graph.lint()
    return fx.GraphModule(joint, graph), f"the loss of {', and of '.join(done)}"
