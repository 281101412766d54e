"""The joint graphs that a step may be compiled as: its loss in one piece, or in so many chunks.

    candidates = Candidates(fused=True, kernel=None)
    candidates.begin(joint, joint_inputs, num_fwd_outputs, static)
    whole = candidates.make(None)
    candidates.guess(whole, 8)          # without asking the compiler what it saves
    candidates.make(8)                  # asking only where that may be something else

A step that takes more memory than its plan says is traced and planned again, and its joint graph is the same then: what
was made of it stays.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import fx

from checkpointing.compiled.decisions.graph_key import graph_digest
from checkpointing.compiled.embedding.gradients import with_gradients_by_row
from checkpointing.compiled.joint_problem import measured_problem
from checkpointing.compiled.joint_step import JointStep
from checkpointing.compiled.loss.chunked_loss import with_chunked_losses
from checkpointing.compiled.partition import IN_FORWARD, DefaultSplit, default_split, own_copy, read_by_backward, split
from checkpointing.compiled.rules import Rules
from checkpointing.planners.problem import PlanningProblem


@dataclass(frozen=True)
class Candidate:
    """A joint graph with its loss in `chunks`, None for one piece."""

    chunks: int | None
    said: str  # of the loss: what was done, or why nothing was
    default: DefaultSplit
    step: JointStep
    is_compilers: bool = True  # whether `default` is what the compiler chooses


def candidate(
    joint: fx.GraphModule,
    inputs: Sequence[Any],
    num_fwd_outputs: int,
    static: Collection[int],
    fused: bool,
    kernel: bool | None,
    chunks: int | None,
) -> Candidate:
    """`joint`, which stays as it is, with its loss in `chunks`, by the kernel if there is one.

    Where the compiler adds gradients of embeddings to whole matrices of zeros (`fused`), rows are added.
    """
    changed, said = with_chunked_losses(joint, chunks, kernel if fused else False)
    by_row = with_gradients_by_row(changed) if fused else changed
    own = own_copy(joint) if by_row is joint else by_row
    default = default_split(own, inputs, num_fwd_outputs, static, fused)
    step = JointStep.of(default.joint, num_fwd_outputs, static, fused, default.saved, default.info)
    return Candidate(None if changed is joint else chunks, said, default, step)


def guessed(
    num_fwd_outputs: int,
    static: Collection[int],
    fused: bool,
    kernel: bool | None,
    base: Candidate,
    chunks: int,
    layers_with_loss: list[int] | None = None,
) -> Candidate | None:
    """`base`, which has its loss in one piece, with it in `chunks`; None if no loss is found in its graph.

    It saves what `base` saves and the backward reads, and what the chunks compute in the forward. That is the
    compiler's own choice (`is_compilers`) where the backward reads nothing else of the chunks. `layers_with_loss`: see
    `with_chunked_losses`.
    """
    from torch._functorch.compile_utils import fx_graph_cse
    from torch._functorch.partitioners import classify_nodes

    joint = base.default.joint
    known = {node.name for node in joint.graph.nodes}
    changed, said = with_chunked_losses(joint, chunks, kernel if fused else False, layers_with_loss)
    if changed is joint:
        return None
    changed.graph = fx_graph_cse(changed.graph)  # as the compiler does before it chooses
    changed.graph.eliminate_dead_code()
    names = {node.name for node in base.default.saved}
    saved = frozenset(node for node in changed.graph.nodes if node.name in names or node.meta.get(IN_FORWARD))
    info = classify_nodes(changed, list(static), num_fwd_outputs)
    read, again = read_by_backward(changed, saved, num_fwd_outputs, info.required_bw_nodes)
    default = tuple(node for node in read if node.op == "call_function")
    halves = partial(split, changed, default, num_fwd_outputs, info)
    step = JointStep.of(changed, num_fwd_outputs, static, fused, default, info)
    is_compilers = fused and all(node.name in known for node in again)
    return Candidate(chunks, said, DefaultSplit(changed, info, default, halves), step, is_compilers)


class Candidates:
    """Of one step, however often it is compiled. `fused` and `kernel`: see `candidate`."""

    def __init__(self, fused: bool, kernel: bool | None) -> None:
        self.fused, self.kernel = fused, kernel
        self._of: tuple[object, ...] = ()  # what they were made of
        self._given: tuple[fx.GraphModule, Sequence[Any], int, Collection[int]] | None = None
        self._made: dict[int | None, Candidate] = {}
        self._guesses: dict[int, Candidate | None] = {}
        self._layers_with_loss: list[int] = []
        self._problems: dict[tuple[int, int, bool], tuple[JointStep, PlanningProblem]] = {}

    def begin(
        self, joint: fx.GraphModule, inputs: Sequence[Any], num_fwd_outputs: int, static: Collection[int]
    ) -> None:
        """With each compilation of the step. Another joint graph than the one before has candidates of its own."""
        of = (graph_digest(joint.graph), num_fwd_outputs, tuple(static), id(_fake_mode(joint.graph)))
        if of != self._of:
            self.forget()
            self._of, self._given = of, (joint, inputs, num_fwd_outputs, static)

    def make(self, count: int | None) -> Candidate:
        """The step with its loss in so many chunks, None for one piece."""
        if count not in self._made:
            assert self._given is not None
            guess = self.guess(self.make(None), count) if count is not None and self.fused else None
            if guess is None or not guess.is_compilers:
                guess = candidate(*self._given, self.fused, self.kernel, count)
            self._made[count] = guess
        return self._made[count]

    def guess(self, base: Candidate, count: int) -> Candidate | None:
        """The same made of `base`, the one in one piece: see `guessed`."""
        if count not in self._guesses:
            assert self._given is not None
            _, _, num_fwd_outputs, static = self._given
            self._guesses[count] = guessed(
                num_fwd_outputs, static, self.fused, self.kernel, base, count, self._layers_with_loss
            )
        return self._guesses[count]

    def problem(
        self, step: JointStep, rules: Rules, device: torch.device, resident: int, measure: bool = True
    ) -> tuple[PlanningProblem, float]:
        """The planners' question of one of them, and the seconds that measuring took: see `measured_problem`."""
        key = (id(step), resident, measure)
        if key in self._problems:
            return self._problems[key][1], 0.0
        problem, seconds = measured_problem(step, rules, device, resident, measure)
        self._problems[key] = (step, problem)
        return problem, seconds

    def forget(self) -> None:
        """Let go of all graphs."""
        self._of, self._given = (), None
        self._made.clear()
        self._guesses.clear()
        self._layers_with_loss.clear()
        self._problems.clear()


def _fake_mode(graph: fx.Graph) -> object:
    """That of the step's inputs: tensors of another are no part of the same compilation."""
    values = [node.meta.get("val") for node in graph.find_nodes(op="placeholder")]
    return next((mode for value in values if (mode := getattr(value, "fake_mode", None)) is not None), None)
