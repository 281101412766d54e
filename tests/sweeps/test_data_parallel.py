"""Planned steps on several ranks: next to their own unplanned step, and to the same plan on one rank."""

from __future__ import annotations

import pytest

from sweeps import load_runs
from sweeps.report.command import write_report
from sweeps.report.figures.recomputation.compiled_front import COMPILED_FRONT
from sweeps.report.findings import findings
from sweeps.report.findings.data_parallel import find
from sweeps.report.listings.steps.data_parallel import DATA_PARALLEL, select, show
from sweeps.report.tables.report_data import read_report_data
from sweeps.report.tables.steps.data_parallel import data_parallel
from sweeps.report.tables.steps.recomputation import recomputed
from tests.sweeps.conftest import make_compiled, make_planned

# Of the unplanned and of the planned step: milliseconds, and of its kernels. Both kinds of ranks are bound by the host.
STEPS = {
    "none": ((20.0, 18.0), (21.0, 18.9)),
    "ddp": ((25.0, 18.0), (25.5, 18.99)),
    "fsdp2": ((26.0, 18.1), (26.0, 18.1)),
}
MIB = 2**20


@pytest.fixture
def measured(write_run, tmp_path):
    for kind, (unplanned, planned) in STEPS.items():
        fields = {"world_size": 1 if kind == "none" else 2, "workload_config": {"data_parallel": kind}}
        for name, (step, kernels) in (("unplanned", unplanned), ("planned", planned)):
            line = make_planned(70, step, 0.7, **fields) if name == "planned" else None
            line = line or make_compiled("torch_compile", 100, step, {}, "", **fields)
            line["device_ms"] = kernels
            line["proof"] = {"identical": False, "passed": False, "gradient_error": 0.01, "rounding_limit": 0.09}
            if kind != "none":
                line["ranks"] = {"alike": True, "plans_alike": True if name == "planned" else None}
                line["each_rank"] = [own(rank, name == "planned") for rank in range(2)]
            write_run(f"{kind}_{name}", [line])
    return tmp_path / "sweep"


def own(rank: int, planned: bool) -> dict:
    """What a record says of a rank; the second one's peak is above its budget of 56 MiB in a planned step."""
    budget = 56 * MIB if planned else None
    return {
        **{"peak_bytes": (55 + 2 * rank) * MIB, "budget_bytes": budget, "collectives": 4, "reference_collectives": 4},
        **{"step_p50_ms": 20.0, "kernels_ms": 18.0},
    }


def rows_of(folder):
    runs = load_runs([folder])
    return data_parallel(recomputed(runs), runs).set_index("data_parallel")


def test_what_a_plan_adds_is_over_the_unplanned_step_of_the_same_kind_and_next_to_one_rank(measured):
    rows = rows_of(measured)
    assert list(rows.index) == ["", "ddp", "fsdp2"]
    assert rows["added"].tolist() == pytest.approx([0.05, 0.02, 0.0])
    assert rows.loc[["ddp", "fsdp2"], "over_alone"].tolist() == pytest.approx([-0.03, -0.05])
    assert rows["added_kernels"].tolist() == pytest.approx([0.05, 0.055, 0.0])
    assert rows.loc["ddp", "over_alone_kernels"] == pytest.approx(0.005)
    assert rows.loc["ddp", "rank_peaks"] == [55 * MIB, 57 * MIB]
    assert rows.loc["ddp", "collectives"] == rows.loc["ddp", "reference_collectives"] == 4


def test_an_unplanned_step_without_a_plan_and_another_budget_are_rows_of_their_own(measured, write_run):
    fields = {"world_size": 2, "workload_config": {"data_parallel": "ddp_buckets"}}
    write_run("buckets", [make_compiled("torch_compile", 100, 24.0, {}, "", **fields)])
    fields = {"world_size": 2, "workload_config": {"data_parallel": "ddp"}}
    write_run("lower", [make_planned(50, 30.0, 0.5, **fields)])
    rows = rows_of(measured)
    assert rows.loc["ddp_buckets", ["unplanned_ms", "planned_ms"]].isna().tolist() == [False, True]
    lower = rows[rows["budget"] == 0.5]
    assert lower["added"].tolist() == pytest.approx([0.2])
    assert lower["over_alone"].isna().all()  # no such plan on one rank
    assert len(rows) == 5


def test_the_table_counts_the_peaks_within_their_budgets(measured, tmp_path):
    data = read_report_data([measured])
    shown = show(select(data))
    assert shown["training"].tolist() == ["one rank", "DDP", "FSDP2"]
    assert shown["peak per rank, MiB"].tolist() == ["", "55.0, 57.0", "55.0, 57.0"]
    assert shown["one plan"].tolist() == ["", "yes", "yes"]
    assert DATA_PARALLEL.remark(select(data)) == " Within their budgets: 2 of 4 ranks' peaks."
    report = write_report([measured], tmp_path / "out")
    assert "what a plan adds" in report.read_text()
    assert (tmp_path / "out" / "tables" / "data_parallel.csv").stat().st_size > 0


def test_the_finding_compares_by_kernels_where_the_host_delays_steps(measured):
    finding = find(read_report_data([measured]))
    assert finding is not None
    assert finding.sentence == (
        "The plan of tiny_gpt2 changes the time of a step's kernels by +5.0% on one rank, +5.5% on 2 ranks with DDP "
        "and +0.0% on 2 ranks with FSDP2; 2 of 4 ranks' peaks are within the budget."
    )


def test_without_data_parallelism_there_is_nothing_to_say(write_run, tmp_path):
    write_run("plain", [make_compiled("torch_compile", 100, 10.0, {}, "")])
    write_run("ours", [make_planned(60, 15.0, 0.6)])
    data = read_report_data([tmp_path / "sweep"])
    assert select(data).empty
    assert find(data) is None


def test_the_front_and_its_finding_say_which_step_was_of_which_ranks(measured, write_run):
    """Data parallelism comes first where it was measured; a panel of one mark compares nothing and is not drawn."""
    fields = {"world_size": 2, "workload_config": {"data_parallel": "ddp_buckets"}}
    write_run("buckets", [make_compiled("torch_compile", 100, 24.0, {}, "", **fields)])
    data = read_report_data([measured])
    first, second = findings(data, [])[:2]
    assert (first.name, second.name) == ("finding-data-parallel", "finding-compiled")
    told = list(dict.fromkeys(second.numbers["training"]))
    assert told == ["one rank", "DDP, 2 ranks", "DDP, a graph per bucket, 2 ranks", "FSDP2, 2 ranks"]
    named = {axis.get_title() for axis in COMPILED_FRONT.draw(COMPILED_FRONT.select(data)).axes}
    assert {name.split(", ", 2)[2] for name in named} == {"one rank", "DDP, 2 ranks", "FSDP2, 2 ranks"}
