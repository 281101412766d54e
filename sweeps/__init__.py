"""Many jobs: launchers, and reports made from run folders alone.

from sweeps import load_runs
runs = load_runs(["outputs/sweeps/first_picture"])       # pandas.DataFrame, one row a record
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sweeps.report.records.load import load_runs

__all__ = ["load_runs"]


def __getattr__(name: str) -> Any:
    """pandas takes half a second to import, and a single run needs only the launchers' options."""
    if name != "load_runs":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sweeps.report.records.load import load_runs

    return load_runs
