"""phase=largest_batch: the search, the record, and the sweep's table and figure, on a CPU by the planner's count."""

from __future__ import annotations

import json

import pytest

from blockshock.phases.largest_batch import Tried, search
from sweeps import load_runs
from sweeps.report.command import write_report

QUICK = ("hardware=cpu", "phase=largest_batch", "phase.timed_iters=1", "phase.warmup_iters=1", "phase.at_most=16")


@pytest.mark.parametrize("largest", [1, 2, 3, 7, 8, 100, 1000])
@pytest.mark.parametrize("first", [1, 4])
def test_the_search_finds_the_largest_batch_that_fits_by_few_attempts(largest: int, first: int) -> None:
    tried = search(lambda size: Tried(size, size <= largest), first, 512, precision=1e-9)
    fitting = [t.batch_size for t in tried if t.fits]
    assert max(fitting, default=0) == (min(largest, 512) if largest >= first else 0)
    assert len(tried) <= 2 * 10
    assert len({t.batch_size for t in tried}) == len(tried)


def test_the_search_ends_within_its_precision() -> None:
    tried = search(lambda size: Tried(size, size <= 777), 1, 4096, precision=0.05)
    low = max(t.batch_size for t in tried if t.fits)
    high = min(t.batch_size for t in tried if not t.fits)
    assert low <= 777 < high <= 1.05 * low + 1
    exact = search(lambda size: Tried(size, size <= 777), 1, 4096, precision=1e-9)
    assert len(tried) < len(exact)


@pytest.mark.slow
def test_a_plan_fits_a_larger_batch_than_the_compiler_alone_in_the_same_memory(cli, tmp_path):
    common = (*QUICK, "workload=tiny_gpt2", "workload.batch_size=1", "workload.seq_len=32", "phase.memory=900kB")
    common = (*common, "experiment.name=largest")
    for options in (
        ("method=torch_compile", "method.backend=aot_eager"),
        ("method=recompute_compiled", "method.execution=eager", "method.memory_budget=900kB"),
    ):
        done = cli(*common, *options)
        assert done.code == 0, done.err
    runs = load_runs([tmp_path / "outputs"]).set_index("method")
    ours, alone = runs.loc["recompute_compiled"], runs.loc["torch_compile"]
    assert ours["largest_batch.batch_size"] > alone["largest_batch.batch_size"] >= 1
    for run in (ours, alone):
        assert run["B"] == run["largest_batch.batch_size"]
        assert run["largest_batch.peak_bytes"] <= run["largest_batch.limit_bytes"] == 900_000
        seconds = run["timings_ms.total_step.p50_ms"] / 1e3
        assert run["largest_batch.samples_per_s"] == pytest.approx(run["B"] / seconds)
        assert run["largest_batch.tokens_per_s"] == pytest.approx(32 * run["B"] / seconds)
        refused = [size for size, fits in run["largest_batch.tried"] if not fits]
        assert min(refused) == run["B"] + 1

    report = write_report([tmp_path / "outputs"], tmp_path / "report")
    table = (tmp_path / "report" / "tables" / "largest_batch.md").read_text()
    assert f"| {ours['B']} |" in table
    assert (tmp_path / "report" / "figures" / "largest_batch.png").stat().st_size > 1000
    assert report is None or "Largest batch and throughput" in (tmp_path / "report" / "report.html").read_text()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("phase.memory=lots", "phase.memory"),
        ("phase.memory=0.5", "phase.memory"),
        ("phase.at_most=1", "phase.at_most"),
        ("phase.precision=0", "phase.precision"),
        ("phase.timing=cuda_events", "needs a GPU"),
    ],
)
def test_bad_input_is_rejected_in_one_line(cli, option, said):
    done = cli("hardware=cpu", "phase=largest_batch", "workload.batch_size=2", "method.execution=eager", option)
    assert done.code == 2
    assert said in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.slow
def test_a_memory_in_which_no_batch_fits_is_unsupported(cli, tmp_path):
    options = ("method=recompute_compiled", "method.execution=eager", "method.memory_budget=1000B")
    done = cli(*QUICK, "workload.batch_size=2", "phase.memory=1000B", *options)
    assert done.code == 1  # it was found by trying
    [path] = tmp_path.rglob("status.json")
    status = json.loads(path.read_text())
    assert status["status"] == "unsupported"
    assert status["reason"] == "phase.memory=1000B: a batch of 2 needs more; give more memory"
