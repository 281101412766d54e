"""Floating-point operations of each module's forward and backward, by the formulas of torch.utils.flop_counter.

    flops = count_flops(model, lambda: train_step(*batch))     # runs one more step, not timed

A backward operator is counted for the module in whose forward the autograd node was made that is being evaluated.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type

from profiler.flops import formula_flops, has_formula, uncounted
from profiler.traces.recording.hooks import module_names
from profiler.traces.records import OUTSIDE

Formulas = Mapping[Any, Callable[..., int]]


class FlopCount(dict[tuple[str, str], int]):
    """(module, "forward" or "backward") → floating-point operations. `uncounted`: operators that may do arithmetic and
    have no formula, and how often each was called."""

    def __init__(self, counts: Mapping[tuple[str, str], int], uncounted: Mapping[str, int]) -> None:
        super().__init__(counts)
        self.uncounted = dict(uncounted)


def count_flops(
    model: nn.Module | Mapping[str, nn.Module], step: Callable[[], object], formulas: Formulas | None = None
) -> FlopCount:
    """Run `step` once and count: 2 × multiply-adds of matrix products, convolutions and attention; 0 for all else.

    Operators that may do arithmetic and have no formula are named in the result's `uncounted`.

    `formulas` adds operators that PyTorch has no formula for: `{torch.ops.aten.f: lambda *args, out_val, **kw: int}`,
    with tensors in place of shapes.
    """
    counter = _Counter(formulas or {})
    names = module_names(model)
    with ExitStack() as stack:
        for module, name in names.items():
            if not isinstance(module, torch.jit.ScriptModule):
                enter = module.register_forward_pre_hook(lambda *_, name=name: counter.enter(name), prepend=True)
                leave = module.register_forward_hook(lambda *_: counter.leave(), always_call=True)
                stack.callback(enter.remove)
                stack.callback(leave.remove)
        stack.enter_context(counter)
        step()
    return FlopCount(counter.counts, counter.uncounted)


class _Counter(TorchDispatchMode):
    def __init__(self, formulas: Formulas) -> None:
        super().__init__()
        self.counts: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.uncounted: Counter[str] = Counter()
        self.formulas = formulas
        self._stack: list[str] = []
        # Autograd's numbers, and the module from each on. Nodes that a forward makes when it runs again in the backward
        # are numbered apart on a GPU, where the backward has a thread of its own.
        self._made = ([0], [OUTSIDE])
        self._made_again: tuple[list[int], list[str]] = ([0], [OUTSIDE])
        self._outer_task = -1  # the backward in which a forward ran again

    def enter(self, name: str) -> None:
        self._stack.append(name)
        self._border()

    def leave(self) -> None:
        self._stack.pop()
        self._border()

    def _border(self) -> None:
        if torch._C._current_autograd_node() is None:
            numbers, modules = self._made
            self._made_again = ([0], [OUTSIDE])
        else:
            numbers, modules = self._made_again
            self._outer_task = torch._C._current_graph_task_id()
        numbers.append(torch._C._autograd._get_sequence_nr())
        modules.append(self._stack[-1] if self._stack else OUTSIDE)

    def _owner(self) -> tuple[str, str]:
        node = torch._C._current_autograd_node()
        if self._stack:
            return self._stack[-1], "forward" if node is None else "backward"
        if node is None:
            return OUTSIDE, "forward"
        nested = len(self._made_again[0]) > 1 and torch._C._current_graph_task_id() != self._outer_task
        numbers, modules = self._made_again if nested else self._made
        return modules[bisect_right(numbers, node._sequence_nr()) - 1], "backward"

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented  # a DTensor, say: what it runs on its own shard comes here next, and is what counts
        kwargs = kwargs or {}
        packet = getattr(function, "_overloadpacket", None)
        if not has_formula(packet) and packet not in self.formulas:
            with self:
                result = function.decompose(*args, **kwargs) if hasattr(function, "decompose") else NotImplemented
            if result is not NotImplemented:
                return result
        out = function(*args, **kwargs)
        if packet in self.formulas:
            self.counts[self._owner()] += int(self.formulas[packet](*args, **kwargs, out_val=out))
        elif has_formula(packet):
            self.counts[self._owner()] += formula_flops(packet, args, kwargs, out)
        elif uncounted(function):
            self.uncounted[str(function)] += 1
        return out
