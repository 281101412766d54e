"""Planning without the garbage collector.

A plan makes a few graphs of thousands of nodes each. To the collector that is a reason to look at everything that the
process holds, again and again: eight times for BERT, which was 45% of the time that planning took. What those graphs
leave behind (150 MB) is collected afterwards.
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
