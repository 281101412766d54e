"""The question that a planner answers, as plain arrays: what each node of a step reads, makes and costs.

    problem = problem_of(profiler)              # a GraphProfiler that has run
    problem.candidates                          # indices of the activations that may be recomputed

A *forward value* is a storage that the forward makes. In the original step an activation is kept until its last
use in the backward, and any other forward value (a temporary) is freed in the forward. A planner chooses the set
of forward values that are kept; what the backward needs and is not kept is recomputed from what is.

Ranks and storage indices are those of the profiler's analysis. Times are in seconds, sizes in bytes.
"""

from collections.abc import Collection, Container
from dataclasses import dataclass, field
from functools import cached_property

from checkpointing.operators.batch_norm import Substitute, elementwise_batch_norms
from checkpointing.operators.legality import why_not_recomputable
from checkpointing.operators.purity import may_draw, updates_running_statistics
from profiler import GraphProfiler, Region, StorageAnalysis
from profiler.costs.memory import MeasuredMemory, default_rounding, rounded

_FORWARD = (Region.FORWARD, Region.LOSS)


@dataclass
class PlanningProblem:
    """One profiled step. `inputs`, `held`, `created` map a rank to ranks, storages, storages."""

    names: list[str]  # of the nodes
    modules: list[str]
    regions: list[Region]
    time: list[float]
    workspace: list[int]
    inputs: list[tuple[int, ...]]
    held: list[tuple[int, ...]]
    created: list[tuple[int, ...]]
    runs_once: list[bool]  # must run exactly where it is: writes, draws random numbers, is an input or the output
    storage_names: list[str]
    size: list[int]  # on the step's device, as the allocator counts them
    owned: list[bool]  # by the user: there throughout
    writers: list[tuple[int, ...]]  # forward writers of each storage, its producer first
    activations: list[int]  # storages, in the order of their creation
    pinned: dict[int, str]  # forward value → why it may not be recomputed
    resident: int  # bytes there throughout, beyond the storages
    targets: list[str]  # the nodes' operators
    measured_memory: MeasuredMemory = field(default_factory=MeasuredMemory)
    substitutes: dict[int, Substitute] = field(default_factory=dict)  # rank → how its value is recomputed
    never_kept: frozenset[int] = frozenset()  # forward values that no plan may keep
    default_added_s: float = 0.0  # seconds of what the original step recomputes already: no plan is charged for it
    solving_s: float = 25.0  # seconds that `optimal` may take, about
    copies_once: bool = False  # a value may be recomputed once at most: a graph of the backward holds a node once

    @property
    def count(self) -> int:
        return len(self.names)

    @cached_property
    def backward_start(self) -> int:
        """Rank of the first node after the forward."""
        forward = [rank for rank, region in enumerate(self.regions) if region in _FORWARD]
        return max(forward) + 1

    @cached_property
    def forward_values(self) -> list[int]:
        """Storages that the forward makes, what is read before what is made from it."""
        made = [i for i, writers in enumerate(self.writers) if not self.owned[i] and writers]
        return sorted(made, key=lambda index: self.writers[index][-1])

    @cached_property
    def candidates(self) -> list[int]:
        """Activations that may be recomputed."""
        return [index for index in self.activations if index not in self.pinned]

    @cached_property
    def keepable(self) -> list[int]:
        """Temporaries of the forward that a plan may keep, so that others are recomputed from them."""
        excluded = {*self.activations, *self.pinned, *self.never_kept}
        return [i for i in self.forward_values if i not in excluded and self.size[i] > 0]

    @cached_property
    def default_kept(self) -> frozenset[int]:
        """What the original step keeps."""
        return frozenset(self.activations)

    @cached_property
    def holders(self) -> list[list[int]]:
        """Storage → ranks of the forward nodes whose values alias it."""
        found: list[list[int]] = [[] for _ in self.size]
        for rank in range(self.backward_start):
            for index in self.held[rank]:
                found[index].append(rank)
        return found

    @cached_property
    def elements(self) -> dict[int, list[int]]:
        """Rank of a forward node with several results → ranks of the nodes that take one of them out."""
        several = {rank for rank in range(self.backward_start) if len(self.held[rank]) > 1}
        found: dict[int, list[int]] = {rank: [] for rank in several}
        for rank in range(self.backward_start):
            for source in self.inputs[rank]:
                if source in several and len(self.held[rank]) == 1:
                    found[source].append(rank)
        return found

    @cached_property
    def needed(self) -> list[bool]:
        """Rank → whether the step as it is has a use for the node; it may have nodes whose results nobody reads."""
        needed = [once or rank >= self.backward_start for rank, once in enumerate(self.runs_once)]
        for rank in range(self.count - 1, -1, -1):
            if needed[rank]:
                for source in self.inputs[rank]:
                    needed[source] = True
        return needed

    @cached_property
    def recompute_time(self) -> list[float]:
        """Rank → seconds of a second run."""
        return [self.substitutes[r].seconds if r in self.substitutes else t for r, t in enumerate(self.time)]

    def recompute_workspace(self, rank: int) -> int:
        return self.substitutes[rank].workspace if rank in self.substitutes else self.workspace[rank]

    def recompute_inputs(self, rank: int) -> tuple[int, ...]:
        """What a second run of the node reads (ranks)."""
        return self.substitutes[rank].inputs if rank in self.substitutes else self.inputs[rank]

    def recompute_created(self, rank: int) -> tuple[int, ...]:
        """The storages that a second run makes."""
        return self.held[rank] if rank in self.substitutes else self.created[rank]

    def recompute_writers(self, index: int) -> tuple[int, ...]:
        """The forward nodes (ranks) that make a forward value again, in order."""
        first, *rest = self.writers[index]
        for rank in self.elements.get(first, ()):
            if rank in self.substitutes and self.held[rank] == (index,):
                first = rank
        return (first, *rest)

    @cached_property
    def sources(self) -> dict[int, tuple[int, ...]]:
        """Forward value → the forward values that making it reads."""
        found: dict[int, tuple[int, ...]] = {}
        for index in self.forward_values:
            read = {
                h for rank in self.recompute_writers(index) for i in self.recompute_inputs(rank) for h in self.held[i]
            }
            found[index] = tuple(sorted(h for h in read if h != index and not self.owned[h]))
        return found

    @cached_property
    def first_backward_use(self) -> dict[int, int]:
        """Activation → rank of the first node after the forward that needs it."""
        found: dict[int, int] = {}
        active = set(self.activations)
        for rank in range(self.backward_start, self.count):
            for source in self.inputs[rank]:
                if source < self.backward_start:
                    for index in self.held[source]:
                        if index in active:
                            found.setdefault(index, rank)
        return found

    def nodes_to_make(self, index: int, there: Container[int]) -> tuple[set[int], set[int]]:
        """Ranks of the nodes that make a forward value, views among them, and the values of `there` that they read.

        With five nodes

            rank    node              makes value
            0       h = linear(x)     0
            1       a = relu(h)       1
            2       v = a.view(...)   none: an alias of 1
            3       m = v * v         2
            4       s = sin(m)        3

        making value 3 when only value 0 is there runs the nodes {1, 2, 3, 4} and reads {0}; when value 1 is there too,
        it runs {2, 3, 4} and reads {1}: a view of what is there is taken again, which costs nothing, so that the copy
        aliases it.
        """
        nodes: set[int] = set()
        read: set[int] = set()
        made = {index}
        pending = list(self.recompute_writers(index))
        while pending:
            rank = pending.pop()
            if rank in nodes:
                continue
            nodes.add(rank)
            for source in self.recompute_inputs(rank):
                held = [i for i in self.held[source] if not self.owned[i]]
                missing = [i for i in held if i not in there or i in made]
                read |= {i for i in held if i not in missing}
                if missing:
                    pending.append(source)
                for value in missing if source not in self.elements else ():
                    if value not in made:
                        made.add(value)
                        pending += self.recompute_writers(value)
        return nodes, read

    @cached_property
    def static_bytes(self) -> int:
        """Parameters, buffers, optimizer state, inputs, and what libraries hold."""
        return self.resident + sum(size for size, owned in zip(self.size, self.owned, strict=True) if owned)


