"""A backend of torch.compile that keeps a training step's peak memory under a budget, at the least added time.

    model = torch.compile(model, backend=checkpointing.backend(memory_budget="8GB"), dynamic=False)

Dynamo captures the forward and the loss as it always does, AOTAutograd traces them and their backward as one joint
graph, `joint_step` and `joint_problem` make of it the planners' question, `partition` splits it as planned, and
inductor compiles the halves. The optimizer and the loop stay outside. Nothing runs before it is planned: the unplanned
step never has to fit.
"""

from __future__ import annotations

import copy
import logging
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch._guards import CompileContext

from checkpointing import budget as budgets
from checkpointing.compiled.compiled_plan import CompiledPlan
from checkpointing.compiled.compiled_step import CompiledStep
from checkpointing.compiled.decisions.decider import Decider
from checkpointing.compiled.decisions.plan_file import FromFiles, PlanFile, read_plan_files
from checkpointing.compiled.decisions.ranks import RANKS, Together, several_ranks
from checkpointing.compiled.execution import EXECUTIONS
from checkpointing.compiled.loss.chunked_loss import chunks_of
from checkpointing.compiled.memory.device_memory import device_of
from checkpointing.compiled.obstacles import break_around, breaks_so_far, place_of, remedy_of_break
from checkpointing.compiled.rules import Rules
from checkpointing.errors import BudgetError, CheckpointingError, GraphBreakError
from checkpointing.planners import BUDGETED

log = logging.getLogger(__name__)

MEMORY_BUDGET, EXECUTION = "RECOMPUTE_MEMORY_BUDGET", "RECOMPUTE_EXECUTION"  # environment, for the backend by name
REDUCE_OVERHEAD = "reduce-overhead"  # a mode of torch.compile: in CUDA graphs
MODES = ("default", REDUCE_OVERHEAD)
OLDEST = "2.11"
OPTIONS = ("memory_budget", "execution", "solver", "keep", "recompute", "chunked_loss", "plan", "ranks")


def backend(
    memory_budget: float | str | None = None,
    *,
    execution: str | None = None,
    solver: str = "optimal",
    keep: Sequence[str] = (),
    recompute: Sequence[str] = (),
    chunked_loss: int | str | None = None,
    plan: str | Path | Sequence[str | Path] | None = None,
    ranks: str = "same",
) -> Backend:
    """A backend for torch.compile that plans each training graph under `memory_budget`.

    `memory_budget` is the peak of allocated bytes on the device that a step may reach, static memory included: bytes,
    a string ("8GB", "7500MiB"), or a fraction of what the unplanned step would need. `execution` is "inductor" (the
    default) or "eager" (operator by operator, bitwise equal to the unplanned graph: for CPUs and tests). `keep` and
    `recompute` are patterns of modules ("transformer.h.0") or operators ("aten.mm") whose results are kept, or
    recomputed, whatever they cost. `chunked_loss`: a cross entropy of a linear layer may be computed in chunks of rows,
    so that no more than one chunk of logits is there at any time: rounded otherwise than in one piece, and not further
    from the truth. "auto" (the default with "inductor") lets the planner choose the number, along with what it
    recomputes; of a step that fits, the loss stays as it is. A number asks for so many; "plain" (the default with
    "eager") for none.

    torch.compile's `mode="reduce-overhead"` runs the planned step in CUDA graphs, without the host's overhead. Their
    pool keeps all the memory that they need, and counts in full against the budget.

    `plan` is a file that `plan.to_json` wrote, or several, in the place of all of these: nothing is measured or
    planned, and a step that is not the file's is rejected when it compiles. Where torch.distributed runs, ranks="same"
    has rank 0 plan for all ranks, and for the one with the least room, a loss in "auto" chunks included; "own" has each
    plan alone.

    Raises CheckpointingError for what cannot be read; a budget below the floor is rejected when the step compiles.
    """
    if torch.__version__ < OLDEST:
        raise CheckpointingError(f"checkpointing.backend needs torch {OLDEST} or later; this is {torch.__version__}")
    if ranks not in RANKS:
        raise CheckpointingError(f"ranks={ranks!r}: choose one of {', '.join(RANKS)}")
    if plan is not None:
        if memory_budget is not None or execution is not None or keep or recompute or chunked_loss is not None:
            raise CheckpointingError("plan=: the file holds budget, execution and rules: give it without other options")
        return _from_files(read_plan_files(plan))
    if memory_budget is None:
        raise CheckpointingError('checkpointing.backend needs a memory_budget ("8GB"), or a plan\'s file')
    budgets.check(memory_budget)
    execution = execution or EXECUTIONS[0]
    for option, value, allowed in (("execution", execution, EXECUTIONS), ("solver", solver, BUDGETED)):
        if value not in allowed:
            raise CheckpointingError(f"{option}={value!r}: choose one of {', '.join(allowed)}")
    for option, patterns in (("keep", keep), ("recompute", recompute)):
        if isinstance(patterns, str):
            raise CheckpointingError(f"{option}={patterns!r}: give a list of patterns, {option}=[{patterns!r}]")
    chunks = chunks_of(chunked_loss, execution)
    return Backend(memory_budget, execution, solver, Rules(tuple(keep), tuple(recompute)), chunks, ranks=ranks)


