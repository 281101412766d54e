"""Which operator, module, pass and step each kernel, copy or CPU operator belongs to.

A kernel is linked by its correlation id to the call that launched it, and the call lies on a thread of the host
within ranges: the step, a module's forward (marked by hooks), an autograd node that is evaluated, an optimizer's step.
The innermost of these owns it. An evaluated node carries autograd's sequence number, by which the forward operator
that made it is found, and with that the module: this is the module's real backward, in whatever order it runs.

- The kernels of a replayed CUDA graph share one launch: they go to the module in which the replay was launched.
- A node that accumulates a gradient has no number; it runs right after the node that made the gradient and goes with
  it. So do the gradient reductions that DDP launches there.
- What DDP does when the backward is complete runs on autograd's thread outside of any node: it is `(outside)` backward.
- A forward that is run again in the backward (checkpointing) belongs to its module, and to the backward.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from profiler.traces.read_trace import RawTrace
from profiler.traces.records import (
    NOBODY,
    OPTIMIZER,
    OUTSIDE,
    HostRange,
    KernelLaunch,
    MemoryCopy,
    is_communication,
    together,
)

RANGE = "profiler.range "  # then a region and a module's path: put there by hooks or by a labelled graph
STEP = "profiler.step"
_EVALUATE = "autograd::engine::evaluate_function: "
_CALL = re.compile(r"^_?c10d(_functional)?::(?!wait)")  # of a collective, whichever thread runs it
_OPTIMIZER = re.compile(r"Optimizer\.(step|zero_grad)#")
_WRAPPERS = ("autograd::", "torch::autograd::")


def range_name(region: str, module: str) -> str:
    """The name of a range that gives what is launched in it to `module`'s `region`."""
    return f"{RANGE}{region} {module}"


@dataclass(frozen=True, slots=True)
class Owner:
    """What a moment on a thread belongs to. `region` None: outside of modules, backward and optimizer."""

    module: str
    region: str | None
    operator: str
    node: HostRange | None = None  # the evaluated autograd node, if any


@dataclass(slots=True)
class _Frame:
    range: HostRange
    owner: Owner
    last_evaluated: str = NOBODY  # module of the node evaluated last directly within


@dataclass(frozen=True, slots=True)
class OwnedRange:
    """A module's forward, or an evaluated autograd node, on the host: the wall time of a module's pass."""

    start: int
    end: int
    thread: int
    module: str
    region: str
    node: bool  # an autograd node; False: a module's call


@dataclass
class Attribution:
    """The answer for one trace."""

    steps: list[tuple[int, int]]  # of the step ranges on the host, in order
    ranges: list[OwnedRange]
    operators: list[KernelLaunch]  # outermost operators of the host, owned; a CPU's "kernels"


def attribute(trace: RawTrace, markers: Sequence[str] = (), operators: bool = False) -> Attribution:
    """Write operator, module, region and step into the kernels and copies of `trace`.

    `markers` are names of further ranges that count as modules of that name. With `operators` the outermost operators
    of the host are returned as kernels: what there is to look at on a CPU.
    """
    steps = sorted((r.start, r.end) for r in trace.host if r.name == STEP)
    seen_by_thread = _by_thread(trace.host)
    makers = _makers(trace)
    queries: dict[int, list[tuple[int, int]]] = {}  # thread → (time, number of the query)
    owners: dict[int, Owner] = {}
    by_external = {r.external: r for r in trace.host if r.external}
    things: list[tuple[KernelLaunch | MemoryCopy, int, int]] = []
    for thing in together(trace.kernels, trace.copies):
        launch = trace.launches.get(thing.correlation)
        thread, time = (launch.thread, launch.time) if launch else (-1, -1)
        if thread not in seen_by_thread:  # no operator ran there: the profiler's own link to one
            number = trace.launched_by.get(thing.correlation, 0 if thing.device >= 0 else thing.correlation)
            operator = by_external.get(number)
            if operator is not None:
                thread, time = operator.thread, operator.start
        things.append((thing, thread, time))
    for number, (_, thread, time) in enumerate(things):
        queries.setdefault(thread, []).append((time, number))
    # Forward owners of makers are needed before backward ones: two sweeps, the first for the makers alone.
    maker_module = _maker_modules(seen_by_thread, makers, markers)
    ranges: list[OwnedRange] = []
    host_kernels: list[tuple[KernelLaunch, Owner]] = []
    for thread, found in seen_by_thread.items():
        sweep = _Sweep(trace.threads, markers, maker_module)
        answers = sweep.run(found, sorted(queries.get(thread, [])), operators)
        owners.update(answers)
        ranges += sweep.ranges
        host_kernels += sweep.operators
    host_kernels = _with_callers(host_kernels)
    following = _following(ranges, trace.host)
    # A GPU's backward has threads of its own: all that happens there is backward.
    engine = {r.thread for r in ranges if r.node} - {r.thread for r in trace.host if r.name == STEP}
    for number, (thing, thread, time) in enumerate(things):
        owner = owners.get(number) if thread >= 0 else None
        if owner is not None and owner.region is None and thread in engine:
            owner = replace(owner, region="backward")
        _write(thing, owner, time if thread >= 0 else thing.start, steps, following)
    for kernel, owner in host_kernels:
        _write(kernel, owner, kernel.start, steps, following)
    return Attribution(steps, ranges, [kernel for kernel, _ in host_kernels])


