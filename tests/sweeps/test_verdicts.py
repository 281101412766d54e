"""Verdicts and the law on records whose answer is known."""

from __future__ import annotations

import pytest

from sweeps import load_runs
from sweeps.report.figures.hypotheses import intervals, select
from sweeps.report.tables.law import AGREES, FASTER, OPEN, SLOWER, law
from sweeps.report.tables.layers import drift, results
from sweeps.report.tables.report_data import ReportData
from sweeps.report.tables.verdicts import EQUIVALENT, REFUTED, SUPPORTED, UNDECIDED, verdicts
from sweeps.text import span

SPARSE = {"layer": {"kernel": {"name": "cusparselt"}}}
TIGHT = (0.99, 1.0, 1.0, 1.0, 1.01)
WIDE = (0.5, 0.8, 1.0, 1.3, 2.0)


@pytest.fixture
def judge(write_run, record, tmp_path):
    """`judge()` of what `judge.add("phase1_forward", "block_shock", 2.0, ...)` has written: {name: verdict}."""

    class Judge:
        def add(self, phase, method, time, spread=TIGHT, *, region="forward", ranks=2, error=None, **given):
            line = record(phase, method, **{region: time}, world_size=ranks, **given)
            for name, found in line["timings_ms"].items():
                if spread is not None:
                    factors = spread if name == region else [1.0] * 5
                    found["blocks_p50_ms"] = [found["p50_ms"] * factor for factor in factors]
            if error is not None:
                line["correctness"] = {
                    "Y": {
                        "relative_error": error,
                        "limit": 1.7e-3,
                        "dense_relative_error": 1e-3,
                        "passed": error < 1.7e-3,
                    }
                }
            write_run(f"{len(list(tmp_path.rglob('status.json')))}", [line])

        def runs(self):
            return load_runs([tmp_path])

        def __call__(self):
            return {found.title: found for found in verdicts(results(self.runs()), drift(self.runs()))}

    return Judge()


def three(judge, ours, row=1.0, column=1.2, spread=TIGHT, **size):
    judge.add("phase1_forward", "dense_tp_row", row, spread, **size)
    judge.add("phase1_forward", "dense_tp_column", column, spread, **size)
    judge.add("phase1_forward", "block_shock", ours, spread, **SPARSE, **size)


def test_h1_is_supported_by_one_size_at_which_it_is_faster_than_the_faster_dense_method(judge):
    three(judge, ours=1.5)
    three(judge, ours=0.8, N=128)
    verdict = judge()["H1"]
    assert verdict.outcome == SUPPORTED
    assert "1 of 2" in verdict.because
    assert verdict.evidence["ratio"].tolist() == pytest.approx([1.5, 0.8])
    assert verdict.evidence["rival_method"].unique().tolist() == ["dense_tp_row"]
    assert "Hand CPU, gloo, ranks 2" in verdict.hardware


def test_faster_than_row_parallel_is_not_enough_where_column_parallel_is_faster_still(judge):
    three(judge, ours=0.9, column=0.7)
    assert judge()["H1"].outcome == REFUTED


def test_h1_is_refuted_where_every_size_is_slower_and_open_where_an_interval_holds_one(judge):
    three(judge, ours=1.5)
    assert judge()["H1"].outcome == REFUTED
    three(judge, ours=1.1, spread=WIDE, N=128)
    assert judge()["H1"].outcome == UNDECIDED


def test_h1_of_ties_is_equivalent_and_with_a_slower_size_refuted(judge):
    three(judge, ours=1.005)
    verdict = judge()["H1"]
    assert verdict.outcome == EQUIVALENT
    assert "the same within 2% at 1 of 1" in verdict.because
    three(judge, ours=1.1, N=128)
    verdict = judge()["H1"]
    assert verdict.outcome == REFUTED
    assert "nowhere faster by more than 2%: slower at 1 of 2, the same within 2% at 1 of 2" in verdict.because


def test_an_interval_that_holds_one_decides_h1_where_it_rules_out_that_two_percent_are_gained(judge):
    three(judge, ours=1.02, spread=[0.99, 0.995, 1.0, 1.005, 1.01])  # from 0.99 of the rival's, at least, to 1.04
    assert judge()["H1"].outcome == REFUTED


