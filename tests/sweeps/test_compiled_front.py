"""The memory/time front of compiled training: which points count, what lies between them, and what dominates what."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps import load_runs
from sweeps.report.command import write_report
from sweeps.report.figures.recomputation.compiled_front import draw
from sweeps.report.findings.compiled_front import find
from sweeps.report.listings.steps.compiled_front import ADDED_TIME, BASELINES, PLANS
from sweeps.report.tables.report_data import read_report_data
from sweeps.report.tables.steps.compiled_front import KERNELS, added, dominated, envelope, front, time_at, verdict
from sweeps.report.tables.steps.recomputation import recomputed
from tests.checkpointing.compiled.measure_front import budgets_of
from tests.sweeps.conftest import make_compiled, make_planned, write_front


@pytest.fixture
def measured(write_run, tmp_path):
    write_front(write_run)
    return tmp_path / "sweep"


def points(folder):
    return front(recomputed(load_runs([folder])))


def test_a_baseline_is_known_by_its_options(measured):
    kinds = points(measured).groupby("kind")["label"].apply(lambda labels: sorted(labels)).to_dict()
    assert kinds == {
        "ours": ["0.52", "0.64", "0.8", "1"],
        "torch.compile": [""],
        "activation_memory_budget": ["0.5"],
        "checkpointed blocks": ["0.5", "all"],
        "selective checkpointing": ["attention", "attention+qkv"],
        "loss in chunks": ["auto_chunker"],
        "CUDA graphs": ["reduce-overhead"],
    }


def test_steps_in_cuda_graphs_are_told_apart(write_run, tmp_path):
    graphs = {"mode": "reduce-overhead"}
    ways = [{"checkpoint": "blocks"}, {"checkpoint": "blocks", "blocks": 0.5}, {"memory_budget": 0.2}]
    ways += [{"checkpoint": "blocks", "saved": ["qkv"]}]
    for number, way in enumerate(ways):
        write_run(
            f"run{number}", [make_compiled("torch_compile", 100 + number, 10.0, {**graphs, **way}, f"way {number}")]
        )
    planned = make_planned(60, 12.0, 0.6)
    write_run("ours", [planned | {"method_config": planned["method_config"] | graphs}])
    found = points(tmp_path / "sweep")
    assert sorted(found.loc[found["kind"] == "CUDA graphs", "label"]) == [
        "reduce-overhead, 0.2",
        "reduce-overhead, 0.5 of the blocks",
        "reduce-overhead, per block",
        "reduce-overhead, qkv",
    ]
    assert found.loc[found["kind"] == "ours", "label"].tolist() == ["0.6, CUDA graphs"]


def test_a_baseline_is_dominated_by_a_point_of_ours_that_needs_no_more_and_is_within_a_percent(measured):
    rows = dominated(points(measured)).set_index("options")
    assert rows.loc["per block", "dominated"]
    assert rows.loc["per block", "ours_label"] == "0.52"
    assert rows.loc["per block, saving attention+qkv", "ratio"] == pytest.approx(23.5 / 23.4)
    assert rows.loc["per block, saving attention+qkv", "dominated"]  # 0.4% slower
    assert rows.loc["auto_chunker", "ours_label"] == "0.8"  # the same peak
    assert not rows.loc["reduce-overhead", "dominated"]  # 5% slower than it
    assert rows.loc["", "added"].tolist() == pytest.approx([0.0, 27.7 / 21.5 - 1])


def test_a_peak_that_ours_does_not_reach_is_undominated(write_run, tmp_path):
    write_run("plain", [make_compiled("torch_compile", 100, 10.0, {}, "")])
    write_run("block", [make_compiled("torch_compile", 50, 20.0, {"checkpoint": "blocks"}, "per block")])
    write_run("ours", [make_planned(60, 12.0, 0.6)])
    rows = dominated(points(tmp_path)).set_index("options")
    assert not rows.loc["per block", "dominated"]
    assert np.isnan(rows.loc["per block", "ours_peak_bytes"])


def test_the_added_time_is_read_off_the_envelopes_at_three_peaks(measured):
    rows = added(points(measured))
    assert (rows["peak_bytes"] / 2**20).tolist() == pytest.approx([2144 + part * 2007 for part in (0.75, 0.5, 0.25)])
    middle = rows.iloc[1]
    slope = (25.9 - 21.5) / (4151 - 2144)
    assert 25.9 - slope * (2992 - 2144) > 23.6  # half of the blocks lie below the line from all to none: a corner
    expected = 23.6 + (21.5 - 23.6) * (2144 + 0.5 * 2007 - 2992) / (4151 - 2992)
    assert middle["automatic_ms"] == pytest.approx(expected - 21.5)
    assert 0 < middle["ours_ms"] < middle["automatic_ms"]
    assert middle["share"] == pytest.approx(middle["ours_ms"] / middle["automatic_ms"])


def test_what_ours_adds_is_that_of_its_best_variant(write_run, tmp_path):
    write_run("plain", [make_compiled("torch_compile", 100, 10.0, {}, "")])
    write_run("block", [make_compiled("torch_compile", 60, 20.0, {"checkpoint": "blocks"}, "per block")])
    write_run("ours", [make_planned(60, 14.0, 0.6)])
    write_run("ours, chunked", [make_planned(60, 12.0, 0.6) | {"step": {"variant": "optimal, loss in 8 chunks"}}])
    rows = added(points(tmp_path))
    assert len(rows) == 3
    assert rows["ours_ms"].iloc[-1] == pytest.approx(2.0)


def test_our_budgets_are_at_the_peaks_of_the_baselines_that_no_other_dominates(measured):
    found = points(measured)
    budgets = budgets_of(found)
    assert budgets == sorted(set(budgets))
    assert len(budgets) == 10
    baselines = found[(found["kind"] != "ours") & found["alike"]]
    assert 0.96 < budgets[0] * 2**20 / baselines["peak_bytes"].min() < 0.98
    assert budgets[-1] * 2**20 <= baselines.loc[baselines["kind"] == "torch.compile", "peak_bytes"].max()
    for peak, ms in zip(baselines["peak_bytes"], baselines["step_p50_ms"], strict=True):
        better = baselines[(baselines["peak_bytes"] <= peak) & (baselines["step_p50_ms"] < ms)]
        if better.empty and peak <= budgets[-1] * 2**20:
            assert any(0.996 * peak < budget * 2**20 <= peak for budget in budgets)


def test_a_budget_in_bytes_is_written_in_mebibytes(write_run, tmp_path):
    write_run("ours", [make_planned(60, 12.0, 70 * 2**20)])
    assert points(tmp_path)["label"].tolist() == ["70 MiB"]


def test_a_baseline_far_slower_than_the_rest_does_not_press_the_figure_together(write_run, tmp_path):
    write_front(write_run)
    write_run("far", [make_compiled("torch_compile", 1000, 300.0, {"loss": "liger", "checkpoint": "blocks"}, "liger")])
    [axis] = draw(points(tmp_path / "sweep")).axes
    assert axis.get_ylim()[1] < 40
    assert "liger, per block 300 ms" in [text.get_text() for text in axis.texts]


def test_a_wrong_step_counts_for_nothing(write_run, tmp_path):
    wrong = {"passed": False, "identical": False, "trains_alike": False, "gradient_error": 0.7}
    write_run("plain", [make_compiled("torch_compile", 100, 10.0, {}, "")])
    write_run("block", [make_compiled("torch_compile", 60, 20.0, {"checkpoint": "blocks"}, "per block")])
    write_run("wrong", [make_compiled("torch_compile", 50, 11.0, {"memory_budget": 0.5}, "", proof=wrong)])
    write_run("ours", [make_planned(60, 12.0, 0.6)])
    write_run("ours, wrong", [make_planned(40, 10.0, 0.4, proof=wrong)])
    found = points(tmp_path)
    assert found["alike"].value_counts().to_dict() == {True: 3, False: 2}
    assert dominated(found).set_index("options").loc["per block", "ours_label"] == "0.6"
    assert added(found)["peak_bytes"].min() > 60 * 2**20
    shown = BASELINES.show(dominated(found))
    assert shown["ours dominates it"].tolist() == ["no", "(wrong)", "yes"]


@pytest.fixture
def delayed(write_run, tmp_path):
    """A host that delayed the step under a budget by half: its kernels are faster than the baseline's."""
    write_run("plain", [make_compiled("torch_compile", 100, 10.0, {}, "") | {"device_ms": 9.5}])
    blocks = make_compiled("torch_compile", 60, 12.0, {"checkpoint": "blocks"}, "per block")
    write_run("block", [blocks | {"device_ms": 11.5}])
    write_run("ours", [make_planned(60, 15.0, 0.6) | {"device_ms": 10.0}])
    return points(tmp_path)


