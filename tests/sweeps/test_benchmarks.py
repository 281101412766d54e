from __future__ import annotations

import json
from collections import defaultdict

import pandas as pd
import pytest

from sweeps import load_runs
from sweeps.report.command import main
from sweeps.report.figures import BENCHMARK_FIGURES, ReportData
from sweeps.report.listings.benchmarks import benchmark_table, target_table
from sweeps.report.tables.benchmarks import benchmarks, latest, targets
from sweeps.report.tables.targets import verdicts
from tests.sweeps.conftest import benchmark_rows

BASELINE = {"product": "half_k_dense", "forward": "dtensor_row", "train": "dtensor_row", "all_reduce": "nccl"}
NONE = pd.DataFrame()


def figures(folder) -> dict[str, pd.DataFrame]:
    measured = ReportData(benchmarks=latest(benchmarks(load_runs([folder]))))
    return {plot.name: plot.select(measured) for plot in BENCHMARK_FIGURES}


def lines(folder) -> list[dict]:
    return [json.loads(line) for path in folder.rglob("metrics.jsonl") for line in path.read_text().splitlines()]


def by_cell(folder, part: str) -> dict[tuple, dict[str, dict]]:
    cells: dict[tuple, dict[str, dict]] = defaultdict(dict)
    for line in lines(folder):
        if line["part"] == part:
            name = f"{line['method']}/{line['variant']}".rstrip("/")
            cells[line["world_size"], line["N"], line["B"]][name] = line
    return cells


@pytest.mark.slow
def test_benchmarks_alone_give_a_report_with_their_tables_and_figures(benchmarked, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["blockshock-report", str(benchmarked), "--out", str(tmp_path / "out")])
    main()
    report = tmp_path / "out"
    for plot in BENCHMARK_FIGURES:
        for ending in ("png", "svg", "csv"):
            assert (report / "figures" / f"{plot.name}.{ending}").stat().st_size > 0
    numbers = pd.read_csv(report / "tables" / "benchmarks.csv")
    assert len(numbers) == len(lines(benchmarked))
    text = (report / "report.html").read_text()
    assert 'id="table-targets"' in text
    assert 'id="table-benchmarks"' in text
    printed = capsys.readouterr().out
    assert "missed: matmul, fixed patterns, over half-K dense: worst cell on 1 rank" in printed


def test_every_ratio_is_of_medians_of_the_same_cell(benchmarked):
    table = benchmarks(load_runs([benchmarked])).set_index(["part", "world_size", "N", "B", "contender"])
    for part, baseline in BASELINE.items():
        for cell, found in by_cell(benchmarked, part).items():
            for name, line in found.items():
                row = table.loc[(part, *cell, name)]
                assert row["ratio"] == pytest.approx(line["p50_us"] / found[baseline]["p50_us"])
                rounds = [a / b for a, b in zip(line["rounds_us"], found[baseline]["rounds_us"], strict=True)]
                assert (row["ratio_lo"], row["ratio_hi"]) == pytest.approx((min(rounds), max(rounds)))


def test_a_gradient_is_compared_with_the_dense_product_of_that_gradient(benchmarked):
    table = benchmarks(load_runs([benchmarked]))
    table = table[table["part"] == "backward"].set_index(["world_size", "N", "B", "contender"])
    for cell, found in by_cell(benchmarked, "backward").items():
        for gradient, dense in (("dX", "half_k_dense"), ("dW", "half_k_dense/dW")):
            expected = found[f"checkerboard/{gradient}"]["p50_us"] / found[dense]["p50_us"]
            assert table.loc[(*cell, f"checkerboard/{gradient}"), "ratio"] == pytest.approx(expected)


def test_the_targets_are_those_of_the_benchmark_itself(benchmarked):
    judged = targets(benchmarks(load_runs([benchmarked])))
    own = verdicts(pd.DataFrame(lines(benchmarked)))
    assert len(own) > 12
    columns = ["world_size", "target", "measured", "limit", "met", "cells", "worst cell"]
    pd.testing.assert_frame_equal(judged[columns], own[columns])
    assert set(target_table(judged)["verdict"]) == {"met", "missed"}


