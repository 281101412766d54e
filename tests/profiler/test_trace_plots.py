"""The six figures of a trace: what they show, that they scale by themselves, and that none is ever empty."""

import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from profiler.errors import EmptyTraceError, MismatchedTracesError, ProfilerError
from profiler.plots import (
    plot_bottleneck_analysis,
    plot_layer_runtime_stats,
    plot_stacktrace_with_kernels,
    plot_step_breakdown,
    plot_throughput_analysis,
    plot_timeline_memcpy_and_passes,
)
from profiler.plots.kernels import kernel_totals
from profiler.plots.style import in_nanoseconds, nanosecond_unit
from profiler.traces import (
    MEMCPY_KIND_STR,
    KernelDataCollector,
    MemoryCopy,
    ModuleProfile,
    StackFrame,
    StacktraceCollector,
    count_flops,
    read_steps,
)
from tests.profiler.gpu_trace import BASE, GEMM, NCCL, GpuTrace, two_steps

FLOPS = {(module, region): 10**10 for module in "ab" for region in ("forward", "backward")}


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture
def gpu(tmp_path: Path) -> ModuleProfile:
    collector = KernelDataCollector.from_chrome_trace(two_steps().write(tmp_path / "trace.json"))
    return ModuleProfile(collector, FLOPS, peak_tflops=790)


@pytest.fixture(scope="module")
def cpu() -> tuple[ModuleProfile, StacktraceCollector]:
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    x = torch.randn(32, 64)

    def step() -> None:
        model(x).sum().backward()

    step()
    collector, stacks = KernelDataCollector(model, "cpu"), StacktraceCollector()
    with collector:
        for _ in range(3):
            with stacks.tracing(), collector.step():
                step()
    return ModuleProfile(collector, count_flops(model, step), peak_tflops=0.05), stacks


def stack_over(start: int, end: int) -> StacktraceCollector:
    """A hand-made stack: main calls step, step calls forward and backward."""
    stacks, middle = StacktraceCollector(), (start + end) // 2
    for depth, (name, a, b) in enumerate([("main", start, end), ("step", start, end), ("forward", start, middle)]):
        stacks.frames.append(StackFrame(name, "train.py", 1, depth, a, b))
    stacks.frames.append(StackFrame("backward", "train.py", 9, 2, middle, end))
    return stacks


def text_of(figure: Figure) -> str:
    """All that is written on a figure."""
    return "\n".join(
        item.get_text()
        for item in figure.findobj(lambda artist: hasattr(artist, "get_text"))  # type: ignore[attr-defined]
    )


def test_bottlenecks_rank_kernels_by_their_time(gpu: ModuleProfile, tmp_path: Path) -> None:
    table = kernel_totals(gpu.collector)
    assert table.index[:2].tolist() == [GEMM, NCCL]
    assert table.loc[GEMM, ["total_ns", "count", "mean_ns"]].tolist() == [240_000, 12, 20_000]
    assert table["cumulative"].iloc[-1] == pytest.approx(1)
    figure = plot_bottleneck_analysis(gpu.collector, top_n=3, path=tmp_path / "new" / "x.png")
    assert [round(bar.get_width()) for bar in figure.axes[0].patches] == [240, 160, 120]  # µs
    text = text_of(figure)
    assert "[µs]" in text
    assert "44.8%  (Σ 44.8%)" in text
    assert "ncclDevKernel_AllReduce_Sum_bf16_RING_LL  2" in text
    assert "no GPU" not in text
    assert figure.axes[1].get_xscale() == figure.axes[1].get_yscale() == "log"
    assert (tmp_path / "new" / "x.png").stat().st_size > 10_000


def test_stack_and_kernels_share_one_axis(gpu: ModuleProfile, tmp_path: Path) -> None:
    stacks = stack_over(BASE, BASE + 1_400_000)
    figure = plot_stacktrace_with_kernels(stacks, gpu.collector, tmp_path / "x.png")
    above, below = figure.axes
    assert above.get_xlim() == below.get_xlim() == (0, 1300 - 22)  # µs, from the first kernel to the last one's end
    text = text_of(figure)
    assert {"forward", "backward"} <= set(text.split("\n"))
    assert "without the outermost 2 levels" in text  # main and step
    assert "GPU 0, stream 20" in text


def test_module_boxes_show_forward_and_backward_over_the_steps(gpu: ModuleProfile, tmp_path: Path) -> None:
    figure = plot_layer_runtime_stats(gpu, path=tmp_path / "x.png")
    axes, _ = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    medians = [line.get_xdata()[0] for line in axes.lines if line.get_color() == "black" and len(line.get_xdata()) == 2]
    assert medians == [20, 20, 40, 40]  # µs: forward of a and b, backward of a and b
    assert "2 modules; 2 steps of rank 0" in text_of(figure)