def _with_callers(operators: list[tuple[KernelLaunch, Owner]]) -> list[tuple[KernelLaunch, Owner]]:
    """gloo's threads run collectives in the order in which they were called: what such a thread does has the owner of
    the call with its number. Without that, where a trace has not all of them."""
    in_order = sorted(operators, key=lambda found: found[0].start)
    calls = [owner for kernel, owner in in_order if _CALL.match(kernel.name)]
    running = [kernel for kernel, _ in in_order if kernel.name.startswith("gloo:")]
    if len(calls) != len(running):
        return operators
    callers = {id(kernel): replace(owner, operator=kernel.name) for kernel, owner in zip(running, calls, strict=True)}
    return [(kernel, callers.get(id(kernel), owner)) for kernel, owner in operators]


def _by_thread(host: Iterable[HostRange]) -> dict[int, list[HostRange]]:
    threads: dict[int, list[HostRange]] = {}
    for found in host:
        if found.kind != "python_function":
            threads.setdefault(found.thread, []).append(found)
    for ranges in threads.values():
        ranges.sort(key=lambda r: (r.start, -r.end))
    return threads


def _makers(trace: RawTrace) -> dict[tuple[int, int], HostRange]:
    """(thread, sequence number) → the forward operator that made the autograd node.

    An operator carries the number that the next node will get. Those that make none carry it too, so the last to start
    with a number is the one that made the node.
    """
    makers: dict[tuple[int, int], HostRange] = {}
    for found in trace.host:
        if found.sequence >= 0 and not found.forward_thread and not found.name.startswith(_EVALUATE):
            key = (found.thread, found.sequence)
            if key not in makers or found.start >= makers[key].start:
                makers[key] = found
    return makers


def _maker_modules(
    by_thread: dict[int, list[HostRange]], makers: dict[tuple[int, int], HostRange], markers: Sequence[str]
) -> dict[tuple[int, int], str]:
    """(thread, sequence number) → the module in whose forward the node was made."""
    wanted: dict[int, list[tuple[int, int]]] = {}
    keys = list(makers)
    for number, key in enumerate(keys):
        wanted.setdefault(key[0], []).append((makers[key].start, number))
    modules: dict[tuple[int, int], str] = {}
    for thread, queries in wanted.items():
        sweep = _Sweep({}, markers, {})
        for number, owner in sweep.run(by_thread[thread], sorted(queries), operators=False).items():
            modules[keys[number]] = owner.module
    return modules


