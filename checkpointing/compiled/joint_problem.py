"""A joint step as the planners' question.

problem, measuring_s = measured_problem(joint, rules, device, resident=torch.cuda.memory_allocated())
plan = decide_checkpoints(problem, "8GB")
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial

import torch
from torch import fx

from checkpointing.compiled.costs.costs import Costs, fusible_seconds
from checkpointing.compiled.costs.operator_call import call_of
from checkpointing.compiled.joint_step import JointStep, made_by, module_of
from checkpointing.compiled.kernels import gathers, is_added_in_place, is_element, is_random
from checkpointing.compiled.loss.ordered_matmuls import is_addition
from checkpointing.compiled.memory.operator_memory import known_bytes
from checkpointing.compiled.rules import Rules
from checkpointing.errors import CostError
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import make_schedule
from profiler import Region
from profiler.costs.memory import default_rounding, rounded

log = logging.getLogger(__name__)

SOLVING_S = 4.0  # seconds for the solver: compiling takes tens of them
ALIKE = 1e-6  # seconds of every operator, where they do not matter
NEGLIGIBLE = 1 / 2000  # of the saved bytes: values smaller than that are kept without asking what they cost


def planning_problem(
    step: JointStep,
    seconds: Callable[[fx.Node], float],
    moving: Callable[[int], float],
    resident: int,
    pinned: Mapping[fx.Node, str],
    forced: Collection[fx.Node] = (),
    inside: Callable[[fx.Node], int] = lambda node: 0,
) -> PlanningProblem:
    """`seconds` of a called kernel, `moving` a number of bytes (seconds), `resident` bytes that are there anyway.
    `inside` are the bytes that a called kernel allocates and frees beyond its results.

    `pinned` are kernels whose results must be kept, and why; `forced` those whose results must be recomputed. What is
    small or an output of the forward is kept as well.
    """
    return _Builder(step, seconds, moving, resident, pinned, frozenset(forced), inside).build()


def forward_kernels(step: JointStep) -> list[fx.Node]:
    """What rules are about: the kernels of the forward."""
    return [kernel.node for kernel in step.order if not is_element(kernel.node) and kernel.node in step.forward]


def measured_problem(
    step: JointStep, rules: Rules, device: torch.device, resident: int, measure: bool = True
) -> tuple[PlanningProblem, float]:
    """The planners' question with costs as measured on the device, and the seconds that measuring them took.

    Without `measure` all operators cost the same: for questions of memory alone.
    """
    kernels = [kernel.node for kernel in step.order if not is_element(kernel.node)]
    forward = forward_kernels(step)
    costs = Costs(device)
    started = time.perf_counter()
    called = [node for node in kernels if step.kernels.of[node].called]
    seconds = _measured_seconds(costs, called, step.forward) if measure else dict.fromkeys(called, ALIKE)
    measuring_s = time.perf_counter() - started
    forced = [node for node in forward if rules.is_forced(node)]
    unknown = {node: "cannot be timed on its own" for node in called if node not in seconds and node not in forced}
    problem = planning_problem(
        step,
        seconds=lambda node: seconds.get(node, 0.0),
        moving=cache(lambda size: fusible_seconds(size, costs)),
        resident=resident,
        pinned={node: why for node in forward if (why := rules.pinned(node) or unknown.get(node, ""))},
        forced=forced,
        inside=partial(_inside_bytes, costs, seconds if measure else ()),
    )
    return problem, measuring_s


def _inside_bytes(costs: Costs, measured: Collection[fx.Node], node: fx.Node) -> int:
    """Bytes that a called kernel takes beyond its results: by a formula, or else as measured along with its time."""
    known = known_bytes(str(node.target), [getattr(value, "meta", {}).get("val", value) for value in node.args])
    return known if known or node not in measured else costs.inside_bytes(call_of(node))


def _measured_seconds(costs: Costs, nodes: Sequence[fx.Node], forward: Collection[fx.Node]) -> dict[fx.Node, float]:
    """Seconds of each operator; one that cannot run on its own is left out, and said.

    Of the forward, its results are kept. One of the backward runs once whatever the plan: no plan's added time depends
    on it.
    """
    of_backward = [node for node in nodes if node not in forward]
    for some, say, what in (
        ([node for node in nodes if node in forward], log.warning, "its results are kept"),
        (of_backward, log.info, "it runs once, in the backward, and its time is no matter of the plan"),
    ):
        with _unless_it_fails(say, what):
            costs.measure(some)
    found: dict[fx.Node, float] = {}
    for node in nodes:
        with _unless_it_fails():
            found[node] = costs.seconds(node)
    return found


@contextlib.contextmanager
def _unless_it_fails(say: Callable[..., None] = log.debug, what: str = "it has no cost") -> Iterator[None]:
    """Go on where an operator can't be measured, and say so. What it was measured with, which the error's frames hold
    in a circle, is let go at once: no garbage is collected while a step is planned."""
    try:
        yield
    except CostError as error:
        say("%s: %s", str(error), what)  # a log may keep what it is given
        traceback.clear_frames(error.__traceback__)


class _Builder:
    """Ranks: the tangents are made at the start of the backward, and one last node reads all that leaves the step."""

    def __init__(
        self,
        step: JointStep,
        seconds: Callable[[fx.Node], float],
        moving: Callable[[int], float],
        resident: int,
        pinned: Mapping[fx.Node, str],
        forced: frozenset[fx.Node],
        inside: Callable[[fx.Node], int],
    ) -> None:
        self.step, self.seconds, self.moving = step, seconds, moving
        self.resident, self.pinned_nodes, self.forced, self.inside = resident, pinned, forced, inside
        forward = [kernel for kernel in step.order if kernel.node in step.forward]
        backward = [kernel for kernel in step.order if kernel.node not in step.forward]
        self.nodes: list[fx.Node | None] = [k.node for k in forward]
        self.nodes += [*step.tangents, *(k.node for k in backward), None]
        self.rank = {node: rank for rank, node in enumerate(self.nodes) if node is not None}
        self.start = len(forward)

    def build(self) -> PlanningProblem:
        step, nodes, storages = self.step, self.nodes, self.step.storages
        owners: list[fx.Node] = list(storages)
        # autograd holds the tangents until the backward has returned
        leaving = [n for n in (*step.outputs, *step.tangents, *step.gradients) if n in self.rank]
        elements: dict[fx.Node, list[int]] = {}
        for node, index in storages.items():
            if is_element(node):
                elements.setdefault(made_by(node), []).append(index)
        created: list[tuple[int, ...]] = []
        held: list[tuple[int, ...]] = []
        inputs: list[tuple[int, ...]] = []
        for run in nodes:
            mine = () if run is None else (storages[run],) if run in storages else tuple(elements.get(run, ()))
            total = step.added_to(run) if run is not None else None
            held.append(mine if total is None else (*mine, storages[total]))
            created.append(() if run is not None and is_element(run) else mine)
            reads = leaving if run is None else step.kernels.of[run].reads if run in step.kernels.of else ()
            inputs.append(tuple(dict.fromkeys(self.rank[read] for read in reads if read in self.rank)))
        writers: list[tuple[int, ...]] = [
            (self.rank[made_by(node)],) if node in step.forward else () for node in owners
        ]
        size = [step.size(node) for node in owners]
        default = step.default_roots
        never = frozenset(i for i, n in enumerate(owners) if {n, made_by(n)} & self.forced and n not in step.outputs)
        activations = [i for i, n in enumerate(owners) if n in step.forward and n in default and i not in never]
        problem = PlanningProblem(
            names=[node.name if node is not None else "output" for node in nodes],
            modules=[module_of(node) if node is not None else "" for node in nodes],
            regions=[Region.FORWARD if rank < self.start else Region.BACKWARD for rank in range(len(nodes))],
            time=[self._time(node) for node in nodes],
            workspace=[self._inside(node) for node in nodes],
            inputs=inputs,
            held=held,
            created=created,
            runs_once=[
                rank >= self.start or node in step.outputs or (node is not None and step.added_to(node) is not None)
                for rank, node in enumerate(nodes)
            ],
            storage_names=[node.name for node in owners],
            size=size,
            owned=[False] * len(owners),
            writers=writers,
            activations=activations,
            pinned=self._pinned(owners, size, activations),
            resident=self.resident + self._generator_states(),
            targets=[str(node.target) if node is not None else "output" for node in nodes],
            never_kept=never,
            solving_s=SOLVING_S,
            copies_once=True,
        )
        problem = replace(problem, workspace=_reused(problem, [self._writes_over(node) for node in nodes]))
        unplanned = make_schedule(problem, problem.default_kept)
        return replace(problem, default_added_s=unplanned.added_seconds)

    def _pinned(self, owners: list[fx.Node], size: list[int], activations: list[int]) -> dict[int, str]:
        small = NEGLIGIBLE * sum(size[index] for index in activations)
        found: dict[int, str] = {}
        active = set(activations)
        sums = {self.step.added_to(kernel.node) for kernel in self.step.order if is_addition(kernel.node)}
        for index, node in enumerate(owners):
            if node not in self.step.forward:
                continue
            why = self.pinned_nodes.get(node) or self.pinned_nodes.get(made_by(node))
            why = "is a sum over chunks of rows" if node in sums else why
            if why:
                found[index] = why
            elif self._reads_updated(made_by(node)):
                found[index] = "is made from an input that the step updates"
            elif node in self.step.outputs:
                found[index] = "is an output of the forward"
            elif index in active and size[index] <= small:
                found[index] = "is small"
        return found

    def _reads_updated(self, node: fx.Node) -> bool:
        return any(read in self.step.updated for read in self.step.kernels.of[node].reads)

    def _generator_states(self) -> int:
        """On a CPU, bytes of the states that random operators start from, if each of them is to run again. A GPU's
        states are a few bytes on the host."""
        if self.step.device.type != "cpu":
            return 0
        state = torch.get_rng_state().nbytes
        return state * sum(
            1 for kernel in self.step.order if kernel.node in self.step.forward and is_random(kernel.node)
        )

    def _writes_over(self, node: fx.Node | None) -> bool:
        """Whether the kernel may write over one of its inputs."""
        kernel = self.step.kernels.of.get(node) if node is not None else None
        if kernel is None or is_element(kernel.node):
            return False
        return not kernel.called or (self.step.fused and is_added_in_place(kernel.node))

    def _inside(self, node: fx.Node | None) -> int:
        kernel = self.step.kernels.of.get(node) if node is not None else None
        if kernel is None or is_element(kernel.node) or not kernel.called:
            return 0
        return rounded(self.inside(kernel.node), default_rounding(self.step.device))

    def _time(self, node: fx.Node | None) -> float:
        kernel = self.step.kernels.of.get(node) if node is not None else None
        if kernel is None or is_element(kernel.node):
            return 0.0
        if kernel.called:
            return self.seconds(kernel.node)
        written = self.step.size(kernel.node)
        read = 0
        for source in kernel.reads:
            size = min(self.step.size(source), written) if gathers(kernel.node) else self.step.size(source)
            made = self.step.kernels.of.get(source)
            # the generated kernel that makes the source, or one that reads it anyway, is fused with this one: half
            read += size // 2 if made is not None and not made.called else size
        return self.moving(written + read)


def _reused(problem: PlanningProblem, writes_over: list[bool]) -> list[int]:
    """`problem.workspace`, negative where a node takes less than its results: a generated kernel writes over an input
    of the same size that nothing reads later, as inductor's in-place rule has it."""
    last: dict[int, int] = {}
    for rank, sources in enumerate(problem.inputs):
        for source in sources:
            for index in problem.held[source]:
                last[index] = rank
    workspace = list(problem.workspace)
    for rank in range(problem.count):
        made = sum(problem.size[index] for index in problem.created[rank])
        if writes_over[rank] and made:
            dying = [i for source in problem.inputs[rank] for i in problem.held[source] if last[i] == rank]
            if any(problem.size[index] == made for index in dying):
                workspace[rank] = -made
    return workspace
