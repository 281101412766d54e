"""phase=profile: the profiler inside the application, and what a sweep over batch sizes adds."""

import json
import re
import shutil

import pandas as pd
import pytest

from sweeps import load_runs
from sweeps.report.command import write_report
from sweeps.report.records.packed import unpack
from tests.launching import ROOT

REFERENCE = ROOT / "outputs" / "reference" / "profile_h200"
FIGURES = {"node_runtime", "node_peak_memory", "activation_memory_size", "activation_inactive_time", "memory_vs_rank"}


def test_a_profile_leaves_its_tables_figures_and_sign_off_in_the_run_folder(cli, tmp_path):
    done = cli("phase=profile", "workload=tiny_gpt2", "hardware=cpu", "phase.timed_iters=2")
    assert done.code == 0, done.err
    (folder,) = (path.parent for path in tmp_path.rglob("status.json"))
    nodes = pd.read_csv(folder / "profiler_stats_node_stats.csv")
    activations = pd.read_csv(folder / "profiler_stats_activation_stats.csv")
    assert ",".join(nodes.columns).startswith("rank,node_name,target,node_type,region,module,median_run_time_s")
    assert not nodes.isna().any().any()
    assert (activations["first_bw_use_rank"] > activations["last_fw_use_rank"]).all()
    assert {path.name for path in folder.glob("profiler_plots_*.png")} == {f"profiler_plots_{f}.png" for f in FIGURES}
    json.loads((folder / "profiler_trace.json").read_text())
    assert (folder / "sign_off.txt").read_text().count("pass") == 10
    record = load_runs([folder]).iloc[0]
    assert record["workload"] == "tiny_gpt2"
    assert record["B"] == 4
    parts = [value for key, value in record.items() if key.startswith("profile.peak_breakdown.")]
    assert sum(parts) == record["profile.simulated_peak_bytes"] == record["memory_peak_bytes"]
    assert "peak" in done.out


def test_a_sweep_over_batch_sizes_reports_memory_and_time_against_them(cli, tmp_path):
    sweep = ("-m", "+sweep=batch_memory", "workload=tiny_gpt2", "workload.batch_size=2,4", "phase.timed_iters=2")
    assert cli(*sweep, "hardware=cpu").code == 0
    report = tmp_path / "outputs/sweeps/batch_memory/report"
    table = pd.read_csv(report / "batch_analysis_tiny_gpt2.csv")
    assert table["batch_size"].tolist() == [2, 4]
    parts = [
        "parameters",
        "buffers",
        "inputs",
        "gradients",
        "optimizer_state",
        "activations",
        "temporaries",
        "workspace",
    ]
    assert (table[parts].sum(axis=1) == table["measured_peak_bytes"]).all()
    for kind in ("peak_memory", "step_time"):
        assert (report / "figures" / f"batch_{kind}_tiny_gpt2.png").exists()
    text = (report / "report.html").read_text()
    assert "Profiled training steps" in text
    assert "Nothing has been measured" not in text


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["phase=profile", "workload=gaussian"], "phase=profile is for a model's training step"),
        (["phase=profile", "method=block_shock"], "use method=keep_all"),
        (["workload=gpt2"], "set workload.dropout=0"),
        (["phase=profile", "hardware.world_size=2"], "runs on one rank"),
        (["phase=profile", "workload.batch_size=0"], "workload.batch_size=0: must be at least 1"),
        (["phase=profile", "workload=tiny_gpt2", "workload.dropout=1.5"], "below 1"),
        (["phase=profile", "phase.optimizer=lbfgs"], "allowed: sgd, sgd_momentum, adam, adamw"),
        (["phase=profile", "phase.profile_iters=0"], "must be at least 1"),
    ],
)
def test_what_cannot_be_profiled_is_refused(cli, tmp_path, arguments, expected):
    done = cli(*arguments, "hardware=cpu")
    assert (done.code, expected in done.err) == (2, True)
    assert not list(tmp_path.rglob("status.json"))


def test_a_missing_table_is_a_line_of_the_report_that_names_it(tmp_path):
    for folder in unpack(REFERENCE / "runs.jsonl.gz", tmp_path / "all"):
        if re.search(r"resnet152_B[48]_", folder.name):
            folder.rename(tmp_path / folder.name)
    shutil.rmtree(tmp_path / "all")
    whole = write_report([tmp_path], tmp_path / "whole")
    assert (whole.parent / "figures" / "batch_peak_memory_resnet152.png").exists()
    assert "is not shown" not in whole.read_text()
    next(tmp_path.rglob("profiler_stats_activation_stats.csv")).unlink()
    lacking = write_report([tmp_path], tmp_path / "lacking")
    assert not list(lacking.parent.glob("figures/batch_*"))
    said = re.search(r"<li>the batch analysis of resnet152 is not shown: (.*)</li>", lacking.read_text())
    assert said
    assert "profiler_stats_activation_stats.csv" in said[1]
