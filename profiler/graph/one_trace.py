"""Runs the user's step once under the tracer, and sees what it leaves behind in the user's objects.

    trace = StepTrace(model, loss_fn, optimizer, lifted, fakes, leaves, structure)
    result = trace.run()      # the graph, the parameters that got a gradient, the tensors reached besides

A tensor that the step puts in the place of another is written back into it at the end of the graph. Other things that
a step leaves (counters, caches, the last loss) are undone; where the next step would read them, one graph is not the
same for every step, which a second trace shows.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.proxy_tensor import get_proxy_mode, make_fx
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim import Optimizer

from profiler.errors import TraceError
from profiler.graph.batch import Structure
from profiler.graph.capture.comparison import comes_from_constants, same_graph
from profiler.graph.capture.decisions import Decision, decide, untold_of_tracing
from profiler.graph.capture.python_random import SEEDS, PythonGenerators
from profiler.graph.capture.stand_ins import Captured, StandIns, describe
from profiler.graph.capture.surroundings import autocast_cache, unchanged_generator
from profiler.graph.capture.user_objects import MISSING, Change, UserObjects, empty_caches
from profiler.graph.capture.wrappers import is_wrapper, refuse_wrapper
from profiler.graph.fake_tensors import Fakes, explained, refuse_unfaithful
from profiler.graph.group_numbers import GroupNumbers
from profiler.graph.lift import Lifted, NodeType
from profiler.graph.optimizer_state import use_eager_implementation
from profiler.graph.regions import Recorder, Region
from profiler.graph.staleness import Read, noting_attributes

LossFn = Callable[..., Tensor]


@dataclass
class TraceResult:
    """One step as a graph: placeholders for the lifted tensors and the batch; its outputs are loss and gradients."""

    module: fx.GraphModule
    graded: list[str] = field(default_factory=list)  # the parameters that got a gradient, in the order of their nodes
    captured: list[Captured] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)  # by the values of the batch
    read: Read = field(default_factory=dict)
    names: dict[nn.Module, str] = field(default_factory=dict)  # of every module that ran
    changed: set[tuple[int, Any]] = field(default_factory=set)  # (id of a container, key) that the step itself changes


@dataclass
class StepTrace:
    """The step of one model, and the fakes that stand for its tensors."""

    model: nn.Module
    loss_fn: LossFn
    optimizer: Optimizer
    lifted: Sequence[Lifted]
    fakes: Fakes
    leaves: list[Any]  # of the batch
    structure: Structure
    fake_model: bool

    def __post_init__(self) -> None:
        self.objects = UserObjects(self.model, self.loss_fn, self.optimizer)
        self.generators = PythonGenerators(self.objects.generators)
        self._stand_in = [self.fakes.of(item.tensor) for item in self.lifted]
        self.numbers = GroupNumbers(self.optimizer)
        self._trackers: list[Any] = []  # tensor → node, of each trace; holds no tensor alive
        self._batch_at = [i for i, leaf in enumerate(self.leaves) if isinstance(leaf, Tensor)]
        self._inputs = self._stand_in + [self.fakes.unaliased(self.leaves[i]) for i in self._batch_at]

    def run(self, undampened: Sequence[int] = ()) -> TraceResult:
        """Trace; everything of the user's is as it was afterwards, also when this raises."""
        with self._restored(), unchanged_generator():
            result, remaining = self._once(undampened)
            if remaining or self.generators.drawn():
                self._check_repeats(result, remaining, undampened, self.generators.drawn())
        refuse_unfaithful(result.module.graph)
        return result

    @contextmanager
    def _restored(self) -> Iterator[None]:
        try:
            yield
        finally:
            self.objects.restore()
            self.generators.restore()
            self._empty_caches()

    def _once(self, undampened: Sequence[int]) -> tuple[TraceResult, list[Change]]:
        """The trace, and what it has left in the user's objects."""
        result = TraceResult(fx.GraphModule(nn.Module(), fx.Graph()))
        remaining: list[Change] = []
        tracked: list[Any] = []

        def train_step(*arguments: Tensor) -> list[Tensor]:
            static = arguments[: len(self.lifted)]
            leaves = list(self.leaves)
            for position, tensor in zip(self._batch_at, arguments[len(self.lifted) :], strict=True):
                leaves[position] = tensor
            mode = get_proxy_mode()
            assert mode is not None, "make_fx traces this function"
            tracked.append(mode.tracer.tensor_tracker)
            known = {id(item.tensor): tensor for item, tensor in zip(self.lifted, static, strict=True)}
            owners = {
                id(tensor): item.module
                for item, tensor in zip(self.lifted, static, strict=True)
                if item.kind is NodeType.PARAM
            }
            recorder = Recorder(self.model, owners)
            real = [*(None for _ in self.lifted), *(self.leaves[i] for i in self._batch_at)]

            def ask(tensor: Tensor) -> Decision | None:
                return decide(tensor, mode.tracer, real, recorder.module)

            stand_ins = StandIns(self.fakes, known, mode.tracer, self.fake_model, ask)
            with recorder.recording(), explained(recorder), stand_ins.active(), self._following(recorder, stand_ins):
                use_eager_implementation(self.optimizer)
                for index in undampened:
                    self.optimizer.param_groups[index]["dampening"] = 0
                with noting_attributes(result.read):
                    loss = self._step(recorder, stand_ins, self.structure.build(leaves))
                for group in self.optimizer.param_groups:
                    group.update(numbers[id(group)])
                remaining.extend(self._write_back(stand_ins, result))
            pairs = list(zip(self.lifted, static, strict=True))
            gradients = {i.name: t.grad for i, t in pairs if i.kind is NodeType.PARAM and t.grad is not None}
            for item, tensor in pairs:
                tensor.grad = None
                if tensor.requires_grad != item.tensor.requires_grad:
                    raise TraceError(f"the step changes requires_grad of {item.name}: freeze it outside of the step")
            result.graded.extend(gradients)
            result.captured.extend(stand_ins.captured.values())
            result.decisions.extend(one for one in stand_ins.decisions if one.reads)
            result.generators.extend(stand_ins.generators)
            result.names |= recorder.names
            return [loss, *gradients.values()]

        numbers = {id(group): dict(group) for group in self.optimizer.param_groups}
        result.module = make_fx(train_step, tracing_mode="fake")(*self._inputs)
        self._trackers.append(tracked[0])
        return result, remaining

    def _step(self, recorder: Recorder, stand_ins: StandIns, batch: Sequence[Any]) -> Tensor:
        """One training step under the tracer, region by region. Returns the detached loss."""
        with torch.enable_grad(), autocast_cache():
            loss = self.loss_fn(self.model, *batch)
            if not isinstance(loss, Tensor) or loss.numel() != 1:
                what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
                raise TraceError(f"loss_fn returned {what}, and a loss is one number: reduce it, such as with .mean()")
            if not loss.requires_grad:
                raise TraceError(
                    "the loss does not depend on a trainable parameter: is loss_fn detached or in no_grad?"
                )
            result = loss.detach()
            recorder.end_forward(loss)
            self._check_leaves(recorder, stand_ins)
            with torch.autograd.set_multithreading_enabled(False):
                loss.backward()
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None and parameter.grad.layout is not torch.strided:
                    raise TraceError(
                        f"parameter {name} gets a gradient of layout {parameter.grad.layout}: "
                        "build its module with sparse=False"
                    )
            recorder.region = Region.OPTIMIZER
            mode = get_proxy_mode()
            assert mode is not None, "make_fx traces this function"
            self.numbers.become_symbols(mode.tracer, self.fakes.shapes)
            self.optimizer.step()
            return result

    def _check_leaves(self, recorder: Recorder, stand_ins: StandIns) -> None:
        """A gradient goes to the model's parameters only: one of another module would be lost."""
        captured = {id(one.fake): one.tensor for one in stand_ins.captured.values()}
        for leaf in recorder.leaves:
            if id(leaf) in captured:
                raise TraceError(
                    f"the loss depends on {self.name_of(captured[id(leaf)])}, which is no parameter of the model and "
                    "requires a gradient: register it on the model, trace a module that holds both, or freeze it with "
                    "requires_grad_(False)"
                )

    def name_of(self, tensor: Tensor) -> str:
        """Where a tensor lies in the user's objects, in words."""
        names = [name for one, name, _, _ in self.objects.places() if one is tensor]
        return f"{names[0]} ({describe(tensor)})" if names else describe(tensor)

    @contextmanager
    def _following(self, recorder: Recorder, stand_ins: StandIns) -> Iterator[None]:
        """See every module that runs: those that the model does not hold are remembered as they were before."""

        def enter(module: nn.Module, _args: Any) -> None:
            if is_wrapper(module):
                refuse_wrapper(module, recorder.names.get(module, type(module).__name__))
            if module not in recorder.names:
                name = f"({type(module).__name__})"
                self.objects.add(module, name)
                for path, inner in module.named_modules():
                    recorder.names.setdefault(inner, f"{name}.{path}" if path else name)

        with ExitStack() as stack:
            stack.callback(register_module_forward_pre_hook(enter).remove)
            if not self.fake_model and not any(isinstance(leaf, FakeTensor) for leaf in self.leaves):
                stack.enter_context(untold_of_tracing())
            yield

    def _write_back(self, stand_ins: StandIns, result: TraceResult) -> list[Change]:
        """Copy each tensor that took another's place into that one. Returns the changes of another kind."""
        kind = {id(item.tensor): item for item in self.lifted}
        owners: dict[int, set[int]] = {}  # storage → the tensors of the user's that lie in it
        for tensor in [*(item.tensor for item in self.lifted), *(c.tensor for c in stand_ins.captured.values())]:
            owners.setdefault(_storage(tensor), set()).add(id(tensor))
        remaining: list[Change] = []
        pairs: list[tuple[Tensor, Tensor]] = []
        replaced: list[Change] = []
        for change in self.objects.changes():
            result.changed.add((id(change.container), change.key))
            old, new = change.before, change.after
            item = kind.get(id(old))
            with torch._C.DisableTorchFunction():  # to look at a tensor is not to read it
                is_value = isinstance(old, Tensor) and (old.is_leaf or not old.requires_grad)
                alike = is_value and isinstance(new, Tensor) and new.shape == old.shape and new.dtype == old.dtype
                # to write into a tensor that shares its memory with another would change both
                alike = alike and owners.get(_storage(old), set()) <= {id(old)}
            if item is None and not alike:  # such as the weight that weight_norm computes before each use
                remaining.append(change)
                continue
            if item is not None and (not alike or item.kind is NodeType.PARAM):
                raise TraceError(
                    f"{item.kind.value} {item.name} is replaced by {_in_words(new)} while the step runs: update it in "
                    "place, with its shape and dtype"
                )
            pairs.append((stand_ins.of(old), stand_ins.of(new)))
            replaced.append(change)
        pairs += [(before, tensor.detach()) for tensor, before in stand_ins.moved if stand_ins.stands_in(tensor)]
        with torch.no_grad():
            overwritten = {_storage(old) for old, _ in pairs}
            values = [new.clone() if len(pairs) > 1 and _storage(new) in overwritten else new for _, new in pairs]
            for (old, _), value in zip(pairs, values, strict=True):
                old.copy_(value)
        self.objects.put_back(replaced)
        return remaining

    def _empty_caches(self) -> None:
        """Clear the caches of functions that have kept a tensor of a trace."""
        ours = {id(tensor) for tensor in self._inputs}
        left = [tensor for tracker in self._trackers for tensor in tracker if id(tensor) not in ours]
        if left:
            empty_caches(left)

    def _check_repeats(
        self, result: TraceResult, remaining: list[Change], undampened: Sequence[int], drawn: bool
    ) -> None:
        """Trace again from where the first trace ended: the graph must be the same, or the error says what differs."""
        places = [change.place for change in remaining]
        tracker = self._trackers[-1]
        for container in {id(change.container): change.container for change in remaining}.values():
            mine = [change for change in remaining if change.container is container]
            if all(_is_cached_constant(change.after, tracker) for change in mine):
                self.objects.restore_one(container)
        self._empty_caches()
        what = f"{', '.join(places[:3])}, which the step itself changes" if places else ""
        if drawn:
            what = "numbers that random or numpy.random draw" + (f", or on {what}" if what else "")
        for seeds in SEEDS if drawn else (None,):
            if seeds is not None:
                self.generators.seed(seeds)
            try:
                again, _ = self._once(undampened)
            except TraceError as error:
                raise TraceError(f"{error}. The step depends on {what}: {_remedy(drawn)}") from error
            if not same_graph(result.module, again.module):
                raise TraceError(
                    f"the graph depends on {what}, and would keep what this trace found for ever: {_remedy(drawn)}"
                )
        if drawn:
            warnings.warn(
                f"the step draws {what.replace(', or on', ' and changes')}; its graph was the same for other numbers, "
                f"and takes them for without effect. If they have one: {_remedy(drawn)}",
                stacklevel=4,
            )


def _storage(tensor: Tensor) -> int:
    with torch._C.DisableTorchFunction():
        return tensor.untyped_storage()._cdata


def _remedy(drawn: bool) -> str:
    if drawn:
        return "draw it outside of the step and pass it in the batch as a tensor of no dimensions (or draw with torch)"
    return (
        "keep it in a buffer of fixed shape that is there before the trace (if the first step makes it, run one eager "
        "step before), or pass it in the batch"
    )


def _in_words(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}"
    return "nothing" if value is MISSING or value is None else f"a {type(value).__name__}"


def _is_cached_constant(value: Any, tracker: Any) -> bool:
    """Whether `value` holds tensors, all of them made from constants: the next trace makes the same ones again."""
    tensors = [leaf for leaf in _tensors_in(value) if isinstance(leaf, FakeTensor)]
    return bool(tensors) and all(
        tensor in tracker and comes_from_constants(tracker[tensor].proxy.node) for tensor in tensors
    )


def _tensors_in(value: Any, depth: int = 4) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    inside: list[Any] = []
    if isinstance(value, dict):
        inside = list(value.values())
    elif isinstance(value, list | tuple | set):
        inside = list(value)
    return [tensor for item in inside for tensor in _tensors_in(item, depth - 1)] if depth else []