def test_kernels_judge_apart_where_the_host_delayed_a_step(delayed):
    row = dominated(delayed).set_index("options").loc["per block"]
    assert (row["ratio"], row["kernels_ratio"]) == pytest.approx((15.0 / 12.0, 10.0 / 11.5))
    assert (row["dominated"], row["dominated_by_kernels"]) == (False, True)
    assert verdict(delayed) == (
        "our plans are at least as good as 0 of 2 baseline points, and by the time of kernels as 1 of 2"
        " (the host delayed 1 of 3 steps by more than 10%)"
    )
    assert BASELINES.show(dominated(delayed))["ours dominates it"].tolist() == ["no", "by kernels"]
    costs = added(delayed, KERNELS).iloc[-1]  # a quarter of the way from 60 to 100 MiB
    assert (costs["plain_ms"], costs["automatic_ms"]) == pytest.approx((9.5, 1.5))
    assert costs["ours_ms"] == pytest.approx(0.5)


def test_the_finding_and_the_costs_of_a_delayed_front_are_of_kernels(delayed, tmp_path):
    data = read_report_data([tmp_path])
    found = find(data)
    assert found is not None
    assert (
        "a peak of 80.0 MiB adds 0.5 ms of kernels with our plan, and adds 1.0 ms with torch.compile's"
        in found.sentence
    )
    assert found.numbers["torch.compile, ms of kernels"].tolist() == ["9.50"] * 3
    shown = ADDED_TIME.show(ADDED_TIME.select(data))
    assert shown["automatic adds, ms"].tolist() == ["0.50", "1.00", "1.50"]  # 12 of 10 ms, 11.5 of 9.5 ms of kernels
    assert shown["ours adds, ms"].tolist() == ["5.00"] * 3
    assert shown["ours adds, ms of kernels"].tolist() == ["0.50"] * 3


