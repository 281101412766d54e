"""What a profile measures, derives, writes and checks."""

import json
import time
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib import image
from torch import nn

from profiler import GraphProfiler, MissingStatsError, Region, sign_off_table, trace_train_step
from profiler.batch_analysis import plot_batches, read_batches
from profiler.costs.memory import CATEGORIES
from profiler.costs.profile import run_nodes
from profiler.costs.stats import ACTIVATION_STATS, MEMORY_CURVE, NODE_STATS, read_csv
from profiler.graph_profiler import CHROME_TRACE, SUMMARY
from profiler.models import build
from tests.profiler.conftest import profiled, traced
from tests.profiler.eager_steps import LiveBytes

NODE_COLUMNS = (
    "rank,node_name,target,node_type,region,module,median_run_time_s,median_peak_mem_bytes,"
    "median_active_mem_bytes,output_bytes,workspace_bytes,flops,device"
)
ACTIVATION_COLUMNS = (
    "activation_name,node_type,creation_rank,last_fw_use_rank,first_bw_use_rank,last_bw_use_rank,"
    "median_mem_size_bytes,inactive_time_s,recomp_time_s,recomp_memory_bytes"
)
FIGURES = [
    "node_runtime",
    "node_peak_memory",
    "activation_memory_size",
    "activation_inactive_time",
    "memory_vs_rank",
]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[GraphProfiler, Path]:
    _, profiler = profiled("tiny_bert")
    folder = tmp_path_factory.mktemp("profile")
    profiler.save_stats_to_csv(folder)
    profiler.plot(folder)
    return profiler, folder


def test_profiled_execution_frees_values_as_the_plain_step_does(tiny: str) -> None:
    problem, step = traced(tiny)
    users = [*step.model.parameters(), *step.model.buffers(), *problem.batch]
    plain, by_node = LiveBytes(users), LiveBytes(users)
    with plain:
        step(*problem.batch)
    with by_node:
        run_nodes(step, problem.batch, lambda _rank, function, args, kwargs: function(*args, **kwargs))
    assert by_node.counts == plain.counts


def test_profiling_trains_the_model_as_the_plain_step_does() -> None:
    problem, step = traced("tiny_vit")
    twin = build("tiny_vit")
    twin.model.load_state_dict(problem.model.state_dict())
    twin_optimizer = torch.optim.Adam(twin.model.parameters(), lr=1e-3, amsgrad=True)
    twin_optimizer.load_state_dict(deepcopy(step.optimizer.state_dict()))
    twin_step = trace_train_step(twin.model, twin.loss_fn, twin_optimizer, twin.batch)
    profiler = GraphProfiler(step)
    profiler.run(*problem.batch, warmup_iters=2, profile_iters=1)
    for _ in range(2 + 3):  # warm-up; on the clock, node by node for time, and for memory
        twin_step(*twin.batch)
    for mine, theirs in zip(problem.model.parameters(), twin.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@torch.library.custom_op("profiler_tests::nap", mutates_args=())
def nap(x: torch.Tensor) -> torch.Tensor:
    time.sleep(0.1)
    return x.clone()


nap.register_fake(torch.empty_like)
nap.register_autograd(lambda _ctx, gradient: gradient)


def test_a_slow_operator_takes_its_time_and_keeps_activations_waiting() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8))
    batch = (torch.randn(4, 8),)
    step = trace_train_step(
        model, lambda m, x: nap(m(x)).square().mean(), torch.optim.SGD(model.parameters(), lr=0.1), batch
    )
    profiler = GraphProfiler(step)
    profiler.run(*batch)
    nodes = profiler.node_stats().set_index("target")["median_run_time_s"]
    assert nodes["profiler_tests.nap.default"] >= 0.1
    assert profiler.profile.step_time_s >= 0.1
    assert nodes.drop("profiler_tests.nap.default").max() < 0.1
    idle = profiler.activation_stats().set_index("activation_name")["inactive_time_s"]
    assert idle["tanh"] >= 0.1  # made before the nap, used again after it
    assert idle["nap"] < 0.02  # made by it
    assert (profiler.profile.run_time_s[profiler.measured_ranks] > 0).all()


