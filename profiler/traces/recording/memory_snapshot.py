"""A record of every allocation on the GPU, for PyTorch's viewer (pytorch.org/memory_viz)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from profiler.errors import ProfilerError


@contextmanager
def memory_snapshot(path: str | os.PathLike[str], max_entries: int = 200_000) -> Iterator[None]:
    """Record CUDA's allocations and frees inside, with their Python stacks, and write them to `path` at the end.

    Raises ProfilerError without a GPU. Slows the code down: don't time it meanwhile.
    """
    if not torch.cuda.is_available():
        raise ProfilerError("memory_snapshot records CUDA's allocator, and there is no GPU")
    torch.cuda.memory._record_memory_history(max_entries=max_entries, stacks="python")
    try:
        yield
        torch.cuda.synchronize()
        torch.cuda.memory._dump_snapshot(str(path))
    finally:
        torch.cuda.memory._record_memory_history(enabled=None)