def test_kinds_of_modules_have_totals_of_all_their_modules(cpu: tuple[ModuleProfile, StacktraceCollector]) -> None:
    profile, _ = cpu
    _, axes = plot_layer_runtime_stats(profile).axes
    assert {label.get_text() for label in axes.get_yticklabels()} == {"Linear ×2", "ReLU ×1"}
    own = profile.table[profile.table["type"].isin(["Linear", "ReLU"])]
    own = own[own["region"].isin(["forward", "backward"])]
    expected = own.groupby("type")["device_self_ns"].sum().sort_values(ascending=False) / own["step"].nunique()
    reached: dict[float, float] = {}
    for bar in axes.patches:
        reached[bar.get_y()] = reached.get(bar.get_y(), 0.0) + bar.get_width()
    totals = [width for _, width in sorted(reached.items())]
    assert [total / totals[0] for total in totals] == pytest.approx(list(expected / expected.iloc[0]))
    assert totals == sorted(totals, reverse=True)


def test_throughput_has_the_devices_peak(gpu: ModuleProfile, tmp_path: Path) -> None:
    figure = plot_throughput_analysis(gpu, path=tmp_path / "x.png")
    assert "measured peak: 790 TFLOP/s" in text_of(figure)
    assert figure.axes[0].get_xlim()[1] > 790
    gpu.peak_tflops = None
    assert "the device's peak is not given" in text_of(plot_throughput_analysis(gpu))


def test_copies_and_passes_share_one_axis(gpu: ModuleProfile, tmp_path: Path) -> None:
    names = {**MEMCPY_KIND_STR, 2: "back home"}
    figure = plot_timeline_memcpy_and_passes(gpu.collector.copies, gpu, names, tmp_path / "x.png")
    total, flight, passes = figure.axes
    assert total.get_xlim() == flight.get_xlim() == passes.get_xlim() == (0, 1400)
    text = text_of(figure)
    assert "host to device: 2×, 8.0 KiB" in text
    assert "back home: 2×, 8 B" in text
    assert [tick.get_text() for tick in passes.get_yticklabels()] == [
        "forward",
        "backward",
        "optimizer",
        "communication",
    ]
    assert "168 µs" in text  # 2 × 84 of backward
    heights = total.lines[0].get_ydata()
    assert list(heights) == [0, 4, 8, 8]  # KiB
    one = plot_timeline_memcpy_and_passes(gpu.collector.copies[0], gpu, MEMCPY_KIND_STR)
    assert "host to device: 1×, 4.0 KiB" in text_of(one)
    unnamed = plot_timeline_memcpy_and_passes(gpu.collector.copies[0], gpu, {})
    assert "kind 1: 1×" in text_of(unnamed)


def test_a_step_breakdown_has_every_rank(gpu: ModuleProfile, tmp_path: Path) -> None:
    for rank in (1, 0):
        gpu.collector.rank = rank
        ModuleProfile(gpu.collector).save(tmp_path, world_size=2)
    tables = read_steps(tmp_path)
    assert [int(table["rank"].iloc[0]) for table in tables] == [0, 1]
    figure = plot_step_breakdown(tables, tmp_path / "x.png")
    text = text_of(figure)
    assert "rank 1, step 1" in text
    assert "exposed communication (10.0%)" in text
    assert "50% of the communication is hidden" in text
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert sum(widths) == pytest.approx(4 * 400)


def test_figures_of_a_cpu_say_so(cpu: tuple[ModuleProfile, StacktraceCollector]) -> None:
    profile, stacks = cpu
    figures = [
        plot_bottleneck_analysis(profile.collector),
        plot_stacktrace_with_kernels(stacks, profile.collector),
        plot_layer_runtime_stats(profile),
        plot_throughput_analysis(profile),
        plot_timeline_memcpy_and_passes(
            MemoryCopy(profile.collector.kernels[0].start, profile.collector.kernels[0].end, 64, 9),
            profile,
            MEMCPY_KIND_STR,
        ),
        plot_step_breakdown([profile]),
    ]
    assert all("no GPU: operators of the CPU in place of kernels" in text_of(figure) for figure in figures)
    assert "step" in text_of(figures[1])


@pytest.mark.parametrize(
    ("largest", "unit"), [(1, "ns"), (1_999, "ns"), (2_000, "µs"), (1_900_000, "µs"), (2e6, "ms"), (3e9, "s")]
)
def test_units_suit_the_largest_value(largest: float, unit: str) -> None:
    assert nanosecond_unit(largest)[1] == unit


