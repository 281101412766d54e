"""What an import costs and where names are found."""

import importlib
import subprocess
import sys

import pytest

HEAVY = ("matplotlib", "pandas", "seaborn", "transformers")


def test_importing_the_libraries_loads_no_plotting_no_tables_and_no_models() -> None:
    code = f"import sys, checkpointing, profiler; print([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_former_name_of_the_traces_says_where_they_are() -> None:
    from profiler import traces

    former = importlib.import_module("profiler.kernels")
    with pytest.warns(FutureWarning, match=r"profiler\.kernels is now profiler\.traces: import count_flops from there"):
        assert former.count_flops is traces.count_flops
