"""A plan for users of `torch.utils.checkpoint` without a compiler: a policy by module and operator.

    policy = checkpointing.plan_of(model).to_policy()           # or of a whole-step plan
    loss = checkpoint(step, model, x, use_reentrant=False, context_fn=policy.contexts(model))

An operator is named by the module that runs it, its name, and how many of that name the module has run before. Its
results are saved or recomputed as planned. PyTorch also repeats an operator whose result only saved ones read. A region
is the whole step, or whole modules of it. PyTorch recomputes a region at once: one per block has the lower peak.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Collection
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

from checkpointing.errors import CheckpointingError, DecisionsFileError
from checkpointing.operators.purity import BATCH_NORMS
from profiler.graph.regions import LOSS_FN, ROOT

if TYPE_CHECKING:
    import pandas as pd

    from checkpointing.planners.problem import PlanningProblem

FORMAT = 1
COLUMNS = ["module", "operator", "occurrence", "decision", "bytes", "why"]
_IN_PLACE = "is written to in place, which a selective checkpoint cannot save"
_BATCH_NORM = "aten.batch_norm"  # its operators have other names in a functional graph
_BATCH_NORMS = {str(op.overloadpacket) for op in BATCH_NORMS} | {"aten._native_batch_norm_legit_functional"}
_DROPOUT = "aten.native_dropout"  # on a CPU, eager multiplies by noise that `bernoulli_` wrote
_NO_MEMORY = ("aten._unsafe_view", "aten.view", "aten.reshape")  # views, whatever their schemas say

Key = tuple[str, str, int]  # module, operator, occurrence


@dataclass(frozen=True)
class Operator:
    """One operator of the forward. `why`: the reason, where an eager operator cannot do as the plan does."""

    module: str
    operator: str  # "aten.mm"; one that writes in place is named as the one that does not: "aten.relu"
    occurrence: int
    saved: bool
    size: int  # bytes of its results
    why: str = ""


@dataclass(frozen=True)
class SelectivePolicy:
    """Whether each operator of the step's forward is saved; `operators` are in the order in which they run."""

    operators: tuple[Operator, ...] = field(repr=False)

    def table(self) -> pd.DataFrame:
        """One row per operator, columns `COLUMNS`."""
        import pandas as pd

        rows = [
            (o.module, o.operator, o.occurrence, "save" if o.saved else "recompute", o.size, o.why)
            for o in self.operators
        ]
        return pd.DataFrame(rows, columns=COLUMNS)

    def to_json(self, path: str | Path) -> Path:
        """Write the policy; `read_policy` reads it, in a process that plans nothing."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps({"policy": FORMAT, "operators": [asdict(o) for o in self.operators]}, indent=1))
        return target

    def contexts(self, model: nn.Module) -> Callable[[], tuple[Any, Any]]:
        """The `context_fn` of `torch.utils.checkpoint.checkpoint(..., use_reentrant=False)` for regions of `model`.

        Raises CheckpointingError in the forward if a region does not run a module as a whole, or runs other operators
        than the planned step.
        """
        if not isinstance(model, nn.Module):
            raise CheckpointingError(
                f"contexts({type(model).__name__}): give it the model, whose modules name operators"
            )
        names = {id(module): name for name, module in model.named_modules()}
        planned = {o.module for o in self.operators}
        unknown = sorted(planned - set(names.values()) - {""})
        if unknown:
            raise CheckpointingError(f"the plan is of another model: this one has no module {unknown[0]!r}")
        saved = {(o.module, o.operator, o.occurrence): o.saved for o in self.operators}

        def make() -> tuple[Any, Any]:
            buffers = {buffer.untyped_storage()._cdata for buffer in model.buffers()}
            region = _Region(saved, names, buffers, _running(names))
            first, again = create_selective_checkpoint_contexts(region.policy)
            return _Pass(region, first, is_first=True), _Pass(region, again, is_first=False)

        return make


def read_policy(path: str | Path) -> SelectivePolicy:
    """The policy that `to_json` wrote. Raises DecisionsFileError for any other file."""
    try:
        found = json.loads(Path(path).read_text())
        if found["policy"] != FORMAT:
            raise DecisionsFileError(
                f"{path}: of format {found['policy']}, and this version reads {FORMAT}: write anew"
            )
        return SelectivePolicy(tuple(Operator(**row) for row in found["operators"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, DecisionsFileError):
            raise
        raise DecisionsFileError(f"{path}: no policy that to_json wrote ({error})") from error


def policy_of(problem: PlanningProblem, kept: Collection[int]) -> SelectivePolicy:
    """The policy that saves the storages `kept` of a step, as far as an eager operator can."""
    count: Counter[tuple[str, str]] = Counter()
    operators = []
    noise: set[int] = set()
    for order in range(problem.backward_start):
        made = problem.created[order]
        written = [index for index, writers in enumerate(problem.writers) if order in writers and index not in made]
        operator = _planned_name(problem.targets[order])
        if not operator or not (made or written):  # an input, an element, a view
            continue
        read = {index for source in problem.inputs[order] for index in problem.held[source]}
        if operator == "aten.bernoulli" and written:
            noise.update(written)
        elif operator == "aten.mul" and read & noise:
            operator = _DROPOUT
        module = "" if problem.modules[order] in (ROOT, LOSS_FN) else problem.modules[order]
        occurrence = count[module, operator]
        count[module, operator] += 1
        size = sum(problem.size[index] for index in made)
        wanted = sum(problem.size[index] for index in made if index in kept)
        in_place = [i for i in (*made, *written) if len(problem.writers[i]) > 1 and not problem.owned[i]]
        saved, why = 2 * wanted >= size and wanted > 0, ""
        if in_place:
            saved = False
            why = _IN_PLACE if any(index in kept for index in in_place) else ""
        elif 0 < wanted < size:
            why = f"{wanted} of {size} bytes are kept: an operator's results are saved together or not at all"
        operators.append(Operator(module, operator, occurrence, saved, size, why))
    return SelectivePolicy(tuple(operators))


def _planned_name(target: str) -> str:
    """ "aten.relu_.default" → "aten.relu"; "" for what is no operator of PyTorch's dispatcher."""
    return _name(target.rpartition(".")[0])