def test_durations_in_words() -> None:
    assert [in_nanoseconds(x) for x in (7, 1_000, 12_345, 1e6, 2.5e9)] == ["7 ns", "1 µs", "12.3 µs", "1 ms", "2.5 s"]


def no_kernels() -> KernelDataCollector:
    return KernelDataCollector(device="cpu")


REFUSED: dict[str, tuple[Callable[[ModuleProfile], object], type[ProfilerError], str]] = {
    "bottlenecks of nothing": (
        lambda gpu: plot_bottleneck_analysis(no_kernels()),
        EmptyTraceError,
        "kernel_collector is empty",
    ),
    "no bars": (lambda gpu: plot_bottleneck_analysis(gpu.collector, top_n=0), ProfilerError, "top_n=0"),
    "no stack": (
        lambda gpu: plot_stacktrace_with_kernels(StacktraceCollector(), gpu.collector),
        EmptyTraceError,
        "stacktrace_collector is empty",
    ),
    "a stack and no kernels": (
        lambda gpu: plot_stacktrace_with_kernels(stack_over(0, 10), no_kernels()),
        EmptyTraceError,
        "kernel_collector is empty",
    ),
    "a stack of another run": (
        lambda gpu: plot_stacktrace_with_kernels(stack_over(BASE + 10**10, BASE + 2 * 10**10), gpu.collector),
        MismatchedTracesError,
        "stacktrace_collector and kernel_collector are of different runs",
    ),
    "no FLOPs": (
        lambda gpu: plot_throughput_analysis(ModuleProfile(gpu.collector)),
        EmptyTraceError,
        "profile has no FLOPs",
    ),
    "no copies": (
        lambda gpu: plot_timeline_memcpy_and_passes([], gpu, MEMCPY_KIND_STR),
        EmptyTraceError,
        "memcpy_info is empty",
    ),
    "copies of another run": (
        lambda gpu: plot_timeline_memcpy_and_passes(MemoryCopy(5, 9, 64, 1), gpu, MEMCPY_KIND_STR),
        MismatchedTracesError,
        "memcpy_info and profile are of different runs",
    ),
    "no profiles": (lambda gpu: plot_step_breakdown([]), EmptyTraceError, "profiles is empty"),
    "one rank twice": (lambda gpu: plot_step_breakdown([gpu, gpu]), MismatchedTracesError, r"ranks \[0, 0\]"),
    "another day's ranks": (
        lambda gpu: plot_step_breakdown(
            [
                gpu,
                gpu.steps.assign(rank=1, start_ns=gpu.steps["start_ns"] + 10**14, end_ns=gpu.steps["end_ns"] + 10**14),
            ]
        ),
        MismatchedTracesError,
        "100000 s lie between the ranks' steps",
    ),
    "unequal steps": (
        lambda gpu: plot_step_breakdown([gpu, gpu.steps.iloc[:1].assign(rank=1)]),
        MismatchedTracesError,
        r"steps by rank are \{0: 2, 1: 1\}",
    ),
    "an empty table": (lambda gpu: plot_step_breakdown([pd.DataFrame()]), EmptyTraceError, "profiles is empty"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_an_empty_or_mismatched_collector_is_an_error_that_says_which(case: str, gpu: ModuleProfile) -> None:
    draw, error, message = REFUSED[case]
    before = plt.get_fignums()
    with pytest.raises(error, match=message):
        draw(gpu)
    assert plt.get_fignums() == before  # and no empty picture is left behind


def test_a_profile_without_modules_is_refused(tmp_path: Path) -> None:
    trace = GpuTrace()
    trace.host("profiler.step", 0, 10)
    trace.host("aten::mm", 1, 9)
    trace.launch("kernel", 2, 4, 8)
    profile = ModuleProfile(KernelDataCollector.from_chrome_trace(trace.write(tmp_path / "trace.json")))
    for draw in (plot_layer_runtime_stats, plot_throughput_analysis):
        with pytest.raises(EmptyTraceError, match="profile has no modules"):
            draw(profile)


def test_a_missing_folder_of_steps_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmptyTraceError, match=str(tmp_path)):
        read_steps(tmp_path)


def test_markers_refine_the_boxes() -> None:
    w = torch.randn(32, 32, requires_grad=True)
    collector = KernelDataCollector(device="cpu")
    with collector:
        for _ in range(2):
            with collector.step():
                with torch.profiler.record_function("attention"):
                    y = torch.sigmoid(w @ w)
                y.sum().backward()
                time.sleep(0.001)
    figure = plot_layer_runtime_stats(ModuleProfile(collector), forward_markers=["attention"])
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["attention"]
