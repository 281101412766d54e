"""Does an operator give the same bits for the same inputs? Its tag may not say so; here it is tried.

    unsteady = unsteady_operators(step, batch, (Region.FORWARD, Region.LOSS))      # {"aten.cumsum.default"}

Each node runs twice on the inputs that it has in a real step, with the random numbers of its first run.
"""

from collections.abc import Collection, Sequence
from typing import Any

from torch import Tensor, fx
from torch.utils import _pytree as pytree

from checkpointing.operators.purity import draws_from_own_generator, may_draw, of_pytorch, updates_running_statistics
from checkpointing.operators.replay import generator_state, replay
from profiler import Region, TracedStep
from profiler.costs.profile import run_nodes
from profiler.graph.fake_tensors import communicates
from profiler.graph.two_runs import same_bits


def unsteady_operators(step: TracedStep, batch: Sequence[Any], regions: Collection[Region] = tuple(Region)) -> set[str]:
    """The operators that gave two results for the same inputs in a step, or changed inputs that they promise to leave.

    This is a training step: whatever it changes is for the caller to put back.
    """
    found: set[str] = set()
    nodes = step.nodes

    def call(rank: int, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        node = nodes[rank]
        if str(node.target) in found or node.meta["region"] not in regions or not _can_run_twice(node):
            return function(*args, **kwargs)
        generator = generator_state(step.device) if may_draw(node) else None
        before = [] if of_pytorch(node) else [tensor.clone() for tensor in tensors_in((args, kwargs))]
        value = function(*args, **kwargs)
        draws = (function,) if generator is None else (replay, generator, step.device, function)
        second = draws[0](*draws[1:], *args, **kwargs)
        same = all(same_bits(a, b) for a, b in zip(tensors_in(value), tensors_in(second), strict=True))
        left = all(same_bits(a, b) for a, b in zip(before, tensors_in((args, kwargs)), strict=False))
        if not (same and left):
            found.add(str(node.target))
        return value

    run_nodes(step, batch, call)
    return found


def _can_run_twice(node: fx.Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    if schema is None or schema.is_mutable or draws_from_own_generator(node) or communicates(node):
        return False
    return not updates_running_statistics(node)


def tensors_in(value: Any) -> list[Tensor]:
    """The tensors of any nesting, in order."""
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