def _name(packet: str) -> str:
    return _BATCH_NORM if packet in _BATCH_NORMS else packet.removesuffix("_")


class _Region:
    """What the two passes of one region share: decisions, states of generators, and the operator that is running."""

    def __init__(self, saved: dict[Key, bool], names: dict[int, str], buffers: set[int], around: str) -> None:
        self.saved, self.names, self.buffers = saved, names, buffers
        self.around = around  # the module within which it begins
        self.planned = Counter((module, operator) for module, operator, _ in saved)
        self.with_saved = {
            key for key in self.planned if any(saved[(*key, occurrence)] for occurrence in range(self.planned[key]))
        }
        self.decision = CheckpointPolicy.MUST_RECOMPUTE
        self.states: list[Tensor] = []  # of the generators, before each random operator that runs again

    def policy(self, ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
        return self.decision


class _Pass(TorchDispatchMode):
    """One pass over a region, the first or the second: it counts operators by module, above PyTorch's own mode."""

    def __init__(self, region: _Region, inner: Any, is_first: bool) -> None:
        super().__init__()
        self.region, self.inner, self.is_first = region, inner, is_first

    def __enter__(self) -> Any:
        self.count: Counter[tuple[str, str]] = Counter()
        self.modules = [self.region.around]
        self.random = 0
        self.noise: set[int] = set()  # the storage that `bernoulli_` has filled last
        self.kept: set[int] = set()  # storages of saved results
        self.stack = ExitStack()
        self.stack.enter_context(self.inner)
        for handle in (
            register_module_forward_pre_hook(self._enters),
            register_module_forward_hook(self._leaves, always_call=True),
        ):
            self.stack.callback(handle.remove)
        return super().__enter__()

    def __exit__(self, kind: Any, value: Any, traceback: Any) -> None:
        super().__exit__(kind, value, traceback)
        self.stack.close()
        if self.is_first and kind is None:
            self._check()

    def _enters(self, module: nn.Module, inputs: Any) -> None:
        self.modules.append(self.region.names.get(id(module), self.modules[-1]))

    def _leaves(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.modules.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        region = self.region
        region.decision = CheckpointPolicy.MUST_RECOMPUTE
        if not isinstance(func, torch._ops.OpOverload) or _is_view(func):
            return func(*args, **kwargs)
        place = (self.modules[-1], self._name(func, args))
        writes = any(returned.alias_info is not None for returned in func._schema.returns)  # as no view does: in place
        saved = region.saved.get((*place, self.count[place]), False) and not writes
        self.count[place] += 1
        if self.is_first:
            self._check_write(func, args)
        else:
            args = self._without_buffers(func, args)
        if saved:
            region.decision = CheckpointPolicy.MUST_SAVE
        elif torch.Tag.nondeterministic_seeded in func.tags:
            self._same_random_numbers(args)
        result = func(*args, **kwargs)
        if saved and self.is_first:
            self.kept.update(t.untyped_storage()._cdata for t in _tensors(result))
        return result

    def _name(self, func: Any, args: Any) -> str:
        name = _name(str(func.overloadpacket))
        read = {t.untyped_storage()._cdata for t in _tensors(args)}
        if func.overloadpacket is torch.ops.aten.bernoulli_:
            self.noise = read
        elif name == "aten.mul" and read & self.noise:
            self.noise = set()
            return _DROPOUT
        return name

    def _same_random_numbers(self, args: Any) -> None:
        """A random operator that runs again starts from the state that it started from in the forward: saved ones do
        not run again, and draw nothing then."""
        device = next((t.device for t in _tensors(args)), torch.device("cpu"))
        on_gpu = device.type == "cuda"
        if self.is_first:
            self.region.states.append(torch.cuda.get_rng_state(device) if on_gpu else torch.get_rng_state())
        else:
            state = self.region.states[self.random]
            self.random += 1
            if on_gpu:
                torch.cuda.set_rng_state(state, device)
            else:
                torch.set_rng_state(state)

    def _check_write(self, func: Any, args: Any) -> None:
        for argument, value in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and any(t.untyped_storage()._cdata in self.kept for t in _tensors(value)):
                raise CheckpointingError(
                    f"{func} of module {self.modules[-1]!r} writes to a value that the plan saves, which a selective "
                    "checkpoint cannot save: use the operator that does not write in place (inplace=False)"
                )

    def _without_buffers(self, func: Any, args: Any) -> Any:
        """The arguments of a second run, with copies of the model's buffers that it would write to once more."""
        statistics = BATCH_NORMS[func][:2] if func in BATCH_NORMS else ()
        written = {
            index
            for index, (argument, value) in enumerate(zip(func._schema.arguments, args, strict=False))
            if (argument.is_write or index in statistics)
            and any(t.untyped_storage()._cdata in self.region.buffers for t in _tensors(value))
        }
        if not written:
            return args
        with _disable_current_modes():
            return [value.clone() if index in written else value for index, value in enumerate(args)]

    def _check(self) -> None:
        """Where something of a module is saved, the region must have run as many operators of that name as planned."""
        region = self.region
        touched = {module for module, _ in self.count}
        for module, operator in sorted(region.with_saved):
            found, planned = self.count[module, operator], region.planned[module, operator]
            if module in touched and found != planned:
                where = f"module {module!r}" if module else "the step outside of its modules"
                raise CheckpointingError(
                    f"this region runs {operator} {found} times in {where}, and the planned step {planned} times: "
                    "checkpoint whole modules, called once per step, or the whole step that was planned"
                )


def _running(names: dict[int, str]) -> str:
    """The innermost of the named modules whose call is under way; "" outside of them."""
    frame = sys._getframe()
    while frame.f_back is not None:
        frame = frame.f_back
        if frame.f_code is nn.Module._call_impl.__code__ and id(frame.f_locals["self"]) in names:
            return names[id(frame.f_locals["self"])]
    return ""


def _is_view(func: Any) -> bool:
    if str(func.overloadpacket) in _NO_MEMORY or func in (torch.ops.aten.detach.default, torch.ops.prim.device.default):
        return True
    returned = func._schema.returns
    return bool(returned) and returned[0].alias_info is not None and not returned[0].alias_info.is_write


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in pytree.tree_leaves(values) if isinstance(value, Tensor)]