def problem_of(profiler: GraphProfiler, unsteady: Collection[str] = ()) -> PlanningProblem:
    """The planner's view of a profiled step. Raises NotProfiledError where nothing has been measured.

    Results of the operators `unsteady` (see `operators.determinism`) are kept.

    On a GPU a few kernels run, to learn whether batch norm's output can be recomputed elementwise.
    """
    analysis, profile = profiler.analysis, profiler.profile
    problem = problem_from(analysis, [float(t) for t in profile.run_time_s], profile.memory, unsteady)
    for rank, substitute, statistics in elementwise_batch_norms(analysis, problem.time):
        problem.substitutes[rank] = substitute
        for index in statistics:
            problem.pinned.setdefault(index, "lets batch norm's output be recomputed elementwise")
    return problem


def problem_from(
    analysis: StorageAnalysis, time: list[float], memory: MeasuredMemory, unsteady: Collection[str] = ()
) -> PlanningProblem:
    """The same from an analysis and measurements (all zero for a plan by size alone)."""
    nodes, rank_of = analysis.nodes, analysis.rank_of
    regions: list[Region] = [node.meta["region"] for node in nodes]
    rounding = default_rounding(analysis.device)
    size = [
        rounded(storage.bytes, rounding) + memory.excess.get(storage.index, 0)
        if storage.device == analysis.device
        else 0
        for storage in analysis.storages
    ]
    forward = {rank for rank, region in enumerate(regions) if region in _FORWARD}
    written_storages = {rank for storage in analysis.storages for rank in storage.writers[1:]}
    return PlanningProblem(
        names=[node.name for node in nodes],
        modules=[node.meta["module"] for node in nodes],
        regions=regions,
        time=time,
        workspace=[memory.workspace.get(rank, 0) for rank in range(len(nodes))],
        inputs=[tuple(rank_of[node] for node in n.all_input_nodes) for n in nodes],
        held=[tuple(indices) for indices in analysis.held],
        created=[tuple(indices) for indices in analysis.created],
        runs_once=[
            node.op != "call_function" or rank in written_storages or may_draw(node) or updates_running_statistics(node)
            for rank, node in enumerate(nodes)
        ],
        storage_names=[storage.name for storage in analysis.storages],
        size=size,
        owned=[storage.owned_by_user for storage in analysis.storages],
        writers=[tuple(rank for rank in storage.writers if rank in forward) for storage in analysis.storages],
        activations=[activation.storage.index for activation in analysis.activations],
        pinned=why_not_recomputable(analysis, unsteady),
        resident=memory.resident,
        targets=[str(node.target) for node in nodes],
        measured_memory=memory,
    )
