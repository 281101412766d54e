from __future__ import annotations

import pandas as pd
import pytest

from sweeps import load_runs
from sweeps.report.listings.forward import FORWARD
from sweeps.report.listings.overview import readable, short, the_same
from sweeps.report.tables.layers import drift, results
from sweeps.text import markdown, number


@pytest.fixture
def table_of(write_run, tmp_path):
    """`table_of(record, ...)`: the results of one run a record."""

    def build(*records):
        for i, one in enumerate(records):
            write_run(f"{len(list(tmp_path.rglob('status.json')))}-{i}", [one])
        return results(load_runs([tmp_path]))

    return build


def only(table, **wanted):
    for key, value in wanted.items():
        table = table[table[key] == value]
    assert len(table) == 1, f"{len(table)} rows for {wanted}"
    return table.iloc[0]


def test_speedup_is_over_dense_single_of_the_same_size(table_of, record):
    table = table_of(
        record("phase1_forward", "dense_single", forward=3.0),
        record("phase1_forward", "dense_single", forward=40.0, N=128, K=128),
        record("phase1_forward", "block_shock", forward=2.0, world_size=2),
        record("phase1_forward", "block_shock", forward=10.0, N=128, K=128),
    )
    assert only(table, method="block_shock", N=64)["speedup"] == pytest.approx(1.5)
    assert only(table, method="block_shock", N=128)["speedup"] == pytest.approx(4.0)
    assert only(table, method="dense_single", N=64)["speedup"] == 1.0


def blocks(line, spread=(0.98, 0.99, 1.0, 1.01, 1.02)):
    """The record with five blocks around each median."""
    for found in line["timings_ms"].values():
        found["blocks_p50_ms"] = [found["p50_ms"] * factor for factor in spread]
    return line


def test_speedups_have_the_intervals_of_both_sides_blocks(table_of, record):
    table = table_of(
        blocks(record("phase1_forward", "dense_tp_row", forward=3.0, world_size=2)),
        blocks(record("phase1_forward", "block_shock", forward=2.0, world_size=2)),
        record("phase1_forward", "block_shock", forward=2.0, world_size=4),
    )
    row = only(table, method="block_shock", world_size=2)
    assert row["speedup_row"] == pytest.approx(1.5)
    assert 1.5 * 0.98 / 1.02 <= row["speedup_row_lo"] < 1.5 < row["speedup_row_hi"] <= 1.5 * 1.02 / 0.98
    assert row[["forward_lo_ms", "forward_hi_ms"]].tolist() == pytest.approx([1.96, 2.04])
    assert row["forward_repeated"] == "5 blocks"
    assert only(table, world_size=4)[["speedup_row", "forward_lo_ms"]].isna().all()  # row-parallel ran on two ranks
    assert only(table, method="dense_tp_row")["speedup_row_lo"] != 1.0  # beside itself nothing was measured


def test_five_jobs_are_repeats_and_their_blocks_are_not_counted_again(table_of, record):
    lines = [blocks(record("phase1_forward", "dense_single", forward=t), (1.0,) * 5) for t in (1.0, 2.0, 3.0, 4.0, 5.0)]
    row = only(table_of(*lines))
    assert row["forward_repeated"] == "5 jobs"
    assert row[["forward_lo_ms", "forward_p50_ms", "forward_hi_ms"]].tolist() == [1.0, 3.0, 5.0]


def test_a_training_steps_speedups_compare_steps_trained_alike(table_of, record):
    given = {"training": {"optimizer": "sgd", "loss": "mse"}}
    table = table_of(
        record("phase3_train_step", "dense_tp_row", total_step=3.0, world_size=2, **given),
        record("phase3_train_step", "block_shock", total_step=2.0, world_size=2, **given),
        record("phase3_train_step", "block_shock", total_step=1.0, world_size=2),
    )
    assert only(table, method="block_shock", optimizer="sgd")["step_speedup_row"] == pytest.approx(1.5)
    assert only(table, method="block_shock", optimizer="")[["step_speedup_row"]].isna().all()


