"""A report opens with what was found, whatever phases it holds."""

from __future__ import annotations

import pytest

from sweeps.artifact.claims import RECORDS
from sweeps.report.command import main, report_in_short, write_report
from sweeps.report.findings import FINDINGS, findings
from sweeps.report.findings.title import title
from sweeps.report.tables.report_data import read_report_data
from tests.sweeps.conftest import benchmark_rows, make_largest, write_front, writer


def found(folder) -> dict[str, str]:
    """Subject to sentence."""
    problems: list[str] = []
    made = findings(read_report_data([folder]), problems)
    assert not problems
    return {finding.name.removeprefix("finding-"): finding.sentence for finding in made}


def timed(record, phase, method, ms, **given):
    """A record whose blocks all take `ms`, so that its interval is that one number."""
    region = "forward" if phase == "phase1_forward" else "total_step"
    line = record(phase, method, **{region: ms}, world_size=2, **given)
    line["timings_ms"][region]["blocks_p50_ms"] = [ms] * 5
    return line


def test_layers_say_how_much_slower_block_shock_is_than_what_one_would_use(write_run, record, tmp_path):
    for n, ours in ((64, 1.04), (128, 1.11)):
        for method, ms in (("dense_tp_row", 1.0), ("dense_tp_column", 3.0), ("block_shock", ours)):
            write_run(f"{method}{n}", [timed(record, "phase1_forward", method, ms, N=n, K=n)])
    assert found(tmp_path) == {"layers": "Block-Shock's forward pass is 4 to 11% slower than the faster dense method."}


def test_a_tie_is_an_answer_and_medians_alone_say_that_they_are(record, tmp_path):
    only = writer(tmp_path / "only")
    only("a", [timed(record, "phase1_forward", "dense_tp_row", 1.0)])
    only("b", [timed(record, "phase1_forward", "block_shock", 1.01)])
    assert found(tmp_path / "only")["layers"] == (
        "Block-Shock's forward pass is as fast as the faster dense method within 2%."
    )
    alone = writer(tmp_path / "alone")
    alone("a", [record("phase1_forward", "dense_tp_row", forward=1.0, world_size=2)])
    alone("b", [record("phase1_forward", "block_shock", forward=2.0, world_size=2)])
    assert "100% slower" in found(tmp_path / "alone")["layers"]
    assert "too few repeats for intervals" in found(tmp_path / "alone")["layers"]


def test_largest_batches_give_the_whole_range_and_no_ratio_of_a_search_that_was_cut_off(write_run, tmp_path):
    """In 80 GB both searches end at 128, the largest batch allowed, and ours is the slower one."""
    measured = {24: (12, 30, 400.0, 900.0), 40: (20, 70, 500.0, 1000.0), 80: (128, 128, 800.0, 720.0)}
    for memory, (theirs, ours, slow, fast) in measured.items():
        for method, batch, rate in (("torch_compile", theirs, slow), ("recompute_compiled", ours, fast)):
            line = make_largest(method, memory, batch)
            line["largest_batch"] |= {"samples_per_s": rate, "is_bound": batch == 128}
            write_run(f"{method}{memory}", [line])
    said = found(tmp_path)["largest-batch"]
    assert (
        "at 0.90 to 2.25 times torch.compile's throughput in 24 to 80 GB, with batches 2.5 to 3.5 times as large"
        in said
    )
    (own,) = (f for f in findings(read_report_data([tmp_path]), []) if f.name == "finding-largest-batch")
    assert set(own.numbers["largest batch"]) == {"12", "30", "20", "70", "128 or more"}


def test_layers_without_a_rival_say_which_method_is_the_fastest(write_run, record, tmp_path):
    for n in (64, 128, 256):
        write_run(f"dense{n}", [record("phase1_forward", "dense_single", forward=2.0 if n < 256 else 1.0, N=n, K=n)])
        write_run(f"ours{n}", [record("phase1_forward", "block_shock", forward=1.5, N=n, K=n)])
    assert found(tmp_path)["layers"] == "Forward pass: block_shock is the fastest at 2 of 3 sizes."


def test_checks_alone_say_whether_they_passed(write_run, record, tmp_path):
    for name, error in (("dense_single", 1e-3), ("block_shock", 3e-3)):
        write_run(name, [record("phase0_correctness", name, error=error, limit=2e-3)])
    assert found(tmp_path)["layers"].startswith("1 of 2 checks failed")


def test_benchmarks_say_the_geometric_mean_over_row_parallel(write_run, tmp_path):
    rows = [row for row in benchmark_rows(2) if row["part"] == "forward"]
    for row in rows:
        ratio = {"dense_tp_row": 1.0, "block_shock": 1.1 if row["N"] == 64 else 1.21}.get(row["method"], 2.0)
        row["p50_us"] = 10.0 * ratio
    write_run("bench", rows)
    said = found(tmp_path)["benchmarks"]
    mean = (1.1 * 1.1 * 1.21 * 1.21) ** 0.25
    assert f"forward pass takes {mean:.2f} times dense_tp_row's time (1.10 to 1.21 in 4 cells)" in said