def test_the_figure_has_kernels_beside_steps_only_where_the_host_delayed_one(delayed):
    assert [axis.get_ylabel() for axis in draw(delayed).axes] == ["step (p50), ms", "kernels of a step, ms"]
    quiet = delayed.assign(step_p50_ms=1.02 * delayed["kernels_ms"])
    assert [axis.get_ylabel() for axis in draw(quiet).axes] == ["step (p50), ms"]


def test_steps_without_a_record_of_their_kernels_are_judged_by_their_time(measured):
    unknown = points(measured).assign(kernels_ms=float("nan"))
    assert not dominated(unknown)["dominated_by_kernels"].any()
    assert "kernels" not in verdict(unknown)


def test_plans_that_break_their_promise_are_counted(write_run, tmp_path):
    """The step with the lower budget needed more than the other one, and more than it was allowed."""
    write_run("plain", [make_compiled("torch_compile", 100, 10.0, {}, "")])
    for budget, peak in ((0.75, 59), (0.5, 61)):  # 60 and 40 MiB
        write_run(f"ours{budget}", [make_planned(peak, 12.0, budget)])
    data = read_report_data([tmp_path])
    rows = PLANS.select(data)
    assert rows["added_ms"].tolist() == pytest.approx([2.0, 2.0])
    assert PLANS.remark(rows) == " Above their budgets: 1 of 2 peaks. A lower budget measured a higher peak 1 times."


def test_cards_and_versions_are_never_compared(write_run, tmp_path):
    write_run("a", [make_compiled("torch_compile", 100, 10.0, {}, "", device="H100")])
    write_run("b", [make_planned(90, 9.0, 0.9, device="H200")])
    assert dominated(points(tmp_path)).empty
    assert added(points(tmp_path)).empty


@given(st.lists(st.tuples(st.integers(1, 100), st.integers(1, 100)), min_size=1, max_size=12))
def test_the_envelope_is_the_lowest_mixture_of_points_that_fit(found):
    """By brute force: the least time at a peak over all pairs of points, one of which may be given up."""
    line = envelope(pd.DataFrame(found, columns=["peak_bytes", "step_p50_ms"]))
    for peak in range(1, 101, 7):
        fits = [float(time) for x, time in found if x <= peak]
        mixtures = [t0 + (t1 - t0) * (peak - x0) / (x1 - x0) for x0, t0 in found for x1, t1 in found if x0 <= peak < x1]
        if fits:
            assert time_at(line, peak) == pytest.approx(min(fits + mixtures))
        else:
            assert np.isnan(time_at(line, peak))


def test_the_front_is_the_first_figure_and_its_listings_the_first_tables(measured, tmp_path):
    report = write_report([measured], tmp_path / "out")
    text = report.read_text()
    assert (report.parent / "figures/compiled_front.png").stat().st_size > 1000
    assert not (report.parent / "figures/pareto.png").exists()  # of steps that are not compiled
    assert text.index("Memory and time of compiled training") > 0
    data = read_report_data([measured])
    assert ADDED_TIME.show(ADDED_TIME.select(data)).shape[0] == 3
    assert "7 of 8 baseline points" in BASELINES.remark(BASELINES.select(data))
