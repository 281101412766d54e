"""Clocks stand next to times, and what was timed at a clock held down is marked, in words, wherever it is shown."""

import re

import pandas as pd
import pytest

from sweeps import load_runs
from sweeps.report.command import write_report
from sweeps.report.figures.benchmarks.benchmark_maps import OVER_ROW
from sweeps.report.figures.benchmarks.phase_diagram import PHASE_DIAGRAM
from sweeps.report.listings.benchmarks import BENCHMARKS
from sweeps.report.listings.forward import FORWARD
from sweeps.report.listings.phase_diagram import PHASE_DIAGRAM as CELLS
from sweeps.report.listings.training_step import TRAINING_STEP
from sweeps.report.tables.report_data import read_report_data

FREE = {"sm_mhz": 1980.0, "memory_mhz": 3201.0, "power_w": 480.2, "temperature_c": 44.0, "samples": 5}
FREE |= {"power_cap": 0.0, "slowdown": 0.0, "throttled": ""}
CAPPED = FREE | {"sm_mhz": 1410.0, "power_w": 699.6, "power_cap": 0.6, "throttled": "power cap"}
HOT = FREE | {"sm_mhz": 1155.0, "temperature_c": 89.0, "power_cap": 0.2, "slowdown": 0.4}
HOT |= {"throttled": "power cap, thermal slowdown"}
UNKNOWN = dict.fromkeys(FREE) | {"samples": 0}
HELD = "clock held down by"


@pytest.fixture
def layers(write_run, record, tmp_path):
    """A forward and a training step at each state of the clock."""
    states = {"dense_single": FREE, "dense_tp_row": CAPPED, "block_shock": HOT}
    for method, state in states.items():
        times = {"world_size": 1 if method == "dense_single" else 2, "device": "Hand GPU", "clocks": state}
        write_run(f"f_{method}", [record("phase1_forward", method, forward=1.0, floor=0.5, **times)])
        write_run(f"t_{method}", [record("phase3_train_step", method, forward=1.0, total_step=3.0, **times)])
    return tmp_path


@pytest.mark.parametrize("listing", [FORWARD, TRAINING_STEP])
def test_tables_of_layers_have_clock_power_and_temperature_next_to_each_time(layers, listing):
    rows = listing.select(read_report_data([layers]))
    shown = listing.show(rows).set_index("method")
    columns = ["SM, MHz", "memory, MHz", "W", "°C", HELD]
    assert shown.loc["dense_single", columns].tolist() == ["1980", "3201", "480", "44", "nothing"]
    assert shown.loc["dense_tp_row", columns].tolist() == ["1410", "3201", "700", "44", "power cap (60%)"]
    assert shown.loc["block_shock", HELD] == "power cap (20%), thermal slowdown (40%)"
    assert listing.remark(rows).endswith(
        " While timing, the clock was held down by the power cap in 1 and by a thermal or hardware slowdown in 1 of 3 "
        "rows."
    )


def test_figures_of_layers_say_it_in_their_captions(layers):
    page = write_report([layers], layers / "out").read_text()
    for part in (page.split('id="throughput"')[1], page.split('id="training_step"')[1]):
        assert "the clock was held down by the power cap in 1" in re.sub(r"\s+", " ", part)
    data = pd.read_csv(layers / "out" / "figures" / "throughput.csv")
    assert set(data["forward_throttled"].dropna()) == {"power cap", "power cap, thermal slowdown"}


def test_throttled_runs_are_told_from_others_in_pandas(layers, write_run, record):
    write_run("cpu", [record("phase1_forward", "dense_single", forward=1.0, clocks=UNKNOWN)])
    write_run("before", [record("phase1_forward", "dense_single", forward=1.0, clocks={"sm_mhz": 1980.0})])
    runs = load_runs([layers])
    assert sorted(runs.loc[runs["clocks.slowdown"] > 0, "method"]) == ["block_shock", "block_shock"]
    assert sorted(set(runs.loc[runs["clocks.power_cap"] > 0, "method"])) == ["block_shock", "dense_tp_row"]
    assert runs["clocks.throttled"].isna().sum() == 2


