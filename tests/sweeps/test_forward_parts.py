"""Forwards next to what their parts predict, from records written by hand; predictions are worked out in this file."""

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sweeps import load_runs
from sweeps.report.findings.phase_diagram import find
from sweeps.report.listings.phase_diagram import FORWARD_PARTS, PHASE_DIAGRAM
from sweeps.report.tables.benchmarks import benchmarks
from sweeps.report.tables.diagram.forward_parts import forward_parts, predict
from sweeps.report.tables.diagram.phase_diagram import phase_diagram
from sweeps.report.tables.report_data import read_report_data

RATES = {"copy_gbs": 4000.0, "matmul_tflops": 700.0, "link_gbs": 350.0}


@given(st.floats(0.1, 1000), st.floats(0.1, 1000), st.floats(0, 5), st.integers(1, 8))
def test_the_prediction_is_when_the_last_sum_of_a_pipeline_ends(matmul, collective, empty, chunks):
    matmuls_end = sums_end = empty
    for _ in range(chunks):
        matmuls_end += matmul / chunks
        sums_end = max(matmuls_end, sums_end) + collective / chunks
    assert predict(matmul + empty, collective + empty, empty, chunks) == pytest.approx(sums_end)


def line(record, name, p50, matmul, collective, chunks=1, inside=None, sm=1755, matmul_sm=1755, empty=2.0, **more):
    """A forward's record, its times in µs. Each of its rounds is 1% off the median."""
    method, _, variant = name.partition("/")
    mask = {"4of6": "window_4of6", "1100": "complement_1100_0011"}.get(variant, "")
    times = {"empty": empty, "matmul": matmul, "collective": collective, "inside": inside}
    parts = {"chunks": chunks, "matmul_clocks": {"sm_mhz": matmul_sm}}
    for part, time in times.items():
        if time is not None:
            parts |= {f"{part}_p50_us": time, f"{part}_rounds_us": [time, time]}
    about = {"part": "forward", "method": method, "variant": variant, "mask": mask, "kernel": "", "dtype": "bf16"}
    about |= {"N": 12288, "K": 12288, "B": 1024, "world_size": 2, "device": "Hand GPU", "baseline": "dtensor_row"}
    about |= {"p50_us": p50, "rounds_us": [0.99 * p50, 1.01 * p50], "timestamp_unix": 1.0, "parts": parts}
    about |= {"clocks": {"sm_mhz": sm}, "roofline": {"floor_ms": 0.05, "bound": "link"}, **RATES, **more}
    return record("benchmark", **about)


def rows_of(folder):
    return forward_parts(benchmarks(load_runs([folder]))).set_index("contender")


# Of each: what was measured, what follows from it, and the explanation.
CELLS = {
    "one after the other": ({"p50": 84.0, "matmul": 52.0, "collective": 32.0}, 2 + 50 + 30, ""),
    "the matmuls bound": ({"p50": 226.0, "matmul": 202.0, "collective": 82.0, "chunks": 4}, 2 + 4 * 50 + 20, ""),
    "the link bounds": ({"p50": 215.0, "matmul": 82.0, "collective": 202.0, "chunks": 4}, 2 + 20 + 4 * 50, ""),
    "clock": (
        {"p50": 1340.0, "matmul": 1002.0, "collective": 102.0, "sm": 1410, "inside": 102.0},
        2 + 1000 + 100,
        "clock: SM at 1410 MHz, at 1755 MHz while the matmul was timed",
    ),
    "a clock that does not account for it": (
        {"p50": 1500.0, "matmul": 1002.0, "collective": 102.0, "sm": 1700, "inside": 102.0},
        2 + 1000 + 100,
        "matmul: 1400.0 µs in the forward and 1002.0 µs alone",
    ),
    "launch": (
        {"p50": 25.5, "matmul": 12.0, "collective": 12.0, "inside": 12.0},
        2 + 10 + 10,
        "launch overhead: +3.5 µs; an empty step takes 2.0 µs, and there are 2 waits",
    ),
    "collective": (
        {"p50": 180.0, "matmul": 102.0, "collective": 52.0, "inside": 80.0},
        2 + 100 + 50,
        "collective: 80.0 µs in the forward and 52.0 µs alone",
    ),
    "a collective that is faster there": (
        {"p50": 135.0, "matmul": 102.0, "collective": 52.0, "inside": 34.0},
        2 + 100 + 50,
        "collective: 34.0 µs in the forward and 52.0 µs alone",
    ),
    "matmul": (
        {"p50": 180.0, "matmul": 102.0, "collective": 52.0, "inside": 52.0},
        2 + 100 + 50,
        "matmul: 130.0 µs in the forward and 102.0 µs alone",
    ),
    "overlap": (
        {"p50": 262.0, "matmul": 202.0, "collective": 82.0, "chunks": 2, "inside": 62.0},
        2 + 2 * 100 + 40,
        "overlap: 62.0 µs of the collective are not hidden, 42.0 µs by the pipeline",
    ),
    "contention": (
        {"p50": 292.0, "matmul": 202.0, "collective": 82.0, "chunks": 2, "inside": 44.0},
        2 + 2 * 100 + 40,
        "matmul: 250.0 µs in the forward, where sums run at the same time, and 202.0 µs alone",
    ),
    "nothing recorded": ({"p50": 200.0, "matmul": 102.0, "collective": 52.0}, 2 + 100 + 50, "not located"),
    "spread": (
        {"p50": 162.0, "matmul": 102.0, "collective": 52.0, "rounds_us": [155.0, 162.0, 190.0]},
        2 + 100 + 50,
        "spread: 1.02 to 1.25 of the prediction",
    ),
}


