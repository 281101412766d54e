"""Changes of a traced step that round otherwise than eager, so that each is asked for by its name.

step = with_passes(trace_train_step(...), ["aligned_matmuls"])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from checkpointing.errors import CheckpointingError
from checkpointing.rewriting.aligned_matmuls import with_aligned_matmuls
from profiler import TracedStep

PASSES: dict[str, Callable[[TracedStep], TracedStep]] = {"aligned_matmuls": with_aligned_matmuls}


def check_passes(names: Sequence[str]) -> None:
    """Raise CheckpointingError for a name that is none."""
    if isinstance(names, str) or any(name not in PASSES for name in names):
        raise CheckpointingError(f"passes={names!r}: give a list of names from {', '.join(PASSES)}")


def with_passes(step: TracedStep, names: Sequence[str]) -> TracedStep:
    """The step with these passes over it, in their order."""
    check_passes(names)
    for name in names:
        step = PASSES[name](step)
    return step