class _Sweep:
    """Walks over one thread's ranges in order of time with a stack of those that are open."""

    def __init__(
        self, threads: dict[int, int], markers: Sequence[str], maker_module: dict[tuple[int, int], str]
    ) -> None:
        self.threads, self.markers, self.maker_module = threads, set(markers), maker_module
        self.ranges: list[OwnedRange] = []
        self.operators: list[tuple[KernelLaunch, Owner]] = []
        self._outside_last = NOBODY  # module of the node evaluated last on the thread

    def run(self, ranges: list[HostRange], queries: list[tuple[int, int]], operators: bool) -> dict[int, Owner]:
        """Query number → the owner of its moment."""
        stack: list[_Frame] = []
        answers: dict[int, Owner] = {}
        position = 0
        nowhere = Owner(OUTSIDE, None, "")
        for found in ranges:
            while position < len(queries) and queries[position][0] < found.start:
                time, number = queries[position]
                self._close(stack, time)
                answers[number] = stack[-1].owner if stack else nowhere
                position += 1
            self._close(stack, found.start)
            above = stack[-1].owner if stack else nowhere
            owner = self._owner(found, above, stack)
            if operators and _is_operator(found.name) and not above.operator:
                kernel = KernelLaunch(found.name, found.start, found.end, -1, found.thread, (0, 0, 0), found.external)
                kernel.communication = is_communication(found.name)
                self.operators.append((kernel, owner))
            stack.append(_Frame(found, owner))
        for time, number in queries[position:]:
            self._close(stack, time)
            answers[number] = stack[-1].owner if stack else nowhere
        return answers

    @staticmethod
    def _close(stack: list[_Frame], time: int) -> None:
        while stack and stack[-1].range.end <= time:
            stack.pop()

    def _owner(self, found: HostRange, above: Owner, stack: list[_Frame]) -> Owner:
        name = found.name
        operator = name if _is_operator(name) else above.operator
        if name.startswith(RANGE):
            region, _, module = name[len(RANGE) :].partition(" ")
            return self._module(found, module, region, above, operator)
        if name in self.markers:
            return self._module(found, name, "forward", above, operator)
        if name.startswith(_EVALUATE):
            module = self._backward_module(found, stack)
            if stack:
                stack[-1].last_evaluated = module
            else:
                self._outside_last = module
            self.ranges.append(OwnedRange(found.start, found.end, found.thread, module, "backward", node=True))
            return Owner(module, "backward", operator, found)
        if _OPTIMIZER.match(name):
            return Owner(OPTIMIZER, "optimizer", operator)
        if operator == above.operator:
            return above
        return Owner(above.module, above.region, operator, above.node)

    def _module(self, found: HostRange, module: str, region: str, above: Owner, operator: str) -> Owner:
        if above.node is not None:
            region = "backward"  # a forward that is run again
        self.ranges.append(OwnedRange(found.start, found.end, found.thread, module, region, node=False))
        return Owner(module, region, operator, above.node)

    def _backward_module(self, found: HostRange, stack: list[_Frame]) -> str:
        if found.sequence < 0:
            return (stack[-1].last_evaluated if stack else self._outside_last) or OUTSIDE
        thread = self.threads.get(found.forward_thread)
        return self.maker_module.get((thread, found.sequence), OUTSIDE) if thread is not None else OUTSIDE


def _is_operator(name: str) -> bool:
    return ("::" in name or name.startswith("gloo:")) and not name.startswith(_WRAPPERS)


def _following(ranges: list[OwnedRange], host: Iterable[HostRange]) -> tuple[list[int], list[str]]:
    """Starts of what modules, backward and optimizer do, and which of them it is, in order of time."""
    marks = [(r.start, r.region) for r in ranges]
    marks += [(r.start, "optimizer") for r in host if _OPTIMIZER.match(r.name)]
    marks.sort()
    return [start for start, _ in marks], [region for _, region in marks]


def _write(
    thing: KernelLaunch | MemoryCopy,
    owner: Owner | None,
    time: int,
    steps: list[tuple[int, int]],
    following: tuple[list[int], list[str]],
) -> None:
    """Set the owner's fields. Outside of modules, what comes before a forward or a backward of the same step (the
    input's transfer, the loss) belongs to the forward, all else (clipping, logging) to `other`."""
    position = bisect_right(steps, (time, 2**63)) - 1
    inside = position >= 0 and time < steps[position][1]
    thing.step = position if inside else -1
    if owner is None:
        return
    thing.operator = owner.operator
    thing.module = owner.module
    region = owner.region
    if region is None:
        starts, regions = following
        place = bisect_right(starts, time)
        comes = regions[place] if place < len(starts) and inside and starts[place] < steps[position][1] else "other"
        region = "forward" if comes in ("forward", "backward") else "other"
    thing.region = region
