"""Modules that communicate between ranks or devices in hooks, which no graph calls."""

from __future__ import annotations

from torch import nn

from profiler.errors import TraceError

_WRAPPERS = {"DistributedDataParallel", "FullyShardedDataParallel", "FSDPModule", "DataParallel"}


def is_wrapper(module: nn.Module) -> bool:
    """Whether the module exchanges gradients or parameters with other ranks or devices."""
    return any(base.__name__ in _WRAPPERS for base in type(module).__mro__)


def refuse_wrapper(module: nn.Module, name: str) -> None:
    """Raise TraceError for a module that communicates in hooks, which no graph calls."""
    raise TraceError(
        f"module {name} is a {type(module).__name__}, which exchanges gradients or parameters between ranks in hooks "
        "that a graph does not call: trace the plain module on one rank to analyse it, and train the wrapper in eager"
    )
