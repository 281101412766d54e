"""The former name of `profiler.traces`: an import from here still works, and says in one line where to import from."""

import warnings
from typing import Any

from profiler import traces


def __getattr__(name: str) -> Any:
    if name.startswith("__"):  # a question of the import system
        raise AttributeError(name)
    value = getattr(traces, name)
    warnings.warn(f"profiler.kernels is now profiler.traces: import {name} from there", FutureWarning, stacklevel=2)
    return value