def test_devices_are_judged_apart(write_run, tmp_path):
    fast = benchmark_rows(1)
    write_run("one", fast)
    slow = [line | {"device": "Other GPU"} for line in fast]
    for line in slow:
        line["p50_us"] *= 2 if line["variant"] == "auto" else 1
    write_run("other", slow)
    judged = targets(benchmarks(load_runs([tmp_path])))
    worst = judged[judged["target"] == "matmul, fixed patterns, over half-K dense: worst cell"].set_index("device")
    assert worst.loc["Other GPU", "measured"] == pytest.approx(2 * worst.loc["Hand GPU", "measured"])
    assert target_table(judged)["device"].nunique() == 2


def test_of_several_runs_of_a_cell_the_latest_counts(write_run, tmp_path):
    write_run("new", [line | {"timestamp_unix": 9.0} for line in benchmark_rows(1, [(64, 16)])])
    write_run("old", [line | {"p50_us": 1e6} for line in benchmark_rows(1, [(64, 16), (64, 32)])])
    table = latest(benchmarks(load_runs([tmp_path])))
    assert table.loc[table["B"] == 16, "p50_us"].max() < 1e6
    assert (table.loc[table["B"] == 32, "p50_us"] == 1e6).all()  # nowhere else


def test_what_only_an_older_run_measured_stays_beside_its_own_baseline(write_run, tmp_path):
    """The later run is twice as slow throughout and has one mask: no ratio may be of times of both."""
    rows = [line for line in benchmark_rows(1) if line["part"] == "product"]
    few = [line for line in rows if line["method"] in ("half_k_dense", "checkerboard")]
    alone = benchmarks(load_runs([write_run("old", rows)]))
    slower = {"timestamp_unix": 9.0}
    write_run("new", [line | slower | {"p50_us": 2 * line["p50_us"]} for line in few])
    both = benchmarks(load_runs([tmp_path]))
    shown = latest(both)
    keys = ["N", "B", "contender"]
    assert len(shown) == len(alone)
    merged = shown.merge(alone, on=keys, suffixes=("", "_alone"))
    assert merged["ratio"].to_numpy() == pytest.approx(merged["ratio_alone"].to_numpy())
    new = merged["contender"].isin(["half_k_dense", "checkerboard/auto"])
    assert (merged["p50_us"] / merged["p50_us_alone"]).tolist() == new.map({True: 2.0, False: 1.0}).tolist()
    judged = targets(both)
    ratios = judged["target"].str.contains("over half-K|over cuSPARSELt")
    assert ratios.sum() == 4
    expected = targets(alone)
    pd.testing.assert_frame_equal(judged[ratios], expected[ratios])


def test_the_law_takes_a_cell_from_one_run(write_run, tmp_path):
    rows = [line for line in benchmark_rows(2) if line["part"] == "law"]
    write_run("old", rows)
    later = [line | {"timestamp_unix": 9.0, "p50_us": 3 * line["p50_us"]} for line in rows]
    write_run("new", [line for line in later if line["method"] != "all_reduce"])  # it goes on: not all there yet
    both = targets(benchmarks(load_runs([tmp_path])))
    alone = targets(benchmarks(load_runs([tmp_path / "sweep" / "old"])))
    pd.testing.assert_frame_equal(both, alone)


def test_a_cpus_times_are_shown_and_not_judged(write_run, tmp_path, monkeypatch, capsys):
    write_run("cpu", [line | {"device": "cpu", "dtype": "float32"} for line in benchmark_rows(1)])
    assert targets(benchmarks(load_runs([tmp_path]))).empty
    assert figures(tmp_path)["bench_product"]["limit"].isna().all()
    monkeypatch.setattr("sys.argv", ["blockshock-report", str(tmp_path / "sweep"), "--out", str(tmp_path / "out")])
    main()
    assert "missed" not in capsys.readouterr().out
    text = (tmp_path / "out" / "report.html").read_text()
    assert "The targets are for GPUs" in text
    assert "table.csv" not in text  # it is about layers, and there are none
    assert not (tmp_path / "out" / "table.csv").exists()


