"""Where names are found."""

import importlib

import pytest


def test_the_former_name_of_the_traces_says_where_they_are() -> None:
    from profiler import traces

    former = importlib.import_module("profiler.kernels")
    with pytest.warns(FutureWarning, match=r"profiler\.kernels is now profiler\.traces: import count_flops from there"):
        assert former.count_flops is traces.count_flops
