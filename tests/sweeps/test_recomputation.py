from __future__ import annotations

import pytest

from sweeps import load_runs
from sweeps.report.command import write_report
from sweeps.report.figures.recomputation.methods import select_bars, select_pareto
from sweeps.report.listings.steps.recomputation import recomputation_table
from sweeps.report.tables.steps.recomputation import bound, recomputed, smallest


@pytest.fixture
def swept(write_run, checkpointed, tmp_path):
    """keep_all, two planners at two budgets, and torch's own through two compilers."""
    write_run("keep", [checkpointed("keep_all", 80, 10.0)])
    for budget, peak, step in ((0.8, 60, 11.0), (0.5, 42, 14.0)):
        write_run(f"greedy{budget}", [checkpointed("recompute_greedy", peak, step, budget=budget)])
        write_run(f"optimal{budget}", [checkpointed("recompute_optimal", peak - 2, step - 1, budget=budget)])
        for backend in ("aot_eager", "inductor"):
            line = checkpointed("torch_memory_budget", peak + 5, step + 2, budget=budget, backend=backend)
            write_run(f"torch{budget}{backend}", [line])
    write_run("other", [checkpointed("keep_all", 200, 30.0, B=16)])
    return tmp_path / "sweep"


def test_a_row_is_a_method_its_compiler_and_a_budget(swept):
    table = recomputed(load_runs([swept]))
    assert len(table) == 10
    assert set(table["variant"]) == {
        *("keep_all", "recompute_greedy", "recompute_optimal"),
        *("torch_memory_budget, aot_eager", "torch_memory_budget, inductor"),
    }
    row = table[(table["variant"] == "recompute_optimal") & (table["budget"] == 0.5)].iloc[0]
    assert row["slowdown"] == pytest.approx(1.3)
    assert row["peak_bytes"] / row["keep_all_peak_bytes"] == pytest.approx(0.5)
    assert row["keep_all_ms"] == 10.0  # of the same batch size


def test_steps_of_one_method_with_other_options_are_rows_of_their_own(write_run, checkpointed, tmp_path):
    for number, (options, error) in enumerate((("per block", 0.0), ("6 blocks", 3e-7), ("6 blocks", 5e-7))):
        line = checkpointed("torch_compile", 40 + number, 11.0, backend="inductor")
        line |= {"step": {"variant": options, "first_s": 30.0}}
        line["proof"] = {"passed": False, "identical": False, "gradient_error": error}
        write_run(f"run{number}", [line])
    table = recomputed(load_runs([tmp_path / "sweep"])).set_index("options")
    assert table["variant"].to_dict() == {o: f"torch_compile, inductor, {o}" for o in ("per block", "6 blocks")}
    assert table.loc["6 blocks", "peak_bytes"] == 41.5 * 2**20
    shown = recomputation_table(table.reset_index())
    assert shown["same numbers"].tolist() == ["gradients off by 4.0e-07", "gradients off by 0.0e+00"]
    assert shown["first step, s"].tolist() == ["30.0", "30.0"]


def test_bars_compare_each_methods_smallest_peak_where_there_is_something_to_compare(swept):
    best = smallest(recomputed(load_runs([swept])))
    assert best.loc[best["variant"] == "recompute_greedy", "budget"].tolist() == [0.5]

    class Only:
        recomputed = recomputed(load_runs([swept]))

    assert set(select_bars(Only)["B"]) == {8}  # nothing but keep_all at 16


def test_the_bound_is_above_keep_alls_step_by_what_the_linear_program_says(swept):
    line = bound(recomputed(load_runs([swept]))).sort_values("budget_bytes")
    assert (line["budget_bytes"] / 2**20).tolist() == pytest.approx([40, 64])
    assert line["bound_ms"].tolist() == pytest.approx([11.0, 11.0])

    class Only:
        recomputed = recomputed(load_runs([swept]))

    assert (select_pareto(Only)["variant"] == "LP bound").sum() == 2


def test_a_plan_without_a_bound_leaves_it_out(write_run, checkpointed, tmp_path):
    line = checkpointed("recompute_greedy", 60, 12.0, budget=0.8)
    line["plan"]["bound_added_s"] = None
    write_run("keep", [checkpointed("keep_all", 80, 10.0)])
    write_run("greedy", [line])
    table = recomputed(load_runs([tmp_path]))
    assert bound(table).empty
    assert "added at least (LP), ms" not in recomputation_table(table)


def test_repeated_jobs_become_a_median_with_an_interval(write_run, checkpointed, tmp_path):
    for i, step in enumerate((10.0, 11.0, 12.0, 13.0, 50.0)):
        write_run(f"keep{i}", [checkpointed("keep_all", 80, step)])
    row = recomputed(load_runs([tmp_path])).iloc[0]
    assert (row["step_p50_ms"], row["step_lo_ms"], row["step_hi_ms"]) == (12.0, 10.0, 50.0)


def test_a_rewritten_step_with_other_numbers_is_shown_as_a_failure(write_run, checkpointed, tmp_path):
    write_run("bad", [checkpointed("recompute_optimal", 40, 12.0, budget=0.5, proof={"identical": False})])
    shown = recomputation_table(recomputed(load_runs([tmp_path])))
    assert shown["same numbers"].tolist() == ["FAIL: different"]
    assert shown["recomputed"].tolist() == ["3 of 9"]


def test_the_report_has_their_table_and_figures(swept, tmp_path):
    report = write_report([swept], tmp_path / "out")
    for name in ("tables/recomputation.csv", "figures/pareto.svg", "figures/recomputation_memory.png"):
        assert (report.parent / name).stat().st_size > 0
    assert "torch_memory_budget, inductor" in report.read_text().replace("<wbr>", "")


def test_runs_without_such_records_give_an_empty_table(write_run, record, tmp_path):
    write_run("a", [record("phase1_forward", "dense_single", forward=1.0)])
    assert recomputed(load_runs([tmp_path])).empty
    write_run("b", None, "failed", "x")
    assert recomputed(load_runs([tmp_path / "sweep" / "b"])).empty
