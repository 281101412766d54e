"""The phase diagram, from synthetic records: their times follow a formula of this file and were measured nowhere."""

import itertools

import numpy as np
import pytest

from sweeps import load_runs
from sweeps.report.figures.benchmarks.phase_diagram import PHASE_DIAGRAM
from sweeps.report.tables.diagram.phase_diagram import FAMILIES, HALVES, phase_diagram, s_even
from sweeps.report.tables.report_data import read_report_data

RATES = {"copy_gbs": 4000.0, "matmul_tflops": 700.0, "link_gbs": 350.0}


def seconds(width, kept, s, ranks, N, B):
    """max(compute, memory, link) of a bf16 forward whose rank has `width` of W's columns, `kept` of every four."""
    columns = width * N / ranks
    compute = 2 * B * N * columns / (700e12 * s)
    metadata = N * columns * kept / 4 * 2 / 8 if kept < 4 else 0  # two bits of each kept value
    memory = (B * columns * 2 + N * columns * kept / 4 * 2 + metadata + B * N * 2) / 4000e9
    return max(compute, memory, 2 * (ranks - 1) / ranks * B * N * 2 / 350e9)


@pytest.mark.parametrize(
    ("family", "width", "ranks"),
    [(HALVES, 2, 2), (HALVES, 2, 4), (FAMILIES["window_4of6"], 4 / 3, 2), (FAMILIES["window_6of8"], 1.5, 3)],
)
@pytest.mark.parametrize(("N", "B"), [(3072, 16), (3072, 8192), (12288, 1024), (18432, 16), (18432, 4096)])
def test_the_speedup_that_breaks_even_is_the_least_of_a_search(family, width, ranks, N, B):
    tried = np.arange(0.01, 3, 0.001)
    dense = seconds(1, 4, 1, ranks, N, B)
    enough = [s for s in tried if seconds(width, 2, s, ranks, N, B) <= dense * (1 + 1e-12)]
    found = float(s_even(family, ranks, N, N, B, 2, RATES))
    if not enough:
        assert found == np.inf
    else:
        assert found == pytest.approx(enough[0], abs=0.0011) or found < tried[0]


def test_where_arithmetic_bounds_it_is_the_share_of_the_columns():
    quick = {"copy_gbs": 1e9, "matmul_tflops": 1.0, "link_gbs": 1e9}
    for family, s in ((HALVES, 2), (FAMILIES["window_4of6"], 4 / 3), (FAMILIES["window_6of8"], 3 / 2)):
        assert float(s_even(family, family.ranks, 4096, 4096, 4096, 2, quick)) == pytest.approx(s)


def lines(record, N, B, times, **more):
    """A benchmark job's records; `times` by contender: p50 of each round."""
    masks = {"4of6": "window_4of6", "1100": "complement_1100_0011", "random": "random_2of4"}
    for name, rounds in times.items():
        method, _, variant = name.partition("/")
        about = {"method": method, "variant": variant, "mask": masks.get(variant, ""), "N": N, "K": N, "B": B}
        about |= {"part": "forward", "baseline": "dtensor_row", "kernel": "", "dtype": "bf16", "world_size": 2}
        about |= {"p50_us": float(np.median(rounds)), "rounds_us": list(rounds), "timestamp_unix": 1.0} | RATES | more
        yield record("benchmark", **about)


def test_a_cell_is_judged_against_its_fastest_dense_method_in_every_round(write_run, record, tmp_path):
    times = {
        "dense_tp_row": [100.0, 110.0, 105.0],
        "dtensor_column": [120.0, 90.0, 130.0],
        "block_shock/1100": [106.0, 115.0, 108.0],
        "block_shock/random": [150.0, 150.0, 150.0],
        "block_shock/4of6": [80.0, 90.0, 109.0],
    }
    write_run("a", list(lines(record, 12288, 1024, times)))
    rows = phase_diagram(load_runs([tmp_path])).set_index("family")
    halves, windows = rows.loc["halves of dense weights"], rows.loc["4:6 windows of pruned weights"]
    assert (halves["contender"], halves["dense"]) == ("block_shock/1100", "dense_tp_row")
    assert (halves["ratio"], halves["decided"]) == (pytest.approx(108 / 105), "slower")
    assert (windows["ratio_lo"], windows["ratio_hi"]) == (pytest.approx(0.8), pytest.approx(109 / 105))
    assert windows["decided"] == "undecided"


def test_dense_row_parallel_in_fp8_is_no_rival_and_stands_next_to_them(write_run, record, tmp_path):
    times = {"dense_tp_row": [100.0, 100.0], "dense_tp_row_fp8": [60.0, 60.0], "block_shock/4of6": [90.0, 90.0]}
    write_run("a", list(lines(record, 12288, 1024, times)))
    [row] = phase_diagram(load_runs([tmp_path])).to_dict("records")
    assert (row["dense"], row["ratio"], row["decided"]) == ("dense_tp_row", 0.9, "faster")
    assert (row["fp8_us"], row["ratio_fp8"]) == (60.0, 1.5)
    write_run("b", list(lines(record, 3072, 16, {k: v for k, v in times.items() if "fp8" not in k})))
    assert np.isnan(phase_diagram(load_runs([tmp_path / "sweep" / "b"])).iloc[0]["ratio_fp8"])


def test_of_several_processes_all_must_agree(write_run, record, tmp_path):
    for number, ours in enumerate((90.0, 80.0, 95.0)):
        times = {"dense_tp_row": [100.0, 100.0], "block_shock/4of6": [ours, 150.0 - ours]}
        rows = list(lines(record, 12288, 1024, times, timestamp_unix=float(number)))
        rows[1]["p50_us"] = ours
        config = write_run(f"r{number}", rows) / "config.yaml"
        config.write_text(config.read_text().replace("name: by_hand", f"name: by_hand\n  repeat: {number}"))
    [row] = phase_diagram(load_runs([tmp_path])).to_dict("records")
    assert (row["ratio"], row["ratio_lo"], row["ratio_hi"]) == (0.9, 0.8, 0.95)
    assert row["decided"] == "faster"


def test_the_figure_draws_every_family_and_its_title_says_where_it_is_faster(write_run, record, tmp_path):
    for N, B in itertools.product((3072, 12288), (16, 1024, 8192)):
        row = 1e6 * seconds(1, 4, 1, 2, N, B)
        times = {
            "dense_tp_row": [row, row],
            "block_shock/1100": [1.04 * row, 1.03 * row],
            "block_shock/4of6": [1e6 * seconds(4 / 3, 2, 1.46, 2, N, B) * f for f in (1.01, 1.02)],
        }
        write_run(f"{N}-{B}", list(lines(record, N, B, times)))
    data = PHASE_DIAGRAM.select(read_report_data([tmp_path]))
    assert len(data) == 12
    assert data.groupby("family")["decided"].agg(list)["halves of dense weights"] == ["slower"] * 6
    figure = PHASE_DIAGRAM.draw(data)
    assert "halves of dense weights are faster at 0 of 6 sizes" in figure.get_suptitle().replace("\n", " ")
    assert sum(axis.get_xlabel() == "B" for axis in figure.axes) == 2


def test_records_without_rates_have_no_phase_diagram(write_run, record, tmp_path):
    times = {"dense_tp_row": [1.0], "block_shock/1100": [1.0]}
    rows = [{k: v for k, v in row.items() if k not in RATES} for row in lines(record, 64, 16, times)]
    write_run("old", rows)
    assert PHASE_DIAGRAM.select(read_report_data([tmp_path])).empty