def test_without_nvml_tables_have_no_such_columns_and_captions_say_nothing(write_run, record, tmp_path):
    write_run("cpu", [record("phase1_forward", "dense_single", forward=1.0, clocks=UNKNOWN)])
    rows = FORWARD.select(read_report_data([tmp_path]))
    assert not {HELD, "SM, MHz", "W"} & set(FORWARD.show(rows))
    assert FORWARD.remark(rows) == "."


def benchmark(record, method, mask, p50, state, N, B, **more):
    about = {"part": "forward", "variant": mask[-4:] if mask else "", "mask": mask, "kernel": "", "dtype": "bf16"}
    about |= {"N": N, "K": N, "B": B, "world_size": 2, "device": "Hand GPU", "baseline": "dtensor_row"}
    about |= {"copy_gbs": 4000.0, "matmul_tflops": 700.0, "link_gbs": 350.0, "p50_us": p50, "rounds_us": [p50, p50]}
    return record("benchmark", method, **about, clocks=state, timestamp_unix=1.0, **more)


@pytest.fixture
def cells(write_run, record, tmp_path):
    """Cells of two sizes by two: one with windows at the power cap, one with a dense method that is hot."""
    for N, B in ((3072, 16), (3072, 8192), (12288, 16), (12288, 8192)):
        ours, dense = (CAPPED if (N, B) == (12288, 8192) else FREE), (HOT if (N, B) == (3072, 8192) else FREE)
        rows = [benchmark(record, "block_shock", "window_4of6", 90.0, ours, N, B)]
        rows += [benchmark(record, method, "", 100.0, dense, N, B) for method in ("dense_tp_row", "dtensor_row")]
        write_run(f"{N}-{B}", rows)
    return tmp_path


def test_the_phase_diagram_marks_cells_of_which_either_time_was_throttled(cells):
    data = read_report_data([cells])
    table = CELLS.show(CELLS.select(data)).set_index(["N", "B"])
    assert table.loc[("12288", "8192"), HELD] == "power cap (60%)"
    assert table.loc[("3072", "8192"), HELD] == "power cap (20%), thermal slowdown (40%)"
    assert table.loc[("3072", "16"), HELD] == "nothing"
    figure = PHASE_DIAGRAM.draw(PHASE_DIAGRAM.select(data))
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert sum("†" in text for text in texts) == 1
    assert sum("‡" in text for text in texts) == 1
    legend = [text.get_text() for one in figure.legends for text in one.get_texts()]
    assert {"† timed at the power cap", "‡ timed during a thermal or hardware slowdown"} <= set(legend)


def test_maps_of_benchmarks_mark_them_and_explain_the_mark(cells):
    [spec] = [spec for spec in OVER_ROW if spec.name == "bench_forward_over_row"]
    figure = spec.draw(spec.select(read_report_data([cells])))
    texts = [text.get_text() for axis in figure.axes for text in axis.texts]
    assert sum("†" in text for text in texts) == 1
    assert sum("‡" in text for text in texts) == 2  # DTensor's own time, and Block-Shock's over a time that was
    assert any("† timed at the power cap" in axis.get_xlabel() for axis in figure.axes)


def test_the_table_of_benchmarks_has_them_and_over_processes_the_worst_counts(write_run, record, tmp_path):
    for number, state in enumerate((FREE, CAPPED, HOT)):
        own = benchmark(record, "dtensor_row", "", 100.0, state, 3072, 16) | {"timestamp_unix": float(number)}
        config = write_run(f"r{number}", [own]) / "config.yaml"
        config.write_text(config.read_text().replace("name: by_hand", f"name: by_hand\n  repeat: {number}"))
    [row] = BENCHMARKS.show(BENCHMARKS.select(read_report_data([tmp_path]))).to_dict("records")
    assert (row["SM, MHz"], row["°C"]) == ("1410", "44")
    assert row[HELD] == "power cap (60%), thermal slowdown (40%)"
