"""Plans that need no solver, to set the others beside."""

from checkpointing.planners.problem import Problem

# Operators whose results are costly to make again, as in PyTorch's selective checkpointing policies.
COSTLY = ("aten.mm.", "aten.addmm.", "aten.bmm.", "aten.baddbmm.", "aten.convolution.", "aten._scaled_dot_product_")


def keep_everything(problem: Problem) -> frozenset[int]:
    """`none`: the step as it is."""
    return problem.default_kept


def keep_nothing(problem: Problem) -> frozenset[int]:
    """`all`: every activation that may be is made again, each once and held from there. That frees the forward and
    fills up at the start of the backward: the peak hardly falls."""
    return frozenset(problem.pinned)


def keep_matmuls(problem: Problem) -> frozenset[int]:
    """`save_matmuls`: results of matmuls, convolutions and attention are kept, all else is made again."""
    costly = {
        index
        for index in (*problem.candidates, *problem.keepable)
        if problem.targets[problem.writers[index][0]].startswith(COSTLY)
    }
    return frozenset(costly | set(problem.pinned))