def _from_files(files: list[PlanFile]) -> Backend:
    options = files[0].options
    rules = Rules(tuple(options["keep"]), tuple(options["recompute"]))
    budget, execution, chunks = options["budget_bytes"], options["execution"], options["chunked_loss"]
    return Backend(budget, execution, "optimal", rules, chunks, files=files)


def fit(
    model: nn.Module, memory_budget: float | str | None = None, *, mode: str | None = None, **options: Any
) -> nn.Module:
    """Compile `model` in place so that a training step with it keeps to the budget, and return it.

    `mode` is torch.compile's, `options` are those of `backend`. It stays the module that it was: parameters, names and
    state are the same. Inside of DistributedDataParallel it stays one graph, so that gradients are reduced when the
    backward is done, and do not overlap with it. Raises CheckpointingError if it is compiled already, or a container of
    torch.nn; the first call plans, and raises BudgetError for too small a budget.
    """
    from torch._dynamo import OptimizedModule

    chosen = backend(memory_budget, **options)
    if not isinstance(model, nn.Module):
        raise CheckpointingError(f"fit takes a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, OptimizedModule) or model._compiled_call_impl is not None:
        raise CheckpointingError(
            "the model is compiled already, and a budget cannot be put on that: fit the model before torch.compile"
        )
    if type(model).forward.__module__.startswith("torch.nn."):  # Dynamo skips it and does not warn
        raise CheckpointingError(
            f"Dynamo does not compile a {type(model).__name__} in place, whose forward is torch.nn's own: use "
            "torch.compile(model, backend=checkpointing.backend(...), dynamic=False)"
        )
    model.compile(backend=chosen, mode=mode, dynamic=False)
    compiled: Any = model._compiled_call_impl
    model._compiled_call_impl = _as_one_graph(compiled)
    return model


def _as_one_graph(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Inside of DistributedDataParallel, Dynamo compiles a graph for each bucket of gradients, so that the reduction of
    one overlaps with the backward of the next; a budget is of one graph."""

    def call(*args: Any, **kwargs: Any) -> Any:
        with torch._dynamo.config.patch(optimize_ddp=False):
            return compiled(*args, **kwargs)

    return call


def recompute(
    module: fx.GraphModule, inputs: Sequence[Any], *, options: dict[str, Any] | None = None, mode: str | None = None
) -> Callable[..., Any]:
    """The backend by name: `torch.compile(model, backend="recompute", options={"memory_budget": "8GB"})`.

    What `options` leave out comes from RECOMPUTE_MEMORY_BUDGET and RECOMPUTE_EXECUTION.
    """
    try:
        chosen = _by_name(options)
    except CheckpointingError as error:
        return _raising(error)
    return chosen(module, inputs, mode=mode)


def _by_name(options: dict[str, Any] | None) -> Backend:
    given: dict[str, Any] = dict(options or {})
    for option, variable in (("memory_budget", MEMORY_BUDGET), ("execution", EXECUTION)):
        if not given.keys() & {option, "plan"} and os.environ.get(variable):
            given[option] = _number(os.environ[variable])
    unknown = given.keys() - set(OPTIONS)
    if unknown:
        raise CheckpointingError(f"options={{{min(unknown)!r}: ...}}: choose among {', '.join(OPTIONS)}")
    if "memory_budget" not in given and "plan" not in given:
        raise CheckpointingError(
            f'backend="recompute" needs a budget: set {MEMORY_BUDGET}=8GB, or pass options={{"memory_budget": "8GB"}}'
        )
    return backend(**given)


def _number(text: str) -> float | str:
    """A fraction or a number of bytes as a number; anything else as it stands."""
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(eq=False)  # Dynamo compares backends to learn what was compiled by which
class Backend:
    """Called by Dynamo with each graph that it captures. `plans` are those of the graphs so far, the latest last: a
    step that its first runs showed to take more than predicted has two."""

    memory_budget: float | str
    execution: str
    solver: str
    rules: Rules
    chunked_loss: int | str | None = None  # the number, "auto", or None: as it is
    ranks: str = "own"
    loss_kernel: bool | None = None  # for chunks of a loss; None: on devices that have one
    files: list[PlanFile] = field(default_factory=list, repr=False)
    plans: list[CompiledPlan] = field(default_factory=list, repr=False)
    _references: list[weakref.ref[CompiledStep]] = field(default_factory=list, repr=False)
    _breaks: dict[str, int] = field(default_factory=breaks_so_far, repr=False)  # before there was this backend

    @property
    def __name__(self) -> str:
        return "recompute"

    def __call__(
        self,
        module: fx.GraphModule,
        inputs: Sequence[Any],
        *,
        options: dict[str, Any] | None = None,
        mode: str | None = None,
    ) -> Callable[..., Any]:
        try:
            if options:
                raise CheckpointingError("options: give them to checkpointing.backend(...), not to torch.compile")
            cuda_graphs = self._in_cuda_graphs(mode, inputs)
            self._check_one_graph(module)
            _check_static(inputs)
            step = CompiledStep(
                module,
                inputs,
                self.memory_budget,
                self.execution,
                self.solver,
                self.rules,
                self.chunked_loss,
                self._decider(),
                self.loss_kernel,
                cuda_graphs,
                self.plans,
            )
            _say_if_last()
            if step.plan is not None:
                self._references.append(weakref.ref(step))
            return step
        except CheckpointingError as error:  # plain, where Dynamo would wrap it: the call that compiles raises it
            around = break_around(self._breaks) if isinstance(error, BudgetError) else None
            return _raising(
                error if around is None else GraphBreakError(f"{around} (and of this graph alone: {error})")
            )

    def _in_cuda_graphs(self, mode: str | None, inputs: Sequence[Any]) -> bool:
        if mode not in (None, *MODES):
            raise CheckpointingError(f"mode={mode!r}: choose one of {', '.join(MODES)}, or leave mode out")
        if mode != REDUCE_OVERHEAD:
            return False
        if self.execution != "inductor" or device_of(inputs).type != "cuda":
            raise CheckpointingError(
                f'mode="{REDUCE_OVERHEAD}": CUDA graphs need execution="inductor" and a GPU: leave mode out'
            )
        return True

    def _check_one_graph(self, module: fx.GraphModule) -> None:
        """A budget is of the whole step; one graph cannot know what another of the same step will save."""
        reason = getattr(module, "compile_subgraph_reason", None)
        place = place_of(reason.user_stack) if reason is not None else ""
        if reason is not None and reason.graph_break:
            why = str(reason.reason).splitlines()[0]
            why = "something that is called there cannot be traced" if why == "step_unsupported" else why
        elif any(step.is_pending for step in self._steps()):  # its forward has run, and its backward has not
            around = break_around(self._breaks)
            if around is not None:
                raise GraphBreakError(around)
            why = "this one begins before the backward of the one before it"
        else:
            return
        raise GraphBreakError(f"the step breaks into several graphs{place}: {why}; {remedy_of_break(why)}")

    def _decider(self) -> Decider:
        if self.files:
            return FromFiles(self.files)
        if self.ranks == "own" or not several_ranks():
            return Decider()
        options = {"memory_budget": self.memory_budget, "execution": self.execution, "solver": self.solver}
        return Together({**options, **self.rules.options(), "chunked_loss": self.chunked_loss})

    def _steps(self) -> list[CompiledStep]:
        return [step for reference in self._references if (step := reference()) is not None]


def _say_if_last() -> None:
    """Warn at the last shape: beyond its limit of compilations, Dynamo runs a function eagerly and does not say so."""
    limit = torch._dynamo.config.recompile_limit
    compiling = CompileContext.current_compile_id()
    if compiling is not None and compiling.frame_compile_id is not None and compiling.frame_compile_id + 1 == limit:
        log.warning(
            "Dynamo has compiled this step for %d shapes or settings, and runs further ones uncompiled, without a "
            "budget: pad batches to fewer shapes, or set torch._dynamo.config.recompile_limit",
            limit,
        )


def _raising(error: CheckpointingError) -> Callable[..., Any]:
    again = copy.copy(error)  # the error itself would hold on to the model by its traceback

    def rejected(*arguments: Any) -> Any:
        raise copy.copy(again)

    return rejected


def _check_static(inputs: Sequence[Any]) -> None:
    if any(isinstance(value, torch.SymInt) for value in inputs):
        raise CheckpointingError(
            "a dimension of the inputs is symbolic, and a plan is of one shape: compile with dynamic=False "
            "(each shape then has a plan of its own)"
        )