@pytest.mark.parametrize("name", CELLS)
def test_a_forward_is_compared_with_its_parts_and_a_miss_names_the_part(write_run, record, tmp_path, name):
    measured, predicted, why = CELLS[name]
    one = line(record, "dense_tp_row", **measured)
    if "rounds_us" in measured:
        for part in ("empty", "matmul", "collective"):
            one["parts"][f"{part}_rounds_us"] *= 2
            one["parts"][f"{part}_rounds_us"].pop()
    write_run("a", [one])
    row = rows_of(tmp_path).loc["dense_tp_row"]
    assert row["predicted_us"] == pytest.approx(predicted)
    assert row["of_predicted"] == pytest.approx(measured["p50"] / predicted)
    assert (row["within"], row["why"]) == (why == "", why)
    assert row["bound"] == "link"


def test_over_processes_the_median_counts_and_their_extremes_are_given(write_run, record, tmp_path):
    for number, p50 in enumerate((82.0, 98.4, 84.0)):
        own = line(record, "dense_tp_row", p50, 52.0, 32.0, timestamp_unix=float(number))
        config = write_run(f"r{number}", [own]) / "config.yaml"
        config.write_text(config.read_text().replace("name: by_hand", f"name: by_hand\n  repeat: {number}"))
    row = rows_of(tmp_path).loc["dense_tp_row"]
    assert (row["of_predicted_lo"], row["of_predicted_hi"]) == (pytest.approx(1.0), pytest.approx(1.2))
    assert row["of_predicted"] == pytest.approx(84 / 82)
    assert row["within"]


def three_forwards(record):
    """Halves miss by their collective, windows by nothing that was recorded, dense is as predicted."""
    yield line(record, "dense_tp_row", 153.0, 102.0, 52.0, inside=52.0)
    yield line(record, "block_shock/1100", 180.0, 102.0, 52.0, inside=80.0)
    yield line(record, "block_shock/4of6", 120.0, 60.0, 52.0)


def test_a_cell_is_within_five_percent_if_both_of_its_forwards_are(write_run, record, tmp_path):
    write_run("a", list(three_forwards(record)))
    cells = phase_diagram(load_runs([tmp_path])).set_index("family")
    assert cells["within"].tolist() == [False, False]
    assert cells["dense_of_predicted"].tolist() == pytest.approx([153 / 152] * 2)
    assert cells.loc["halves of dense weights", "why"].startswith("collective: 80.0")
    own = [*list(three_forwards(record))[:1], line(record, "block_shock/1100", 150.0, 102.0, 52.0)]
    write_run("later", [one | {"timestamp_unix": 2.0} for one in own])
    halves = phase_diagram(load_runs([tmp_path / "sweep" / "later"])).iloc[0]
    assert halves["within"] is True


def test_the_finding_counts_cells_within_located_and_not(write_run, record, tmp_path):
    write_run("a", list(three_forwards(record)))
    found = find(read_report_data([tmp_path]))
    assert found.sentence == (
        "4:6 windows of pruned weights are faster than the best dense method at 1 of 1 size (0.78 to 0.78 times its "
        "time); halves of dense weights at 0 of 1 size (1.18 to 1.18); 0 of 2 cells within 5% of what their measured "
        "parts predict, 1 miss it in a part that the table names, 1 in none that was timed."
    )
    assert found.numbers["misses lie in"].tolist() == ["not located 1", "collective 1"]


def test_the_report_lists_cells_and_forwards_with_their_parts(write_run, record, tmp_path):
    write_run("a", list(three_forwards(record)))
    data = read_report_data([tmp_path])
    cells = PHASE_DIAGRAM.show(PHASE_DIAGRAM.select(data))
    assert cells["both within 5%"].tolist() == ["no", "no"]
    assert cells["of dense parts"].tolist() == ["1.007", "1.007"]
    rows = FORWARD_PARTS.select(data)
    shown = FORWARD_PARTS.show(rows).set_index("method")
    assert set(shown.index) == {"dense_tp_row", "block_shock/1100", "block_shock/4of6"}
    assert shown.loc["block_shock/1100", "the miss lies in"] == "collective: 80.0 µs in the forward and 52.0 µs alone"
    assert shown.loc["dense_tp_row", ["predicted, µs", "measured / predicted"]].tolist() == ["152", "1.007"]
    assert shown["max(compute, memory, link), µs"].tolist() == ["50.0"] * 3
    assert FORWARD_PARTS.remark(rows) == " Within 5%: 1 of 3; located in a part: 1; not: 1."
    made = FORWARD_PARTS.write(data, tmp_path)
    assert made.files == (f"{tmp_path.name}/forward_parts.csv", f"{tmp_path.name}/forward_parts.md")
    assert len(pd.read_csv(tmp_path / "forward_parts.csv")) == 3


def test_records_whose_parts_were_not_timed_have_a_diagram_without_predictions(write_run, record, tmp_path):
    rows = [{k: v for k, v in row.items() if k != "parts"} for row in three_forwards(record)]
    write_run("old", rows)
    cells = phase_diagram(load_runs([tmp_path]))
    assert cells["within"].tolist() == [None, None]
    data = read_report_data([tmp_path])
    assert FORWARD_PARTS.select(data).empty
    assert "within" not in find(data).sentence