def test_the_rank_local_time_is_the_forward_without_its_collective_block_by_block(table_of, record):
    line = blocks(record("phase1_forward", "dense_tp_row", forward=3.0, allreduce=1.0, world_size=2))
    row = only(table_of(line))
    assert row["local_ms"] == pytest.approx([2 * factor for factor in (0.98, 0.99, 1.0, 1.01, 1.02)])
    assert row["forward_allreduce_p50_ms"] == 1.0


def test_there_is_no_rank_local_time_where_the_collective_was_not_timed_apart(table_of, record):
    table = table_of(
        record("phase1_forward", "dtensor_row", forward=3.0, world_size=2),
        record("phase1_forward", "dense_single", forward=3.0),
    )
    assert pd.isna(only(table, method="dtensor_row")["local_ms"])
    assert only(table, method="dense_single")["local_ms"] == [3.0]


@pytest.mark.parametrize(("compresses", "forward", "rest"), [("forward", 2.0, 1.0), ("opt_step", 6.0, 0.0)])
def test_compression_inside_the_forward_is_counted_once(table_of, record, compresses, forward, rest):
    times = {"total_step": 10.0, "forward": 6.0, "backward": 2.0, "opt_step": 1.0, "compress": 4.0}
    row = only(
        table_of(record("phase3_train_step", "torch_semi_structured", **times, layer={"compresses": compresses}))
    )
    assert row[["step_forward_p50_ms", "step_compress_p50_ms", "step_rest_p50_ms"]].tolist() == [forward, 4.0, rest]


@pytest.mark.parametrize(
    "other",
    [{"dtype": "bf16"}, {"device": "NVIDIA X"}, {"B": 16}, {"K": 32}, {"workload": "uniform"}, {"timing_mode": "none"}],
)
def test_there_is_no_speedup_over_a_dense_run_of_another_kind(table_of, record, other):
    table = table_of(
        record("phase1_forward", "dense_single", forward=3.0, **other),
        record("phase1_forward", "block_shock", forward=2.0),
    )
    assert only(table, method="block_shock")[["speedup"]].isna().all()


def test_fraction_and_throughput(table_of, record):
    row = only(table_of(record("phase1_forward", "block_shock", forward=0.5, floor=0.1, bound="link", B=8)))
    assert row["roofline_fraction"] == pytest.approx(0.2)
    assert row["bound"] == "link"
    assert row["tflops"] == pytest.approx(2 * 8 * 64 * 64 / 0.5e-3 / 1e12)


def test_the_error_is_phase_0s_and_a_failure_in_any_phase_fails_the_row(table_of, record):
    phase0 = record("phase0_correctness", "block_shock", error=1e-3, limit=2e-3)
    phase0["correctness"]["dW"] = {"relative_error": 1.0, "limit": 2e-3, "passed": False}
    table = table_of(phase0, record("phase1_forward", "block_shock", forward=1.0, error=9e-4, limit=1e-3))
    row = only(table)
    assert (row["y_relative_error"], row["y_error_limit"]) == (1e-3, 2e-3)
    assert (row["passed"], row["failed_checks"]) == (False, "dW")
    assert readable(table)["check"].tolist() == ["FAIL dW"]


def test_without_phase_0_the_phases_own_check_counts_and_the_worst_of_two_runs_is_shown(table_of, record):
    row = only(
        table_of(
            record("phase1_forward", "block_shock", forward=1.0, error=1e-3, limit=2e-3),
            record("phase1_forward", "block_shock", forward=2.0, error=3e-3, limit=2e-3),
        )
    )
    assert (row["y_relative_error"], row["passed"], row["failed_checks"]) == (3e-3, False, "Y")


def test_a_run_that_failed_its_check_has_a_row_and_no_time(table_of, record):
    table = table_of(record("phase1_forward", "block_shock", error=1.0, limit=1e-6))
    row = only(table)
    assert row["passed"] == False  # noqa: E712 - a numpy boolean
    assert row[["forward_p50_ms", "speedup", "roofline_fraction"]].isna().all()


def test_a_check_that_was_not_made_neither_passes_nor_fails(table_of, record):
    table = table_of(record("phase1_forward", "block_shock", forward=1.0))
    assert table["passed"].isna().tolist() == [True]
    assert readable(table)["check"].tolist() == [""]


