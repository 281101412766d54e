"""What every command does before its work: say its version, and make sure that the packages it imports are ours.

parser.add_argument("--version", action="version", version=versions())
check_packages("blockshock-report")
end_at_once()
"""

from __future__ import annotations

import atexit
import gc
import importlib.metadata
import importlib.util
import os
import platform
import sys
from pathlib import Path

from blockshock import __version__
from blockshock.errors import REFUSED

PACKAGES = ("profiler", "checkpointing", "sweeps")  # names that a user's own code may well have
_HOME = Path(__file__).resolve().parents[2]  # the folder that holds all of ours


def versions() -> str:
    """Ours, PyTorch's and Python's in one line. Does not import torch."""
    return (
        f"block-shock {__version__} (torch {importlib.metadata.version('torch')}, Python {platform.python_version()})"
    )


def check_packages(command: str) -> None:
    """Exit with status 2 and one line where another module hides a package of ours."""
    for name in PACKAGES:
        place = _place(name)
        if place is None:
            _refuse(command, f"the package {name!r} is missing: install block-shock again")
        elif _HOME not in Path(place).resolve().parents:
            _refuse(command, f"{place} hides the package {name!r} of block-shock: rename it or take it off PYTHONPATH")


def _place(name: str) -> str | None:
    """The file that `import name` would run, or the folder where there is no __init__.py."""
    spec = importlib.util.find_spec(name)
    if spec is None:
        return None
    return spec.origin or next(iter(spec.submodule_search_locations or ()), None)


def _refuse(command: str, problem: str) -> None:
    print(f"{command}: {problem}", file=sys.stderr)
    sys.exit(REFUSED)


def end_at_once() -> None:
    """Let this process end without Python's last searches for cycles among the objects of torch's and pandas' modules.

    They take a third of a second, which a user waits for, and find memory that goes with the process anyway. Triton's
    library counts what is left of its objects then, and prints pages of it: where it is loaded, the searches are made.
    """
    atexit.register(lambda: None if "triton._C.libtriton" in sys.modules else gc.freeze())


def hide_working_directory_from_children() -> None:
    """Let the processes that this one starts import from where it does, and not from the working directory first.

    A `blockshock.py` or `sweeps/` there would hide ours from ranks and jobs alone: the console script starts without
    the working directory on its path, and `python -m` and `python -c`, which start them, put it first.
    """
    if not {"", os.getcwd()} & set(sys.path):
        os.environ.setdefault("PYTHONSAFEPATH", "1")
