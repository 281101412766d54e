"""What the device really did in a training step: kernels, copies, modules, and the Python stack, on one clock.

from profiler.traces import KernelDataCollector, ModuleProfile, StacktraceCollector, count_flops
from profiler.plots import plot_bottleneck_analysis

collector = KernelDataCollector(model)
with collector:
    for batch in batches:
        with collector.step():
            train_step(*batch)
profile = ModuleProfile(collector, flops=count_flops(model, lambda: train_step(*batch)))
profile.save("out")
plot_bottleneck_analysis(collector, path="out/bottlenecks.png")
"""

from profiler.traces.flop_count import FlopCount, count_flops
from profiler.traces.modules import ModuleProfile
from profiler.traces.recording.collector import KernelDataCollector
from profiler.traces.recording.cupti import finalize_cupti_kernels, setup_cupti_kernels
from profiler.traces.recording.memory_snapshot import memory_snapshot
from profiler.traces.recording.peak_rate import measure_peak_tflops
from profiler.traces.records import MEMCPY_KIND_STR, KernelLaunch, MemoryCopy, is_communication
from profiler.traces.stacks import StackFrame, StacktraceCollector
from profiler.traces.steps import read_steps, step_table

__all__ = [
    "MEMCPY_KIND_STR",
    "FlopCount",
    "KernelDataCollector",
    "KernelLaunch",
    "MemoryCopy",
    "ModuleProfile",
    "StackFrame",
    "StacktraceCollector",
    "count_flops",
    "finalize_cupti_kernels",
    "is_communication",
    "measure_peak_tflops",
    "memory_snapshot",
    "read_steps",
    "setup_cupti_kernels",
    "step_table",
]