def test_recomputation_says_what_half_of_the_activations_costs(write_run, checkpointed, tmp_path):
    write_run("keep", [checkpointed("keep_all", 80, 10.0)])  # 70 MiB of activations
    write_run("half", [checkpointed("recompute_optimal", 45, 11.0, budget=0.5)])
    write_run("least", [checkpointed("recompute_optimal", 20, 13.0, budget=0.2)])
    assert found(tmp_path) == {
        "recomputation": "Half of the activation memory costs 10% of the step's time on 1 model; the smallest peak is "
        "25% of keep_all's, for 30% more time."
    }


def test_compiled_training_says_how_many_baselines_are_beaten(write_run, tmp_path):
    write_front(write_run)
    said = found(tmp_path)["compiled"]
    assert "Our plans are at least as good as" in said
    assert " ms with our plan, and adds " in said
    assert " ms with torch.compile's automatic ways" in said


def test_profiles_and_traces_have_a_finding(write_run, record, tmp_path):
    profile = {"nodes": 9, "simulated_peak_bytes": 99, "measured_peak_bytes": 100, "node_time_s": 0.003}
    write_run("profile", [record("profile", "keep_all", B=4, total_step=4.0, profile=profile)])
    for method, step in (("dense_tp_row", 2.0), ("block_shock", 2.5)):
        parts = {"forward": 0.5, "backward": 1.0, "optimizer": 0.25, "other": 0.0, "exposed_communication": 0.25}
        parts |= {"idle": step - 2.0, "step": step}
        trace = {f"{name}_ms": [value] for name, value in parts.items()}
        trace |= {"backend": "kineto", "kernels": [5], "slowdown": 0.01, "attributed": 1.0}
        write_run(f"trace_{method}", [record("trace", method, total_step=step, trace=trace)])
    said = found(tmp_path)
    assert said["profiles"].startswith("The simulated peak is within 1.00% of the measured one")
    assert "75%" in said["profiles"]
    assert said["traces"] == "block_shock's traced step is 25% slower than dense_tp_row's (N=64 B=8, 1 rank)."


@pytest.mark.parametrize("name", FINDINGS)
def test_nothing_is_found_where_nothing_was_measured(name, write_run, tmp_path):
    write_run("failed", None, "failed", "x")
    assert FINDINGS[name](read_report_data([tmp_path])) is None


def test_the_finding_is_the_first_thing_on_the_page_and_the_title_says_what_was_measured(write_run, record, tmp_path):
    write_run("a", [record("phase1_forward", "dense_single", forward=1.0)])
    write_run("b", None, "unsupported", "needs two ranks")
    text = write_report([tmp_path], tmp_path / "out").read_text()
    assert "<h1>Forward pass of a linear layer, N 64, B 8</h1>" in text
    assert text.index("dense_single is the only method measured") < text.index('id="figures"')
    assert "Jobs without a result" not in text
    assert "None of them failed" in text
    assert title(read_report_data([tmp_path])) == "Forward pass of a linear layer, N 64, B 8"


def test_a_terminal_is_told_the_machine_the_finding_and_the_report(write_run, record, tmp_path):
    write_run("a", [record("phase1_forward", "dense_single", forward=1.0)])
    machine, finding, report = report_in_short([tmp_path], tmp_path / "out")
    assert machine == "machine: Hand CPU, PyTorch 9.9.9+hand"
    assert finding == "finding: Forward pass: dense_single is the only method measured."
    assert report == f"report: {tmp_path / 'out' / 'report.html'}"


def test_a_title_names_the_models_whose_layers_are_over_ranks():
    data = read_report_data([RECORDS / "models_over_ranks_h200"])
    assert title(data) == "Training step of gpt2 and llama over ranks"


def test_what_was_not_measured_is_a_line_and_no_verdict(write_run, record, tmp_path, monkeypatch, capsys):
    for method, ms in (("dense_tp_row", 1.0), ("block_shock", 1.1)):
        write_run(method, [record("phase1_forward", method, world_size=2, forward=ms)])
    monkeypatch.setattr("sys.argv", ["blockshock-report", str(tmp_path), "--out", str(tmp_path / "out")])
    main()
    text = (tmp_path / "out" / "report.html").read_text()
    assert [f"{name}: undecided" in text for name in ("premise", "H1", "H2", "H3")] == [False, True, False, False]
    assert text.count("not measured on") == 3
    said = capsys.readouterr().out
    assert "H1: undecided" in said
    assert "H2" not in said