def test_repetitions_become_a_median_and_kernels_and_masks_stay_apart(table_of, record):
    gather = {"layer": {"kernel": {"name": "gather"}}}
    table = table_of(
        *(record("phase1_forward", "block_shock", forward=t, **gather) for t in (1.0, 2.0, 9.0)),
        record("phase1_forward", "block_shock", forward=5.0, layer={"kernel": {"name": "cusparselt"}}),
        record("phase1_forward", "block_shock", forward=6.0, mask="checkerboard", **gather),
    )
    found = {(row["kernel"], row["mask"]): row["forward_p50_ms"] for _, row in table.iterrows()}
    mask = "complement_1100_0011"
    assert found == {("gather", mask): 2.0, ("cusparselt", mask): 5.0, ("gather", "checkerboard"): 6.0}


def test_dense_methods_have_one_row_whatever_the_mask(table_of, record):
    table = table_of(
        record("phase1_forward", "dense_single", forward=1.0),
        record("phase1_forward", "dense_single", forward=3.0, mask="checkerboard"),
    )
    assert only(table)["forward_p50_ms"] == 2.0


def test_a_training_step_and_what_its_parts_leave(table_of, record):
    regions = {"forward": 1.0, "backward": 2.0, "opt_step": 0.5, "compress": 0.25}
    row = only(
        table_of(
            record("phase3_train_step", "block_shock", **regions, total_step=4.0, memory_peak_bytes=2**21),
            record("phase1_forward", "block_shock", forward=0.9, memory_peak_bytes=2**20, weight_bytes=3 * 2**20),
        )
    )
    assert row["forward_p50_ms"] == 0.9  # phase 1's, not the one inside the step
    assert (row["step_p50_ms"], row["step_forward_p50_ms"], row["step_rest_p50_ms"]) == (4.0, 1.0, 0.25)
    assert (row["forward_memory_peak_bytes"], row["step_memory_peak_bytes"]) == (2**20, 2**21)


def test_the_readable_table_says_once_what_is_the_same_everywhere(table_of, record):
    table = table_of(
        record("phase1_forward", "dense_single", forward=0.01234, weight_bytes=2**20),
        record("phase1_forward", "block_shock", forward=0.5, weight_bytes=2**19),
    )
    shown = readable(table)
    assert "workload" not in shown
    assert the_same(table)["workload"] == "gaussian"
    assert shown["forward, ms"].tolist() == ["0.0123", "0.500"]
    assert shown["weights per rank, MiB"].tolist() == ["1.00", "0.500"]
    lines = markdown(shown).splitlines()
    assert len(lines) == 4
    assert len({line.count("|") for line in lines}) == 1


def test_the_short_table_keeps_the_largest_sizes(table_of, record):
    table = table_of(*(record("phase1_forward", "dense_single", forward=1.0, N=n, K=n) for n in (64, 128, 256)))
    shown, left_out = short(table, rows=2)
    assert shown["N"].tolist() == ["128", "256"]
    assert left_out == 1


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123"), (1.0, "1.00"), (12.34, "12.3"), (123.4, "123"), (1234.6, "1235"), (0.0, "0")],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_drift_is_a_row_a_step(write_run, record, tmp_path):
    steps = [{"mode": "apply", "step": i, "output_error": i * 1e-3, "dense_output_error": i * 1e-4} for i in (1, 2, 3)]
    write_run("a", [record("phasex_drift", "block_shock", drift=step) for step in steps])
    curves = drift(load_runs([tmp_path]))
    assert curves["step"].tolist() == [1, 2, 3]
    assert curves["error"].tolist() == [1e-3, 2e-3, 3e-3]
    assert results(load_runs([tmp_path]))["forward_p50_ms"].isna().all()