def test_workspace_is_what_an_operator_allocates_and_frees_again() -> None:
    """`logsumexp` makes its exponentials, as large as its input, and lets them go."""
    model = nn.Linear(256, 256)
    x = torch.randn(256, 256)
    step = trace_train_step(
        model, lambda m, x: torch.logsumexp(m(x), 1).mean(), torch.optim.SGD(model.parameters(), lr=0.1), (x,)
    )
    profiler = GraphProfiler(step)
    profiler.run(x)
    stats = profiler.node_stats().set_index("target")
    row = stats.loc["aten.logsumexp.default"]
    assert row["output_bytes"] == 256 * 4
    assert row["workspace_bytes"] >= 256 * 256 * 4
    assert row["median_peak_mem_bytes"] == sum(row[["median_active_mem_bytes", "output_bytes", "workspace_bytes"]])
    addmm = stats.loc["aten.addmm.default"]
    assert addmm["flops"] == 2 * 256**3
    assert addmm["output_bytes"] == 256 * 256 * 4


def test_inactive_time_is_the_time_of_the_nodes_in_between() -> None:
    _, profiler = profiled("tiny_gpt2")
    nodes, activations = profiler.node_stats(), profiler.activation_stats()
    for row in activations.itertuples():
        between = nodes[(nodes["rank"] > row.last_fw_use_rank) & (nodes["rank"] < row.first_bw_use_rank)]
        assert row.inactive_time_s == pytest.approx(between["median_run_time_s"].sum(), abs=1e-12)


def test_csv_schema_without_empty_cells(saved: tuple[GraphProfiler, Path]) -> None:
    _, folder = saved
    for name, header in ((NODE_STATS, NODE_COLUMNS), (ACTIVATION_STATS, ACTIVATION_COLUMNS)):
        assert (folder / name).read_text().splitlines()[0] == header
        table = pd.read_csv(folder / name)
        assert len(table) > 20
        assert not table.isna().any().any()


def test_tables_are_consistent_with_the_graph(saved: tuple[GraphProfiler, Path]) -> None:
    profiler, folder = saved
    nodes, activations = read_csv(folder, NODE_STATS), read_csv(folder, ACTIVATION_STATS)
    assert nodes["rank"].tolist() == list(range(len(profiler.step.nodes)))
    assert set(nodes["node_type"]) <= {"PARAM", "BUFFER", "INPUT", "ACT", "GRAD", "OPT_STATE", "OTHER"}
    assert set(nodes["region"]) == {region.value for region in Region}
    parameters = nodes[(nodes["region"] == "input") & (nodes["node_type"] == "PARAM")]
    assert parameters["output_bytes"].sum() == sum(
        p.numel() * p.element_size() for p in profiler.step.model.parameters()
    )
    assert set(activations["activation_name"]) <= set(nodes["node_name"])
    assert activations["creation_rank"].is_monotonic_increasing
    created = nodes["node_type"].to_numpy()[activations["creation_rank"]]
    assert (created == "ACT").all()


def test_memory_curve_file_adds_up(saved: tuple[GraphProfiler, Path]) -> None:
    profiler, folder = saved
    curve = read_csv(folder, MEMORY_CURVE)
    assert (curve[CATEGORIES].sum(axis=1) == curve["total_bytes"]).all()
    assert curve["total_bytes"].max() == profiler.memory().peak_bytes


def test_five_figures_with_something_in_them(saved: tuple[GraphProfiler, Path]) -> None:
    _, folder = saved
    for name in FIGURES:
        pixels = image.imread(folder / f"profiler_plots_{name}.png")
        assert min(pixels.shape[:2]) > 500
        assert len(np.unique(pixels[::5, ::5].reshape(-1, pixels.shape[2]), axis=0)) > 30