def test_nothing_is_decided_from_times_that_were_not_repeated(judge):
    three(judge, ours=0.1, spread=None)
    verdict = judge()["H1"]
    assert verdict.outcome == UNDECIDED
    assert "not repeated 5 times" in verdict.because


def test_five_jobs_are_repeats_as_five_blocks_are(judge):
    for seed in range(5):
        three(judge, ours=0.8 + 0.001 * seed, spread=None, seed=seed)
    assert judge()["H1"].outcome == SUPPORTED


def test_one_rank_alone_decides_nothing(judge):
    judge.add("phase1_forward", "dense_single", 1.0, ranks=1)
    judge.add("phase1_forward", "block_shock", 0.1, ranks=1, **SPARSE)
    assert {name: found.outcome for name, found in judge().items()} == dict.fromkeys(
        ("premise", "H1", "H2", "H3"), UNDECIDED
    )


def training(judge, ours=1.0, memory=50, packed=True, **size):
    sizes = {"weight_bytes": 10, "gradient_bytes": 10}
    dense = [("dense_single", 1, 2.0, 100), ("dense_tp_row", 2, 1.0, 50), ("block_shock", 2, ours, memory)]
    for method, ranks, time, bytes_ in dense:
        options = {"method_config": {"weights": "packed" if packed else "masked"}} if method == "block_shock" else {}
        given = {**sizes, **size, **options, "optimizer_bytes": bytes_ - 20}
        judge.add("phase3_train_step", method, time, region="total_step", ranks=ranks, **given)


@pytest.mark.parametrize(
    ("ours", "memory", "outcome"),
    [(0.9, 50, SUPPORTED), (1.2, 50, REFUTED), (0.9, 60, REFUTED), (1.015, 50, UNDECIDED)],
)
def test_h2_asks_for_both_time_and_memory(judge, ours, memory, outcome):
    training(judge, ours, memory)
    verdict = judge()["H2"]
    assert verdict.outcome == outcome
    assert verdict.evidence["memory_over_row"].tolist() == [memory / 50]
    assert verdict.evidence["memory_over_dense"].tolist() == [memory / 100]


def test_h2_says_nothing_of_masked_weights(judge):
    training(judge, 5.0, 500, packed=False)
    assert judge()["H2"].outcome == UNDECIDED
    assert judge()["H2"].evidence.empty


def test_h3_is_refuted_by_one_size_at_which_the_masked_split_is_not_slower(judge):
    for n, ours in ((64, 0.5), (128, 0.7)):
        judge.add("phase1_forward", "masked_split_dense", 1.0, N=n)
        judge.add("phase1_forward", "block_shock", ours, N=n, **SPARSE)
    assert judge()["H3"].outcome == SUPPORTED
    judge.add("phase1_forward", "masked_split_dense", 1.0, N=256)
    judge.add("phase1_forward", "block_shock", 1.2, N=256, **SPARSE)
    assert judge()["H3"].outcome == REFUTED


def test_h3_of_a_tie_alone_is_equivalent(judge):
    judge.add("phase1_forward", "masked_split_dense", 1.0)
    judge.add("phase1_forward", "block_shock", 0.995, **SPARSE)
    assert judge()["H3"].outcome == EQUIVALENT


@pytest.mark.parametrize(
    ("error", "drifted", "outcome"), [(1e-3, 1.6, SUPPORTED), (2e-3, 1.6, REFUTED), (1e-3, 1.8, REFUTED)]
)
def test_the_premise_is_about_errors_and_drift_within_the_roundings(judge, write_run, record, error, drifted, outcome):
    judge.add("phase1_forward", "block_shock", 1.0, error=error)
    assert judge()["premise"].outcome == (REFUTED if error > 1.7e-3 else UNDECIDED)  # no drift yet
    steps = [
        {"mode": "apply", "step": i, "output_error": drifted * i * 1e-3, "dense_output_error": i * 1e-3} for i in (1, 2)
    ]
    write_run("drift", [record("phasex_drift", "block_shock", drift=step, world_size=2) for step in steps])
    assert judge()["premise"].outcome == outcome


