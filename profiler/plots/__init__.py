"""Figures. Each function returns a matplotlib figure; those of `profiler.traces` also take a path to save it at.

`graph`, `activations`: the five figures of a graph profile. `kernels`, `stacks`, `layers`, `timeline`, `steps`: those
of a trace.
"""

from profiler.plots.activations import plot_activation_sizes, plot_inactive_times
from profiler.plots.graph import (
    STACK,
    device_limit,
    plot_all,
    plot_memory,
    plot_node_peak_memory,
    plot_node_runtime,
)
from profiler.plots.kernels import plot_bottleneck_analysis
from profiler.plots.layers import plot_layer_runtime_stats, plot_throughput_analysis
from profiler.plots.stacks import plot_stacktrace_with_kernels
from profiler.plots.steps import plot_step_breakdown
from profiler.plots.style import CATEGORY_COLOUR, REGION_COLOUR, byte_unit, style, time_unit
from profiler.plots.timeline import plot_timeline_memcpy_and_passes

__all__ = [
    "CATEGORY_COLOUR",
    "REGION_COLOUR",
    "STACK",
    "byte_unit",
    "device_limit",
    "plot_activation_sizes",
    "plot_all",
    "plot_bottleneck_analysis",
    "plot_inactive_times",
    "plot_layer_runtime_stats",
    "plot_memory",
    "plot_node_peak_memory",
    "plot_node_runtime",
    "plot_stacktrace_with_kernels",
    "plot_step_breakdown",
    "plot_throughput_analysis",
    "plot_timeline_memcpy_and_passes",
    "style",
    "time_unit",
]