def test_chrome_trace_has_a_track_of_nodes_and_a_counter_of_live_bytes(
    saved: tuple[GraphProfiler, Path],
) -> None:
    profiler, folder = saved
    events = json.loads((folder / CHROME_TRACE).read_text())["traceEvents"]
    tracks = {e["args"]["name"]: e["tid"] for e in events if e["name"] == "thread_name"}
    spans = [e for e in events if e["ph"] == "X" and e["tid"] == tracks["nodes"]]
    assert [span["name"] for span in spans] == [n.name for n in profiler.step.nodes if n.op != "placeholder"]
    for earlier, later in pairwise(spans):
        assert later["ts"] == pytest.approx(earlier["ts"] + earlier["dur"], abs=1e-6)
    assert spans[-1]["ts"] + spans[-1]["dur"] == pytest.approx(profiler.profile.run_time_s.sum() * 1e6)
    live = [e["args"]["bytes"] for e in events if e["ph"] == "C" and e["name"] == "live bytes"]
    assert live == profiler.memory().table["live_bytes"].tolist()


def test_sign_off_passes_and_a_damaged_file_fails_it(saved: tuple[GraphProfiler, Path], tmp_path: Path) -> None:
    profiler, folder = saved
    checks = profiler.sign_off(folder)
    assert all(check.passed for check in checks), sign_off_table(checks)
    assert len(sign_off_table(checks).splitlines()) == len(checks) >= 9
    for path in folder.glob("*.csv"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    table = pd.read_csv(tmp_path / ACTIVATION_STATS)
    table.loc[3, "recomp_time_s"] = np.nan
    table.to_csv(tmp_path / ACTIVATION_STATS, index=False)
    (tmp_path / NODE_STATS).unlink()
    failed = [check for check in profiler.sign_off(tmp_path) if not check.passed]
    assert [check.name for check in failed] == [f"schema of {NODE_STATS}", f"schema of {ACTIVATION_STATS}"]
    assert str(tmp_path / NODE_STATS) in failed[0].found
    assert "recomp_time_s" in failed[1].found


def test_sign_off_fails_on_a_wrong_peak(saved: tuple[GraphProfiler, Path]) -> None:
    profiler, folder = saved
    mistaken = GraphProfiler(profiler.step)
    mistaken._profile = replace(profiler.profile, step_peak_bytes=profiler.profile.step_peak_bytes + 1)
    failed = [check.name for check in mistaken.sign_off(folder) if not check.passed]
    assert failed == ["simulated peak against the allocator's"]


def test_batches_stack_up_to_their_measured_peaks(tmp_path: Path) -> None:
    folders = {}
    for size in (2, 4, 8):
        problem = build("tiny_resnet152", batch_size=size)
        optimizer = torch.optim.SGD(problem.model.parameters(), lr=0.1, momentum=0.9)
        profiler = GraphProfiler(trace_train_step(problem.model, problem.loss_fn, optimizer, problem.batch))
        profiler.run(*problem.batch, profile_iters=1)
        folders[size] = tmp_path / f"batch_{size}"
        profiler.save_stats_to_csv(folders[size])
    table = read_batches(folders)
    assert table["batch_size"].tolist() == [2, 4, 8]
    assert (table[CATEGORIES].sum(axis=1) == table["measured_peak_bytes"]).all()
    assert table["measured_peak_bytes"].is_monotonic_increasing
    assert table["parameters"].nunique() == 1
    assert all(path.is_file() for path in plot_batches(table, tmp_path))
    for name in (NODE_STATS, ACTIVATION_STATS, MEMORY_CURVE, SUMMARY):
        hidden = (folders[4] / name).rename(tmp_path / "hidden")
        with pytest.raises(MissingStatsError, match=f"batch_4/{name}"):
            read_batches(folders)
        hidden.rename(folders[4] / name)


def test_stats_are_printed(saved: tuple[GraphProfiler, Path], capsys: pytest.CaptureFixture[str]) -> None:
    profiler, _ = saved
    profiler.print_stats(rows=3)
    text = capsys.readouterr().out
    assert profiler.memory().peak_node in text
    for category in CATEGORIES:
        assert category in text


def test_every_tensor_of_a_nested_output_counts() -> None:
    """`_foreach_sqrt` gives a list with one tensor for each parameter."""
    problem, step = traced("tiny_gpt2")
    analysis = GraphProfiler(step).analysis
    rank = next(r for r, n in enumerate(step.nodes) if str(n.target) == "aten._foreach_sqrt.default")
    made = sum(analysis.storages[index].bytes for index in analysis.created[rank])
    assert made == sum(p.numel() * p.element_size() for p in problem.model.parameters())
