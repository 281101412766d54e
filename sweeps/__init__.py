"""Many jobs: launchers, and reports made from run folders alone.

from sweeps import load_runs
runs = load_runs(["outputs/sweeps/first_picture"])       # pandas.DataFrame, one row a record
"""

from sweeps.report.records.load import load_runs

__all__ = ["load_runs"]
