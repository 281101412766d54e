"""Real traces of torch.profiler on the CPU: attribution, the modules' own backward, FLOPs, steps, files."""

import json
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from profiler import trace_train_step
from profiler.errors import EmptyTraceError, ProfilerError, StaleStepError
from profiler.models import NAMES, build
from profiler.traces import KernelDataCollector, ModuleProfile, StacktraceCollector, count_flops
from profiler.traces.graph_steps import graph_flops, labelled

TINY = [name for name in NAMES if name.startswith("tiny_")]


class Applies(nn.Module):
    """A module that applies one function, whose gradient has an operator of its own name."""

    def __init__(self, function: str) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = getattr(torch, self.function)(x)
        return result


class Mixed(nn.Module):
    """Modules that run in another order than they are declared, one of them twice, with a branch without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.second = Applies("sigmoid")
        self.first = Applies("tanh")
        self.inner = nn.Sequential(nn.Linear(8, 8), Applies("relu"))
        self.no_gradient = nn.Softmax(dim=1)

    def forward(self, x: torch.Tensor, constant: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        weight = self.no_gradient(constant)  # carries the number of the node that the next operator makes
        x = self.second(self.inner(x)) * weight
        return self.first(x)


def traced(model: nn.Module, step, steps: int = 2) -> ModuleProfile:
    collector = KernelDataCollector(model, "cpu")
    with collector:
        for _ in range(steps):
            with collector.step():
                step()
    return ModuleProfile(collector)


@pytest.fixture(scope="module")
def mixed() -> ModuleProfile:
    torch.manual_seed(0)
    model = Mixed()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, constant = torch.randn(4, 8), torch.randn(4, 8)

    def step() -> None:
        optimizer.zero_grad()
        model(x.clone().requires_grad_(), constant).square().mean().backward()
        optimizer.step()

    step()
    return traced(model, step)


def where(profile: ModuleProfile, name: str, step: int = 0) -> list[tuple[str, str]]:
    return [(k.module, k.region) for k in profile.collector.kernels if k.name == name and k.step == step]


@pytest.mark.parametrize("step", [0, 1])
def test_every_module_gets_its_own_backward(mixed: ModuleProfile, step: int) -> None:
    assert where(mixed, "aten::tanh", step) == [("first", "forward")] * 2
    assert where(mixed, "aten::tanh_backward", step) == [("first", "backward")] * 2
    assert where(mixed, "aten::sigmoid_backward", step) == [("second", "backward")]
    assert where(mixed, "aten::threshold_backward", step) == [("inner.1", "backward")]
    assert where(mixed, "aten::linear", step) == [("inner.0", "forward")]
    assert where(mixed, "aten::mm", step) == [("inner.0", "backward")] * 2
    assert where(mixed, "aten::softmax", step) == [("no_gradient", "forward")]
    assert not [k for k in mixed.collector.kernels if k.module == "no_gradient" and k.region == "backward"]


def test_loss_and_optimizer_are_told_apart_from_modules(mixed: ModuleProfile) -> None:
    assert ("(outside)", "forward") in where(mixed, "aten::mean")
    assert ("(model)", "forward") in where(mixed, "aten::mul")  # the product with the weight
    assert set(where(mixed, "aten::add_")) == {("(optimizer)", "optimizer")}
    assert mixed.attributed > 0.99


def test_totals_are_the_sums_of_the_parts(mixed: ModuleProfile) -> None:
    table = mixed.table
    for (_, region), rows in table.groupby(["step", "region"]):
        rows = rows.set_index("module")
        for quantity in ("device", "wall", "communication"):
            own, total = rows[f"{quantity}_self_ns"], rows[f"{quantity}_total_ns"]
            inside = [name for name in rows.index if not name.startswith("(")]
            if "(model)" in rows.index:
                assert total["(model)"] == own[inside].sum() + own["(model)"]
            if "inner" in rows.index and region in ("forward", "backward"):
                assert total["inner"] == own[[n for n in inside if n.startswith("inner")]].sum()
    kernels = [k for k in mixed.collector.kernels if k.step == 0]
    assert table[table["step"] == 0]["device_self_ns"].sum() == sum(k.end - k.start for k in kernels)
    assert table[table["step"] == 0]["kernels"].sum() == len(kernels)


def test_a_steps_time_is_partitioned(mixed: ModuleProfile) -> None:
    steps = mixed.steps
    parts = steps[["forward_ns", "backward_ns", "optimizer_ns", "other_ns", "exposed_communication_ns", "idle_ns"]]
    assert (parts.sum(axis=1) == steps["step_ns"]).all()
    assert (parts >= 0).all().all()
    assert (steps[["forward_ns", "backward_ns", "optimizer_ns"]] > 0).all().all()


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_forward_that_runs_again_is_backward(reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), Applies("sigmoid"))
    x = torch.randn(4, 8, requires_grad=True)
    profile = traced(model, lambda: checkpoint(model[1], model[0](x), use_reentrant=reentrant).sum().backward(), 1)
    assert where(profile, "aten::sigmoid") == [("1", "forward"), ("1", "backward")]
    assert where(profile, "aten::sigmoid_backward") == [("1", "backward")]
    assert where(profile, "aten::mm") == [("0", "backward")] * len(where(profile, "aten::mm"))


def test_ranges_of_code_without_modules_can_stand_for_modules() -> None:
    w, v = (torch.randn(8, 8, requires_grad=True) for _ in range(2))
    x = torch.randn(4, 8)

    def step() -> None:
        with torch.profiler.record_function("attention"):
            y = torch.sigmoid(x @ w)
        with torch.profiler.record_function("mlp"):
            z = torch.tanh(y @ v)
        z.sum().backward()

    collector = KernelDataCollector(device="cpu")
    with collector, collector.step():
        step()
    profile = ModuleProfile(collector)
    marked = profile.with_markers(["attention", "mlp"])
    assert where(marked, "aten::sigmoid_backward") == [("attention", "backward")]
    assert where(marked, "aten::tanh_backward") == [("mlp", "backward")]
    assert where(profile, "aten::tanh_backward") == [("(outside)", "backward")]  # the first one is as it was
    with pytest.raises(ProfilerError, match=r"no range 'mpl' in this trace .*attention, mlp"):
        profile.with_markers(["mpl"])


@pytest.mark.parametrize("name", TINY)
def test_flops_by_module_add_up_to_pytorchs_count(name: str) -> None:
    problem = build(name)

    def step() -> None:
        problem.loss_fn(problem.model, *problem.batch).backward()

    ours = count_flops(problem.model, step)
    attention = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    lacking = {  # PyTorch counts attention on a GPU alone
        attention: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        backward: lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v),
    }
    if name != "tiny_llama":  # before torch 2.13 PyTorch's own formula rejects grouped queries
        with FlopCounterMode(display=False, custom_mapping=lacking) as theirs:
            step()
        assert sum(ours.values()) == theirs.get_total_flops()
    assert ours == graph_flops(
        trace_train_step(
            problem.model, problem.loss_fn, torch.optim.SGD(problem.model.parameters(), lr=0.1), problem.batch
        )
    )


def test_flops_of_a_linear_layer_by_hand() -> None:
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    x = torch.randn(4, 16)
    counts = count_flops(model, lambda: model(x).sum().backward())
    assert counts == {
        ("0", "forward"): 2 * 4 * 16 * 32,
        ("0", "backward"): 2 * 4 * 16 * 32,  # the weight's gradient alone: x needs none
        ("2", "forward"): 2 * 4 * 32 * 8,
        ("2", "backward"): 2 * 2 * 4 * 32 * 8,
    }


@pytest.mark.parametrize("reentrant", [False, True])
def test_flops_of_a_forward_that_runs_again_are_backward(reentrant: bool) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8))
    x = torch.randn(4, 8)

    def step() -> None:
        with set_checkpoint_early_stop(False):  # else it stops before the product, which no gradient needs
            model[2](checkpoint(model[1], model[0](x), use_reentrant=reentrant)).sum().backward()

    product = 2 * 4 * 8 * 8
    assert count_flops(model, step) == {
        **{(name, "forward"): product for name in "012"},
        ("0", "backward"): product,  # x needs no gradient
        ("1", "backward"): 3 * product,  # the forward again, both gradients
        ("2", "backward"): 2 * product,
    }


def test_an_operator_without_a_formula_can_be_given_one() -> None:
    model = Applies("sigmoid")
    formulas = {torch.ops.aten.sigmoid: lambda x, out_val: 7 * x.numel()}
    assert count_flops(model, lambda: model(torch.randn(3)), formulas) == {("(model)", "forward"): 21}


def test_a_labelled_graph_trains_as_the_step_and_names_the_modules() -> None:
    losses = []
    for mark in (False, True):
        problem = build("tiny_resnet152")
        step = trace_train_step(
            problem.model, problem.loss_fn, torch.optim.SGD(problem.model.parameters(), lr=0.1), problem.batch
        )
        run = labelled(step) if mark else step
        losses.append([float(run(*problem.batch)) for _ in range(3)])
    assert losses[0] == losses[1]
    assert step.steps_run == 3
    profile = traced(problem.model, lambda: run(*problem.batch))
    assert profile.attributed > 0.99
    convolutions = {name for name, module in problem.model.named_modules() if isinstance(module, nn.Conv2d)}
    kernels = [k for k in profile.collector.kernels if k.step == 0]
    assert {k.module for k in kernels if k.name == "aten::convolution"} == convolutions
    backward = {k.module for k in kernels if k.name == "aten::convolution_backward" and k.region == "backward"}
    assert backward == convolutions


def test_copies_on_the_cpu_have_bytes() -> None:
    source, target = torch.randn(64, 32), torch.empty(64, 32)
    collector = KernelDataCollector(device="cpu")
    with collector, collector.step():
        target.copy_(source)
    (copy,) = collector.copies
    assert (copy.bytes, copy.kind, copy.step) == (64 * 32 * 4, 9, 0)


def test_stack_and_operators_share_a_clock() -> None:
    def sleepy_sigmoid() -> None:
        time.sleep(0.03)
        torch.sigmoid(torch.ones(8))
        time.sleep(0.03)

    def sleepy_tanh() -> None:
        until_seen()
        torch.tanh(torch.ones(8))
        until_seen()

    def until_seen() -> None:
        """One look may have begun before; the second sees who waits here."""
        looks = sampled.samples + 2
        while sampled.samples < looks:
            time.sleep(0.001)

    collector, exact, sampled = KernelDataCollector(device="cpu"), StacktraceCollector(), StacktraceCollector()
    with collector:
        with exact.tracing():
            sleepy_sigmoid()
        with sampled:
            sleepy_tanh()
    for stacks, operator, function in (
        (exact, "aten::sigmoid", "sleepy_sigmoid"),
        (sampled, "aten::tanh", "sleepy_tanh"),
    ):
        (kernel,) = (k for k in collector.kernels if k.name == operator)
        (frame,) = (f for f in stacks.require_frames() if f.name.endswith(function))
        assert frame.start <= kernel.start <= kernel.end <= frame.end
        assert frame.file == __file__


def test_the_profilers_own_stack() -> None:
    def outer() -> None:
        inner()

    def inner() -> None:
        torch.sigmoid(torch.ones(8))

    collector = KernelDataCollector(device="cpu", with_stack=True)
    with collector:
        outer()
    stacks = StacktraceCollector.from_kernels(collector)
    frames = {frame.name: frame for frame in stacks.require_frames()}
    assert frames["inner"].depth == frames["outer"].depth + 1
    (kernel,) = (k for k in collector.kernels if k.name == "aten::sigmoid")
    assert frames["outer"].start <= frames["inner"].start <= kernel.start <= kernel.end <= frames["inner"].end
    with pytest.raises(ProfilerError, match="with_stack=True"):
        StacktraceCollector.from_kernels(KernelDataCollector(device="cpu"))


def test_files_say_what_the_collector_holds(mixed: ModuleProfile, tmp_path: Path) -> None:
    mixed.save(tmp_path)
    kernels = pd.read_csv(tmp_path / "kernels.csv")
    assert (kernels["duration_ns"] == kernels["end_ns"] - kernels["start_ns"]).all()
    assert kernels["start_ns"].tolist() == [k.start for k in mixed.collector.kernels]  # to the nanosecond
    modules = pd.read_csv(tmp_path / "modules.csv")
    assert modules.columns.tolist() == mixed.table.columns.tolist()
    assert len(modules) == len(mixed.table)
    assert pd.read_csv(tmp_path / "memcpy.csv")["bytes"].sum() == sum(copy.bytes for copy in mixed.collector.copies)
    again = KernelDataCollector.from_chrome_trace(tmp_path / "trace.json", on_cpu=True)
    assert again.kernels == mixed.collector.kernels
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    mixed.save(tmp_path, world_size=2)
    assert (tmp_path / "kernels.rank0.csv").exists()


def test_what_a_collector_refuses() -> None:
    collector = KernelDataCollector(device="cpu")
    with pytest.raises(ProfilerError, match="inside `with collector:`"), collector.step():
        pass
    with pytest.raises(EmptyTraceError, match="kernel_collector is empty: no operator ran"):
        collector.require_kernels()
    with collector:
        torch.ones(1)
    with pytest.raises(ProfilerError, match="has been used"), collector:
        pass
    with pytest.raises(ProfilerError, match="backend='nsight': use one of kineto, cupti"):
        KernelDataCollector(backend="nsight")
    with pytest.raises(ProfilerError, match="CUPTI sees no Python"):
        KernelDataCollector(backend="cupti", with_stack=True)
    with pytest.raises(ProfilerError, match="must be positive"):
        StacktraceCollector(interval_s=0)


def test_a_collector_that_marks_the_model_leaves_its_traced_step_up_to_date() -> None:
    net, batch = nn.Linear(6, 3), (torch.randn(4, 6),)
    step = trace_train_step(net, lambda m, x: m(x).square().mean(), torch.optim.SGD(net.parameters(), lr=0.1), batch)
    collector = KernelDataCollector(net, device="cpu")
    with collector, collector.step():
        step(*batch)
    assert collector.kernels
    net.register_forward_hook(lambda *_: None)
    with pytest.raises(StaleStepError, match="a hook of module"):
        step(*batch)
