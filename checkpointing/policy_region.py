"""A region of a step under a selective checkpoint: which operator runs, in the first pass and when it runs again.

    region = Region(saved, names, buffers, module_running(names))
    first, again = create_selective_checkpoint_contexts(region.policy)
    contexts = RegionPass(region, first, is_first=True), RegionPass(region, again, is_first=False)

PyTorch's own mode asks `region.policy` about each operator. A pass lies above that mode and knows the operator's
module, name and occurrence.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.checkpoint import CheckpointPolicy

from checkpointing.errors import CheckpointingError
from checkpointing.operators.purity import BATCH_NORMS

DROPOUT = "aten.native_dropout"  # on a CPU, eager multiplies by noise that `bernoulli_` wrote
_BATCH_NORM = "aten.batch_norm"  # its operators have other names in a functional graph
_BATCH_NORMS = {str(op.overloadpacket) for op in BATCH_NORMS} | {"aten._native_batch_norm_legit_functional"}
_NO_MEMORY = ("aten._unsafe_view", "aten.view", "aten.reshape")  # views, whatever their schemas say

Key = tuple[str, str, int]  # module, operator, occurrence


def operator_name(packet: str) -> str:
    """The name in a policy: "aten.relu" of `aten.relu_`."""
    return _BATCH_NORM if packet in _BATCH_NORMS else packet.removesuffix("_")


class Region:
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


class RegionPass(TorchDispatchMode):
    """One pass over a region, the first or the second: it counts operators by module, above PyTorch's own mode."""

    def __init__(self, region: Region, inner: Any, is_first: bool) -> None:
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
        name = operator_name(str(func.overloadpacket))
        read = {t.untyped_storage()._cdata for t in _tensors(args)}
        if func.overloadpacket is torch.ops.aten.bernoulli_:
            self.noise = read
        elif name == "aten.mul" and read & self.noise:
            self.noise = set()
            return DROPOUT
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


def module_running(names: dict[int, str]) -> str:
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
