"""A hand-made GPU trace: who launched what, whose backward it is, and where the step's time went."""

from pathlib import Path

import pytest

from profiler.errors import EmptyTraceError, ProfilerError
from profiler.traces import KernelDataCollector, ModuleProfile
from profiler.traces.kernel_names import demangled, short_name, short_names
from profiler.traces.read_trace import read_trace
from profiler.traces.records import MEMCPY_KIND_STR, MEMSET, is_communication, memcpy_kind
from tests.profiler.gpu_trace import ADAM, BASE, ELEMENTWISE, ENGINE, GEMM, NCCL, GpuTrace, two_steps


@pytest.fixture
def collector(tmp_path: Path) -> KernelDataCollector:
    return KernelDataCollector.from_chrome_trace(two_steps().write(tmp_path / "trace.json"))


def test_kernels_have_operator_module_and_pass(collector: KernelDataCollector) -> None:
    found = [(k.module, k.region, k.operator, k.step) for k in collector.kernels if k.name == GEMM]
    step = [
        ("a", "forward", "aten::addmm"),
        ("b", "forward", "aten::addmm"),
        ("b", "backward", "aten::mm"),
        ("b", "backward", "aten::mm"),
        ("a", "backward", "aten::mm"),
        ("a", "backward", "aten::mm"),
    ]
    assert found == [(*kernel, number) for number in (0, 1) for kernel in step]
    first = collector.kernels[0]
    assert (first.grid, first.device, first.stream, first.start - BASE) == ((8, 4, 1), 0, 7, 22_000)


def test_loss_optimizer_and_reductions_have_their_place(collector: KernelDataCollector) -> None:
    elementwise = [(k.module, k.region, k.operator) for k in collector.kernels if k.name == ELEMENTWISE][:2]
    assert elementwise == [("(outside)", "forward", "aten::mse_loss"), ("(outside)", "backward", "aten::mul")]
    (adam, _) = (k for k in collector.kernels if k.name == ADAM)
    assert (adam.module, adam.region) == ("(optimizer)", "optimizer")
    (nccl, _) = (k for k in collector.kernels if k.name == NCCL)
    assert (nccl.communication, nccl.module, nccl.operator, nccl.stream) == (True, "b", "c10d::allreduce_", 20)
    assert [k.name for k in collector.kernels if k.communication] == [NCCL] * 2


def test_a_step_is_partitioned_as_computed_by_hand(collector: KernelDataCollector) -> None:
    steps = ModuleProfile(collector).steps
    expected = {
        "step_ns": 400_000,
        "compute_ns": 188_000,  # 2 × 20 forward, 4 loss, 4 its backward, 4 × 20 backward, 60 optimizer
        "communication_ns": 80_000,
        "overlapped_communication_ns": 40_000,  # with a's backward, 140 to 180
        "exposed_communication_ns": 40_000,
        "exposed_copies_ns": 30_000,
        "idle_ns": 142_000,
        "forward_ns": 54_000,  # the input's copy included
        "backward_ns": 84_000,
        "optimizer_ns": 60_000,
        "other_ns": 20_000,  # the copy back
    }
    for step in (0, 1):
        assert steps.loc[step, list(expected)].to_dict() == expected
    work = steps[["forward_ns", "backward_ns", "optimizer_ns", "other_ns"]].sum(axis=1)
    assert (work + steps["exposed_communication_ns"] + steps["idle_ns"] == steps["step_ns"]).all()


def test_module_totals_and_throughput(collector: KernelDataCollector) -> None:
    flops = {("a", "forward"): 10**10, ("b", "backward"): 2 * 10**10}
    table = ModuleProfile(collector, flops).table.set_index(["step", "module", "region"])
    assert table.loc[(0, "a", "forward"), "tflops_self"] == pytest.approx(500)  # 1e10 in 20 µs
    assert table.loc[(1, "b", "backward"), "tflops_self"] == pytest.approx(500)
    assert table.loc[(0, "(model)", "backward"), "device_total_ns"] == 80_000
    assert table.loc[(0, "(model)", "backward"), "device_self_ns"] == 0
    assert table.loc[(0, "b", "backward"), "communication_self_ns"] == 80_000
    assert table.loc[(0, "(model)", "forward"), "wall_total_ns"] == 50_000
    assert table.loc[(0, "(model)", "forward"), "wall_self_ns"] == 14_000  # less 2 × 18


def test_what_has_an_owner(collector: KernelDataCollector) -> None:
    profile = ModuleProfile(collector)
    assert profile.attributed == pytest.approx(278 / 298)  # all but the copy back


def test_kernels_of_a_graph_replay_go_where_it_was_launched(tmp_path: Path) -> None:
    trace = two_steps()
    trace.host("aten::zeros", 410, 420)  # between the steps
    trace.host("cudaGraphLaunch", 24, 25, kind="cuda_runtime", correlation=999)  # in a's forward
    for place in range(3):
        trace.on_device("replayed", 330 + 10 * place, 338 + 10 * place, correlation=999)
    collector = KernelDataCollector.from_chrome_trace(trace.write(tmp_path / "trace.json"))
    replayed = [k for k in collector.kernels if k.name == "replayed"]
    assert {(k.module, k.region, k.step, k.correlation) for k in replayed} == {("a", "forward", 0, 999)}


