"""hydra.sweeper.repeats: each configuration in several processes, interleaved, with intervals over processes."""

from __future__ import annotations

import pytest

from blockshock.run_folder.naming import config_hash, job_label
from sweeps import load_runs
from sweeps.report.tables.benchmarks import benchmarks, latest
from sweeps.report.tables.layers import results
from tests.launching import QUICK, run, statuses

PLAIN = {
    "experiment": {"name": "x", "seed": 0, "output_dir": "outputs"},
    "phase": {"name": "phase1_forward"},
    "method": {"name": "block_shock"},
    "mask": {"name": "checkerboard"},
    "workload": {"name": "gaussian"},
    "model": {"N": 8, "K": 8, "B": 8, "dtype": "fp32"},
    "hardware": {"world_size": 1},
}


def with_repeat(number: int) -> dict:
    return {**PLAIN, "experiment": {**PLAIN["experiment"], "repeat": number}}


def test_the_first_repeat_is_the_measurement_without_and_the_others_have_hashes_and_folders_of_their_own():
    assert config_hash(with_repeat(0)) == config_hash(PLAIN)
    assert job_label(with_repeat(0)) == job_label(PLAIN)
    hashes = {config_hash(with_repeat(number)) for number in range(5)}
    assert len(hashes) == 5
    assert "_r3_" in job_label(with_repeat(3))


@pytest.mark.slow
def test_a_sweep_repeats_every_job_in_a_fresh_process_interleaved_and_resumes(tmp_path):
    sweep = [*QUICK, "model.N=4,8", "model.B=8", "experiment.name=again", "hydra.launcher.max_parallel=1"]
    code, err = run(tmp_path, *sweep, "hydra.sweeper.repeats=2")
    assert code == 0, err
    found = statuses(tmp_path)
    assert len(found) == 4
    assert len({status["pid"] for status in found.values()}) == 4
    runs = load_runs([tmp_path / "outputs"]).sort_values("started")
    assert runs["N"].tolist() == [4, 8, 4, 8]
    assert runs["config.experiment.repeat"].tolist() == [0, 0, 1, 1]
    assert runs["config_hash"].nunique() == 4
    started = {name: status["started"] for name, status in found.items()}
    code, err = run(tmp_path, *sweep, "hydra.sweeper.repeats=3")  # two more, and nothing measured anew
    assert code == 0, err
    assert "4 were measured before and kept" in err
    later = {name: status["started"] for name, status in statuses(tmp_path).items()}
    assert len(later) == 6
    assert {name: later[name] for name in started} == started
    code, err = run(tmp_path, *sweep, "hydra.sweeper.repeats=3", "hydra.launcher.resume=outputs/sweeps/again")
    assert code == 0, err
    assert "6 were measured before and kept" in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["hydra.sweeper.repeats=0"], "hydra.sweeper.repeats=0: must be at least 1"),
        (["hydra.sweeper.repeats=many"], "hydra.sweeper.repeats"),
        (["hydra.sweeper.repeats=2", "experiment.repeat=1"], "leave that out, or the repeats"),
        (["hydra.sweeper.repeats=2", "hydra.launcher.reuse_ranks=true"], "set hydra.launcher.reuse_ranks=false"),
    ],
)
def test_bad_repeats_are_one_line_and_nothing_starts(cli, arguments, told, tmp_path):
    done = cli(*QUICK, "model.N=4", "model.B=8", *arguments)
    assert done.code == 2
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not list(tmp_path.rglob("status.json"))


def test_a_negative_repeat_of_a_single_run_is_one_line(cli):
    done = cli("hardware=cpu", "experiment.repeat=-1")
    assert done.code == 2
    assert done.err.strip().splitlines() == ["blockshock: experiment.repeat=-1: must be at least 0"]


def repeated(write_run, record, times: list[float]) -> None:
    """One configuration in as many processes, each with five blocks of its own."""
    for number, time in enumerate(times):
        line = record("phase1_forward", "block_shock", forward=time)
        line["timings_ms"]["forward"]["blocks_p50_ms"] = [time] * 5
        folder = write_run(f"r{number}", [line])
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("name: by_hand", f"name: by_hand\n  repeat: {number}"))


def test_the_interval_of_a_median_is_over_processes(write_run, record, tmp_path):
    times = [1.0, 1.1, 1.2, 1.3, 1.4, 1.5]
    repeated(write_run, record, times)
    (row,) = results(load_runs([tmp_path])).to_dict("records")
    assert row["forward_repeated"] == "6 jobs"
    assert sorted(row["forward_ms"]) == times
    assert row["forward_lo_ms"] < row["forward_p50_ms"] == 1.25 < row["forward_hi_ms"]


def test_fewer_than_five_processes_have_no_interval_however_many_blocks_each_has(write_run, record, tmp_path):
    repeated(write_run, record, [1.0, 1.1, 1.2])
    (row,) = results(load_runs([tmp_path])).to_dict("records")
    assert row["forward_repeated"] == "3 jobs"
    assert row["forward_lo_ms"] != row["forward_lo_ms"]  # NaN


def test_repeats_of_a_benchmark_are_one_row_of_all_of_them(write_run, tmp_path):
    for number, ratio in enumerate((1.0, 1.2, 1.1)):
        both = {"schema": 1, "phase": "benchmark", "timestamp_unix": float(number), "part": "forward", "variant": ""}
        both |= {"mask": "", "kernel": "", "N": 8, "K": 8, "B": 8, "dtype": "float32", "world_size": 1, "device": "GPU"}
        both |= {"baseline": "dense", "rounds_us": [1.0]}
        rows = [{**both, "method": "dense", "p50_us": 10.0}, {**both, "method": "mine", "p50_us": 10.0 * ratio}]
        folder = write_run(f"r{number}", rows)
        text = (folder / "config.yaml").read_text()
        (folder / "config.yaml").write_text(text.replace("name: by_hand", f"name: by_hand\n  repeat: {number}"))
    table = latest(benchmarks(load_runs([tmp_path]))).set_index("contender")
    assert len(table) == 2
    assert table.loc["mine", ["p50_us", "ratio", "ratio_lo", "ratio_hi"]].tolist() == pytest.approx([11, 1.1, 1.0, 1.2])
