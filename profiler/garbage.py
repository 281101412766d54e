"""Without the garbage collector, where many objects are made and most of them stay.

A trace of a million events, or a plan's few graphs of thousands of nodes each, are to the collector a reason to look at
everything that the process holds, again and again: eight times while BERT is planned, which was 45% of the time. What
is left behind (150 MB there) is collected afterwards.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collected_later() -> Iterator[None]:
    """Meanwhile, cycles of objects are not looked for."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