def test_a_kernel_without_a_launch_is_nobodys(tmp_path: Path) -> None:
    trace = two_steps()
    trace.on_device("stray", 350, 360, correlation=12345)
    collector = KernelDataCollector.from_chrome_trace(trace.write(tmp_path / "trace.json"))
    (stray,) = (k for k in collector.kernels if k.name == "stray")
    assert (stray.module, stray.operator, stray.step) == ("", "", 0)
    assert ModuleProfile(collector).attributed < 278 / 298
    assert "(unknown)" in set(ModuleProfile(collector).table["module"])


def test_what_ddp_does_after_the_last_node_is_backward(tmp_path: Path) -> None:
    trace = two_steps()
    trace.host("aten::copy_", 145, 150, ENGINE)
    trace.launch("bucket_to_gradient", 147, 216, 219, ENGINE)
    collector = KernelDataCollector.from_chrome_trace(trace.write(tmp_path / "trace.json"))
    (kernel,) = (k for k in collector.kernels if k.name == "bucket_to_gradient")
    assert (kernel.module, kernel.region, kernel.operator) == ("(outside)", "backward", "aten::copy_")


def test_steps_that_the_host_leaves_early_end_with_their_last_kernel(tmp_path: Path) -> None:
    trace = GpuTrace()
    for step, (entered, start, end) in enumerate([(0, 50, 150), (20, 150, 260)]):  # the host is a step ahead
        trace.host("profiler.step", entered, entered + 15)
        trace.host("aten::mm", entered + 2, entered + 8)
        trace.launch(f"kernel {step}", entered + 4, start, end)
    steps = ModuleProfile(KernelDataCollector.from_chrome_trace(trace.write(tmp_path / "trace.json"))).steps
    assert steps["step_ns"].tolist() == [150_000, 110_000]
    assert steps["idle_ns"].tolist() == [50_000, 0]


def test_times_are_read_without_rounding(tmp_path: Path) -> None:
    trace = GpuTrace()
    trace.launch("kernel", 7_800_000_000_000.001, 7_800_000_000_001.0, 7_800_000_000_002.0)
    path = trace.write(tmp_path / "trace.json")
    text = path.read_text().replace('"ts": 7800000000001.0', '"ts": 7800000000001.007')
    path.write_text(text.replace('"dur": 1.0, "args": {"device"', '"dur": 0.999, "args": {"device"'))
    (kernel,) = read_trace(path).kernels
    assert (kernel.start, kernel.end) == (BASE + 7_800_000_000_001_007, BASE + 7_800_000_000_002_006)


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(ProfilerError, match="no list traceEvents"):
        read_trace(tmp_path / "x.json")


def test_a_trace_without_steps_has_no_profile(tmp_path: Path) -> None:
    trace = GpuTrace()
    trace.launch("kernel", 0, 1, 2)
    collector = KernelDataCollector.from_chrome_trace(trace.write(tmp_path / "trace.json"))
    with pytest.raises(EmptyTraceError, match="the profile has no steps"):
        ModuleProfile(collector)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("Memcpy HtoD (Pinned -> Device)", "host to device"),
        ("Memcpy DtoH (Device -> Pageable)", "device to host"),
        ("Memcpy DtoD (Device -> Device)", "device to device"),
        ("Memcpy PtoP (Device -> Device)", "peer to peer"),
        ("Memset (Device)", "memset"),
        ("Memcpy of another world", "unknown"),
    ],
)
def test_kinds_of_copies(name: str, kind: str) -> None:
    assert MEMCPY_KIND_STR[memcpy_kind(name)] == kind
    assert memcpy_kind("Memset (Device)") == MEMSET


@pytest.mark.parametrize(
    ("name", "communicates"),
    [
        (NCCL, True),
        ("ncclKernel_AllReduce_RING_LL_Sum_float(ncclWorkElem)", True),
        ("void two_shot_all_reduce_kernel_inplace<4, 16>(unsigned int**)", True),
        ("c10d::allreduce_", True),
        ("gloo:all_reduce", True),
        (GEMM, False),
        ("void at::native::reduce_kernel<512, 1>(…)", False),
        ("aten::all", False),
    ],
)
def test_communication_is_recognised(name: str, communicates: bool) -> None:
    assert is_communication(name) is communicates


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (ELEMENTWISE, "vectorized_elementwise_kernel<CUDAFunctor_add>"),
        (NCCL, "ncclDevKernel_AllReduce_Sum_bf16_RING_LL"),
        (GEMM, GEMM),
        ("aten::addmm", "addmm"),
        ("_ZN2at6native6kernelIfEEvT_", "kernel"),
        ("triton_poi_fused_add_relu_0", "triton_poi_fused_add_relu_0"),
    ],
)
def test_short_names(name: str, short: str) -> None:
    assert short_name(name, limit=60) == short


def test_short_names_stay_short_and_different() -> None:
    long = [
        f"sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64_warp{n}_execute_kernel__5x_cublas" for n in "ab"
    ]
    names = short_names([*long, "void f<float>(float)", "void f<int>(int)"])
    assert all(len(name) <= 49 for name in names.values())
    assert len(set(names.values())) == 4


def test_mangled_names_become_readable() -> None:
    assert demangled("_ZN2at6native6kernelIfEEvT_") == "void at::native::kernel<float>(float)"
