"""Marks in a trace which module's forward is running, and which step."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from profiler.traces.attribution import range_name
from profiler.traces.records import ROOT


def module_names(model: nn.Module | Mapping[str, nn.Module]) -> dict[nn.Module, str]:
    """Module → its path, the model itself as `(model)`. Of a mapping: `name`, `name.path`."""
    if isinstance(model, nn.Module):
        return {module: path or ROOT for path, module in model.named_modules()}
    names: dict[nn.Module, str] = {}
    for name, part in model.items():
        for path, module in part.named_modules():
            names.setdefault(module, f"{name}.{path}" if path else name)
    return names


@contextmanager
def marking(names: Mapping[nn.Module, str]) -> Iterator[None]:
    """Inside, every forward of these modules is a range of the trace. Costs about a microsecond a call."""
    open_ranges = threading.local()  # a forward may run again on a thread of the backward

    def enter(module: nn.Module, _args: Any) -> None:
        mark = torch._C._profiler._RecordFunctionFast(labels[module])
        mark.__enter__()
        stack = open_ranges.__dict__.setdefault("stack", [])
        stack.append(mark)

    def leave(module: nn.Module, _args: Any, _output: Any) -> None:
        open_ranges.stack.pop().__exit__(None, None, None)

    labels = {module: range_name("forward", name) for module, name in names.items()}
    with ExitStack() as hooks:
        for module in names:
            if not isinstance(module, torch.jit.ScriptModule):
                hooks.callback(module.register_forward_pre_hook(enter, prepend=True).remove)
                hooks.callback(module.register_forward_hook(leave, always_call=True).remove)
        yield
