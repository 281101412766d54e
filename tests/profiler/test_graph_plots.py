"""Figures of a profile's nodes: each where it starts in the step, the longest by name."""

from __future__ import annotations

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from profiler.plots import (
    plot_activation_sizes,
    plot_inactive_times,
    plot_node_peak_memory,
    plot_node_runtime,
)

MS, MIB = 1e-3, 2**20


@pytest.fixture
def nodes() -> pd.DataFrame:
    """An input, three forward nodes of 1, 5 and 2 ms, and a backward node of 4 ms."""
    columns = ["rank", "node_name", "target", "region", "median_run_time_s", "median_peak_mem_bytes"]
    rows = [
        (0, "x", "placeholder", "input", 0.0, 0),
        (1, "mm", "aten.mm.default", "forward", 1 * MS, 10 * MIB),
        (2, "attention", "aten.sdpa.default", "forward", 5 * MS, 40 * MIB),
        (3, "mm_1", "aten.mm.default", "forward", 2 * MS, 20 * MIB),
        (4, "mm_2", "aten.mm.default", "backward", 4 * MS, 15 * MIB),
    ]
    return pd.DataFrame(rows, columns=columns).assign(median_active_mem_bytes=5 * MIB)


def test_a_node_is_drawn_from_its_start_for_as_long_as_it_takes(nodes):
    figure = plot_node_runtime(nodes)
    bars = sorted((bar.get_x(), bar.get_width(), bar.get_height()) for bar in figure.axes[0].patches)
    assert bars == [pytest.approx(bar) for bar in ((0, 1, 1), (1, 5, 5), (6, 2, 2), (8, 4, 4))]
    assert figure.axes[0].get_xlabel() == "time in the step, without gaps [ms]"
    assert figure.axes[0].get_xlim() == pytest.approx((0, 12))
    plt.close(figure)


def test_the_longest_nodes_are_named_and_the_title_says_which_operator_takes_most(nodes):
    figure = plot_node_runtime(nodes)
    named = {text.get_text() for text in figure.axes[0].texts}
    assert {"attention", "mm_2", "mm_1", "forward", "backward"} <= named
    assert "mm" not in named
    assert figure.get_suptitle() == "Run time of each node: mm takes 58% of the step"  # 7 of 12 ms
    plt.close(figure)


def test_the_peak_stands_at_the_time_when_its_node_starts(nodes):
    figure = plot_node_peak_memory(nodes)
    (mark,) = (line for line in figure.axes[0].lines if line.get_marker() == "v")
    assert (float(mark.get_xdata()[0]), float(mark.get_ydata()[0])) == (pytest.approx(1.0), pytest.approx(40.0))
    assert "in attention" in figure.get_suptitle()
    plt.close(figure)


@pytest.fixture
def activations() -> pd.DataFrame:
    """What the first and the second forward node make."""
    rows = [("act_mm", 1, 10 * MIB, 9 * MS, 1 * MS), ("act_attention", 2, 30 * MIB, 2 * MS, 5 * MS)]
    columns = ["activation_name", "creation_rank", "median_mem_size_bytes", "inactive_time_s", "recomp_time_s"]
    return pd.DataFrame(rows, columns=columns)


@pytest.mark.parametrize("plot", [plot_activation_sizes, plot_inactive_times])
def test_an_activation_stands_at_the_time_when_it_is_made_and_is_named(plot, activations, nodes):
    axes = plot(activations, nodes).axes[0]
    if plot is plot_activation_sizes:
        (dots,) = (line for line in axes.lines if line.get_marker() == ".")
        times = dots.get_xdata()
    else:
        times = axes.collections[0].get_offsets()[:, 0]
    assert [float(time) for time in times] == pytest.approx([0.0, 1.0])
    assert axes.get_xlabel() == "time in the step, without gaps [ms]"
    largest = "act_attention" if plot is plot_activation_sizes else "act_mm"
    assert largest in {text.get_text() for text in axes.texts}
    plt.close("all")