def test_a_job_for_each_cell_is_read_like_the_one_folder_that_the_command_of_its_own_wrote(write_run, tmp_path):
    rows = benchmark_rows(2)
    one = targets(benchmarks(load_runs([write_run("one", rows)])))
    cells = defaultdict(list)
    for line in rows:
        divisor = {"baseline": BASELINE.get(line["part"], ""), "phase": "benchmark", "workload": "gaussian"}
        cells[line["part"], line["N"], line["B"]].append(line | divisor | {"dtype": "bf16"})
    folder = tmp_path / "sweep" / "jobs"
    for (part, N, B), lines_of_cell in cells.items():
        write_run(f"jobs/{part}_{N}_{B}", lines_of_cell)
    pd.testing.assert_frame_equal(targets(benchmarks(load_runs([folder]))), one)


def test_inputs_and_shapes_of_other_kinds_are_judged_apart(write_run, tmp_path):
    """Same N, B and contenders in each; the second has other inputs, the third a K of its own, all twice as slow."""
    rows = [line | {"phase": "benchmark"} for line in benchmark_rows(1, [(64, 16)]) if line["part"] == "product"]
    slower = [
        line | {"p50_us": line["p50_us"] * (1 if line["method"] == "half_k_dense" else 2), "timestamp_unix": 9.0}
        for line in rows
    ]
    write_run("gaussian", [line | {"workload": "gaussian"} for line in rows])
    write_run("uniform", [line | {"workload": "uniform"} for line in slower])
    write_run("wide", [line | {"workload": "gaussian", "K": 128} for line in slower])
    judged = targets(benchmarks(load_runs([tmp_path])))
    worst = judged[judged["target"] == "matmul, checkerboard, over half-K dense: worst cell"].set_index("workload")
    assert worst.loc["uniform", "cells"] == 1
    assert worst.loc["gaussian", "cells"] == 2
    assert worst.loc["gaussian", "worst cell"].startswith("N=64 B=16 K=128: ")
    assert set(figures(tmp_path)["bench_product"]["K"]) == {64}


def test_types_are_named_as_they_are_typed(write_run, tmp_path):
    names = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    for name in names:
        write_run(name, [line | {"dtype": name} for line in benchmark_rows(1, [(64, 16)])])
    table = benchmarks(load_runs([tmp_path]))
    assert set(table["dtype"]) == set(names.values())


def test_maps_leave_out_no_mask_and_no_single_cell(write_run, tmp_path):
    rows = [line for line in benchmark_rows(1, [(64, 16)]) if line["part"] in ("product", "backward")]
    more = [line | {"method": "magnitude_2of4"} for line in rows if line["method"] == "random_2of4"]
    write_run("one", [*rows, *more])
    drawn = figures(tmp_path)
    masks = {line["method"] for line in rows + more} - {"half_k_dense", "dense"}
    for name, variants in (("bench_product", ("auto",)), ("bench_backward", ("dX", "dW"))):
        assert set(drawn[name]["contender"]) == {f"{mask}/{variant}" for mask in masks for variant in variants}
        (plot,) = (plot for plot in BENCHMARK_FIGURES if plot.name == name)
        figure = plot.draw(drawn[name])
        assert sum(axis.has_data() for axis in figure.axes if axis.get_label() != "<colorbar>") == len(drawn[name])


def test_what_auto_chose_is_told(benchmarked):
    shown = benchmark_table(benchmarks(load_runs([benchmarked])))
    product = shown[(shown["part"] == "product") & shown["method"].str.endswith("/auto")].iloc[0]
    assert product[["kernel", "chosen kernel", "its options"]].tolist() == ["auto", "triton strided", "split=2"]
    layer = shown[(shown["part"] == "forward") & shown["method"].str.startswith("block_shock/")].iloc[0]
    assert layer[["chosen kernel", "collective", "chunks"]].tolist() == ["sparse_mma", "one_shot", "2"]


def test_sizes_stay_whole_numbers_beside_runs_that_have_none(benchmarked, write_run):
    write_run("failed", None, "failed", "no record")
    assert set(benchmark_table(benchmarks(load_runs([benchmarked])))["N"]) == {"64", "128"}