def test_pairs_of_other_hidden_features_or_pairings_are_rows_of_their_own(table_of, record):
    def pair(forward: float, hidden: int, asked: str, used: str) -> dict:
        options = {"name": "mlp_block", "activation": "gelu", "gated": False, "hidden": hidden, "pairing": asked}
        more = {"layer": {"pairing": used}, "workload_config": options}
        return record("phase1_forward", "dense_tp_row", forward=forward, workload="mlp_block", **more)

    model = {"workload": "gpt2", "workload_config": {"name": "gpt2", "layers": "mlp"}}
    with_attention = {"workload": "gpt2", "workload_config": {"name": "gpt2", "layers": "mlp+attention"}}
    table = table_of(
        pair(1.0, 256, "auto", "column_row"),
        pair(2.0, 512, "auto", "column_row"),
        pair(3.0, 256, "layers", "layers"),
        record("phase1_forward", "dense_tp_row", forward=9.0, **model),
        record("phase1_forward", "dense_tp_row", forward=12.0, **with_attention),
        record("phase1_forward", "dense_tp_row", forward=10.0),
    )
    assert dict(zip(table["workload"], table["forward_p50_ms"], strict=True)) == {
        "mlp_block (hidden 256, gelu)": 1.0,
        "mlp_block (hidden 512, gelu)": 2.0,
        "mlp_block (hidden 256, gelu, layers)": 3.0,
        "gpt2 (its MLPs over ranks)": 9.0,
        "gpt2 (its MLPs and attention over ranks)": 12.0,
        "gaussian": 10.0,
    }
    computed = dict(zip(table["workload"], table["tflops"].notna(), strict=True))  # of one matmul
    assert [name for name, known in computed.items() if known] == ["gaussian"]


def test_a_wrong_gradient_of_one_of_several_weights_fails_the_row(table_of, record):
    verdict = {"relative_error": 1.0, "limit": 2.0, "passed": True}
    wrong = {"Y": verdict, "dW_up": verdict, "dW_down": {**verdict, "passed": False}}
    row = only(table_of(record("phase0_correctness", "block_shock", correctness=wrong)), method="block_shock")
    assert (row["passed"], row["failed_checks"]) == (False, "dW_down")


def test_a_pruning_masks_rows_say_what_share_of_the_energy_is_kept(table_of, record):
    table = table_of(
        record("phase1_forward", "block_shock", forward=1.0, mask="window_4of6", energy_kept=0.944, world_size=2),
        record("phase1_forward", "block_shock", forward=3.0, mask="window_4of6", energy_kept=0.946, world_size=2),
        record("phase1_forward", "dense_tp_row", forward=2.0, mask="window_4of6", energy_kept=0.945, world_size=2),
        record("phase1_forward", "dense_tp_row", forward=4.0, world_size=2),
    )
    found = dict(zip(zip(table["method"], table["mask"], strict=True), table["forward_p50_ms"], strict=True))
    assert found == {
        ("block_shock", "window_4of6 (keeps 94% of the energy)"): 2.0,
        ("dense_tp_row", "(keeps 94% of the energy)"): 2.0,
        ("dense_tp_row", ""): 4.0,
    }


def test_a_layer_that_needs_one_gpu_is_compared_with_the_dense_one_next_to_those_on_two(table_of, record):
    pruned = {"mask": "window_4of6", "energy_kept": 0.944}
    table = table_of(
        record("phase1_forward", "slide_sparse", forward=1.5, world_size=1, **pruned),
        record("phase1_forward", "dense_single", forward=2.0, world_size=1, **pruned),
        record("phase1_forward", "dense_tp_row", forward=1.1, world_size=2, **pruned),
        record("phase1_forward", "block_shock", forward=1.0, world_size=2, **pruned),
    )
    speedups = dict(zip(table["method"], table["speedup"], strict=True))
    assert speedups["slide_sparse"] == pytest.approx(2.0 / 1.5)
    assert speedups["block_shock"] == pytest.approx(2.0)
    ranks = dict(zip(table["method"], table["world_size"], strict=True))
    assert ranks == {"slide_sparse": 1, "dense_single": 1, "dense_tp_row": 2, "block_shock": 2}
    assert pd.isna(only(table, method="slide_sparse")["speedup_row"])
    rows = table.rename(columns={"forward_folder": "folder"})
    assert "on one GPU" in FORWARD.remark(rows)
    assert "on one GPU" not in FORWARD.remark(rows[rows["method"] != "slide_sparse"])


def test_a_pairs_local_time_leaves_its_reduce_scatter_out(table_of, record):
    times = {"allreduce": 1.0, "reducescatter": 2.0}
    line = record("phase1_forward", "block_shock", forward=10.0, world_size=2)
    line["timings_ms"] |= {name: {"count": 3, "p50_ms": value} for name, value in times.items()}
    assert only(table_of(line), method="block_shock")["local_ms"] == [7.0]
