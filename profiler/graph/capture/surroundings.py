"""What a trace keeps as it was around the step: the random generator, the cache of autocast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from profiler.errors import TraceError


@contextmanager
def unchanged_generator() -> Iterator[None]:
    """Put the state of PyTorch's generator back; a graph does not seed."""
    before = torch.get_rng_state()
    try:
        yield
        if not torch.equal(torch.get_rng_state(), before):
            raise TraceError(
                "the step seeds or sets PyTorch's random generator, which a graph does not: seed it outside of the step"
            )
    finally:
        torch.set_rng_state(before)


@contextmanager
def autocast_cache() -> Iterator[None]:
    """Let autocast cast a weight once, as in eager (make_fx turns that off), and forget the casts."""
    before = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(True)
    try:
        yield
    finally:
        torch.clear_autocast_cache()
        torch.set_autocast_cache_enabled(before)