def with_law(judge, ours_two, allreduce=0.5, spread=TIGHT, one=1.6):
    """dense 1.0 on one rank; row-parallel 0.5 + the all-reduce; s = 2/1.6 = 1.25, so 2/s = 1.6."""
    judge.add("phase1_forward", "dense_single", 1.0, spread, ranks=1)
    judge.add("phase1_forward", "block_shock", one, spread, ranks=1, **SPARSE)
    judge.add("phase1_forward", "dense_tp_row", 0.5 + allreduce, spread, allreduce=allreduce)
    judge.add("phase1_forward", "block_shock", ours_two + allreduce, spread, allreduce=allreduce, **SPARSE)
    return law(results(judge.runs())).iloc[0]


@pytest.mark.parametrize(("local", "finding"), [(0.8, AGREES), (1.2, SLOWER), (0.6, FASTER)])
def test_the_law_is_checked_on_the_product_without_the_all_reduce(judge, local, finding):
    row = with_law(judge, ours_two=local)
    assert row["s"] == pytest.approx(1.25)
    assert row["predicted"] == pytest.approx(1.6)
    assert row["local_ratio"] == pytest.approx(local / 0.5)
    assert row["ratio"] == pytest.approx(local + 0.5)
    assert row["finding"] == finding
    assert row["predicted_lo"] < row["predicted"] < row["predicted_hi"]


def test_the_law_promises_no_less_than_nine_eighths(judge):
    row = with_law(judge, ours_two=0.56, one=0.9)
    assert row["s"] == pytest.approx(2 / 0.9)
    assert row["predicted"] == row["predicted_lo"] == 9 / 8
    assert row["finding"] == AGREES


def test_the_law_is_open_without_repeats(judge):
    assert with_law(judge, ours_two=0.8, spread=None)["finding"] == OPEN


def test_the_figure_has_each_comparison_and_says_what_their_range_means(judge):
    three(judge, ours=1.0)
    three(judge, ours=1.114, N=128)
    judge.add("phase1_forward", "masked_split_dense", 2.0)
    data = ReportData(table=results(judge.runs()), drift=drift(judge.runs()))
    rows = select(data)
    assert rows.groupby("hypothesis").size().to_dict() == {"H1": 2, "H3": 1}
    assert rows["decided"].tolist() == ["the same", "slower", "faster"]
    titles = [axis.get_title() for axis in intervals(rows).axes]
    assert titles == [
        "H1 refuted: forward\n0 to 11% slower than the faster dense method",
        "H3 supported: forward\n50% faster than the split with its zeros",
    ]


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [
        (1.0, 1.11, "0 to 11% slower"),
        (0.996, 1.11, "0 to 11% slower"),
        (0.66, 0.96, "4 to 34% faster"),
        (0.97, 1.05, "3% faster to 5% slower"),
        (1.08, 1.08, "8% slower"),
        (0.999, 1.001, "0% slower"),
    ],
)
def test_a_range_of_ratios_in_words(low, high, said):
    assert span(low, high) == said


def test_a_pair_a_model_and_pruned_windows_are_judged_apart_from_the_layer(judge):
    """The windows are faster, as they prune: that must not count for the layer."""
    three(judge, ours=1.5)
    pruned = {"mask": "window_4of6", "energy_kept": 0.92}
    judge.add("phase1_forward", "dense_tp_row", 1.0, **pruned)
    judge.add("phase1_forward", "block_shock", 0.8, **SPARSE, **pruned)
    found = judge()
    assert found["H1"].outcome == REFUTED
    assert set(found["H1"].evidence["mask"]) == {"complement_1100_0011"}
    assert found["H1 (pruned windows)"].outcome == SUPPORTED
    assert set(found["H1 (pruned windows)"].evidence["mask"]) == {"window_4of6 (keeps 92% of the energy)"}


def test_a_pair_that_ties_is_equivalent(judge):
    three(judge, ours=1.5)
    pair = {"config": {"workload": {"hidden": 256, "activation": "gelu", "gated": False, "pairing": "auto"}}}
    for method in ("dense_tp_row", "block_shock"):
        judge.add("phase1_forward", method, 1.0, (0.999, 1.0, 1.0, 1.0, 1.001), workload="mlp_block", **pair)
    found = judge()
    assert found["H1"].outcome == REFUTED
    assert found["H1 (an MLP's pair of layers)"].outcome == EQUIVALENT