def test_a_maps_data_say_which_cells_are_above_their_limit(benchmarked):
    drawn = figures(benchmarked)
    product = drawn["bench_product"]
    assert set(product.loc[product["limit"].isna(), "contender"]) == {"random_2of4/auto"}
    for name, title, limit in (
        ("bench_product", "matmul, fixed patterns, over half-K dense: worst cell", 1.25),
        ("bench_forward", "forward over dtensor_row: worst cell", 1.05),
        ("bench_train", "AdamW step of block_shock/1100 over dtensor_row", 1.1),
    ):
        judged = targets(benchmarks(load_runs([benchmarked]))).set_index("target").loc[title]
        ours = drawn[name][drawn[name]["contender"].str.contains("complement|1100")]
        assert set(ours["limit"]) == {limit} == {judged["limit"]}
        assert (ours["ratio"] > ours["limit"]).any() == (not judged["met"])
    assert set(drawn["bench_forward"]["contender"]) == {"block_shock/1100", "block_shock/checkerboard", "dense_tp_row"}


def test_cells_above_their_limit_are_outlined(benchmarked):
    (plot,) = (plot for plot in BENCHMARK_FIGURES if plot.name == "bench_product")
    data = plot.select(ReportData(benchmarks=latest(benchmarks(load_runs([benchmarked])))))
    figure = plot.draw(data)
    above = [int((rows["ratio"] > rows["limit"]).sum()) for _, rows in data.groupby("contender", sort=False)]
    assert [len(axis.patches) for axis in figure.axes[: len(above)]] == above
    assert sum(above) > 0


def test_a_contender_of_some_world_sizes_leaves_no_empty_panel(write_run, tmp_path):
    few = [line for line in benchmark_rows(2) if line["variant"] != "checkerboard"]
    write_run("two", few)
    write_run("four", benchmark_rows(4))
    (plot,) = (plot for plot in BENCHMARK_FIGURES if plot.name == "bench_forward")
    figure = plot.draw(plot.select(ReportData(benchmarks=latest(benchmarks(load_runs([tmp_path]))))))
    *maps, scale = figure.axes
    assert not scale.get_title()  # the colour bar
    assert [axis.get_title() for axis in maps] == [
        *("block_shock, 1100, 2 ranks", "block_shock, 1100, 4 ranks", "block_shock, checkerboard, 4 ranks"),
        *("dense_tp_row, 2 ranks", "dense_tp_row, 4 ranks"),
    ]
    assert all(axis.has_data() for axis in figure.axes)


def test_the_laws_figure_has_the_measured_and_the_predicted_ratio(benchmarked):
    drawn = figures(benchmarked)["bench_law"].set_index(["world_size", "N", "B"])
    cells = by_cell(benchmarked, "law")
    assert len(drawn) == len(cells)
    for cell, found in cells.items():
        time = {name: line["p50_us"] for name, line in found.items()}
        row, summed = time["half_k_dense"], time["all_reduce"]
        factor = max(2 * time["sparse_half"] / time["dense"], 9 / 8)
        assert drawn.loc[cell, "predicted"] == pytest.approx((factor * row + summed) / (row + summed))
        assert drawn.loc[cell, "measured"] == pytest.approx(time["block_shock"] / time["dense_tp_row"])


def test_the_hosts_cost_is_shown_at_the_ends_of_the_sizes(write_run, tmp_path):
    sizes = [(N, B) for N in (64, 128, 256) for B in (16, 32, 64)]
    write_run("two", benchmark_rows(2, sizes))
    shown = figures(tmp_path)["bench_host"]
    assert set(zip(shown["N"], shown["B"], strict=True)) == {(64, 16), (64, 64), (256, 16), (256, 64)}
    assert (shown["host_us"] == shown["eager_p50_us"] - shown["p50_us"]).all()
    assert shown["host_us"].to_numpy() == pytest.approx(2 * shown["p50_us"].to_numpy())


def test_a_benchmark_that_goes_on_can_be_reported(write_run, tmp_path):
    for rows in (1, 4):  # the last cell's rows are not all there yet
        folder = write_run(f"started{rows}", [*benchmark_rows(1), *benchmark_rows(2)[:rows]], "running")
        assert set(targets(benchmarks(load_runs([folder])))["world_size"]) == ({1} if rows == 1 else {1, 2})
        assert not figures(folder)["bench_product"].empty


def test_runs_without_benchmarks_give_an_empty_table(write_run, record, tmp_path):
    write_run("a", [record("phase1_forward", "dense_single", forward=1.0)])
    table = benchmarks(load_runs([tmp_path]))
    assert table.empty
    assert targets(table).empty
