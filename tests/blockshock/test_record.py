"""The run folder stays readable whatever happens to the process that writes it."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from hydra import compose, initialize_config_dir

from blockshock.cli.main import CONF
from blockshock.cli.resolvers import register
from blockshock.config import Job, load_job, plain
from blockshock.errors import ConfigError
from blockshock.run_folder.files import write_atomically
from blockshock.run_folder.folder import RunFolder
from sweeps import load_runs
from sweeps.status import rows_of
from tests.sweeps.conftest import make_record

# A line is 25 pages and nothing waits for the disk, so that it is often in the middle of a write.
WRITER = """
import os, sys
from blockshock.run_folder.folder import RunFolder
os.fsync = lambda descriptor: None
folder = RunFolder(sys.argv[1])
n = 0
while True:
    n += 1
    folder.append({"n": n, "text": "x" * 100_000, "nan": float("nan")})
    folder.write_json("status.json", {"status": "running", "reason": "y" * 5000, "n": n})
"""


def test_a_sigkill_at_any_moment_leaves_whole_lines_but_for_the_last_and_a_whole_status(tmp_path):
    """Linux copies a write page by page, and a SIGKILL between two ends it. Of 500 kills of a bare loop that writes and
    syncs 3 kB one cut a line, of 300 of one that only writes 100 kB 263 did, all at the end of a page."""
    for round_ in range(6):
        folder = tmp_path / str(round_)
        folder.mkdir()
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)])
        while not (folder / "status.json").exists():
            time.sleep(0.01)
        time.sleep(0.013 * round_)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        *lines, cut = (
            (folder / "metrics.jsonl").read_text().split("\n")
        )  # what follows the last newline: "", or the cut
        assert lines == [line_of(n) for n in range(1, len(lines) + 1)]
        assert line_of(len(lines) + 1).startswith(cut)
        status = json.loads((folder / "status.json").read_text())
        assert status["status"] == "running"
        assert status["n"] in (len(lines) - 1, len(lines))


def line_of(n: int) -> str:
    return json.dumps({"n": n, "text": "x" * 100_000, "nan": None}, separators=(",", ":"))


@pytest.mark.parametrize("end", ["running", "failed", "ok"])
def test_a_cut_last_line_is_left_out_or_named_by_readers_and_the_next_run_replaces_it(tmp_path, end):
    """A launcher says `failed` of a run that was killed. One that says `ok` has lost a record: it can't be read."""
    folder = RunFolder(tmp_path)
    folder.start(tiny_job().config, "killed")
    folder.append(make_record("phase1_forward", "dense_single"), make_record("phase1_forward", "dense_single"))
    os.truncate(tmp_path / "metrics.jsonl", (tmp_path / "metrics.jsonl").stat().st_size - 10)
    if end != "running":
        folder.finish(end)
    expected = "unreadable" if end == "ok" else end
    rows = load_runs([tmp_path])
    assert rows["status"].tolist() == [expected]
    assert [row.state for row in rows_of(tmp_path)] == [expected]
    if end == "ok":
        assert rows["reason"][0].startswith("metrics.jsonl: line 2: not ")
        assert not folder.is_done()
    else:
        assert rows["N"].tolist() == [64]  # of the whole line
    folder.start(tiny_job().config, "next")
    folder.append(make_record("phase1_forward", "dense_single"))
    folder.finish("ok")
    assert load_runs([tmp_path])["status"].tolist() == ["ok"]


def test_records_open_with_pandas_and_not_a_number_is_null(tmp_path):
    folder = RunFolder(tmp_path)
    folder.append({"a": 1, "nested": {"b": [1.5, float("inf")]}})
    folder.append({"a": 2, "nested": {"b": [float("nan")]}})
    frame = pd.read_json(tmp_path / "metrics.jsonl", lines=True)
    assert frame.a.tolist() == [1, 2]
    assert folder.records()[0]["nested"]["b"] == [1.5, None]


def test_a_replaced_file_is_the_old_one_or_the_new_one(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "old")
    write_atomically(path, "new")
    assert path.read_text() == "new"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


LIMITED = """
import resource, signal, sys
from blockshock.run_folder.folder import RunFolder
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
folder = RunFolder(sys.argv[1])
folder.append({"n": 1})
try:
    folder.append({"text": "x" * 1000})
except OSError:
    print("refused")
"""


def test_a_record_that_does_not_fit_leaves_no_part_of_its_line(tmp_path):
    """A limit on the file's size cuts a write short as a full disk does."""
    done = subprocess.run([sys.executable, "-c", LIMITED, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "refused\n", done.stderr
    assert RunFolder(tmp_path).records() == [{"n": 1}]


def test_a_folder_is_claimed_by_one_at_a_time(tmp_path):
    folder = RunFolder(tmp_path / "job")
    with folder.claim() as first, folder.claim(wait_s=0.0) as second:
        assert (first, second) == (True, False)
    with folder.claim(wait_s=0.0) as third:
        assert third


def test_a_new_try_replaces_the_records_of_the_last_and_is_never_without_a_status(tmp_path, monkeypatch):
    job = tiny_job()
    folder = RunFolder(tmp_path / "job")
    folder.start(job.config, "first")
    folder.append({"n": 1})
    folder.finish("failed", "why")
    removed = []
    unlink = Path.unlink
    monkeypatch.setattr(
        Path, "unlink", lambda path, **kw: (removed.append(folder.status()["status"]), unlink(path, **kw))
    )
    folder.start(job.config, "second")
    assert set(removed) == {"running"}
    assert folder.records() == []


USERS = (
    "notes.txt",
    "log.rank0.txt.old",
    "metrics.jsonl.bak",
    "drift_mine.csv",
    "config.yml",
    ".env",
    "blockshock.log",
)


def test_a_new_try_deletes_what_a_run_of_its_phase_writes_and_nothing_else(tmp_path):
    job = tiny_job("phase=phasex_drift")
    folder = RunFolder(tmp_path)
    folder.start(job.config, "first")
    folder.append({"n": 1})
    folder.finish("ok")
    ours = ("drift.csv", "log.rank0.txt", "log.rank11.txt", "env.json", ".status.json.4711")
    for name in (*ours, *USERS):
        (tmp_path / name).write_text("x")
    (tmp_path / "env.json.d").mkdir()
    (tmp_path / "env.json.d" / "metrics.jsonl").write_text("x")
    folder.start(job.config, "second")
    folder.clear(job.phase)
    there = {path.name for path in tmp_path.iterdir()}
    assert there == {*USERS, "env.json.d", "config.yaml", "seed.txt", "status.json", ".status.json.4711"}
    assert all((tmp_path / name).read_text() == "x" for name in USERS)
    assert (tmp_path / "env.json.d" / "metrics.jsonl").exists()


def nobody_says_whose(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("{}\n")


def a_file_of_that_name(folder: Path) -> None:
    folder.rmdir()
    folder.write_text("precious")


def another_configuration(folder: Path) -> None:
    other = RunFolder(folder)
    other.start(tiny_job("model.N=32").config, "other")
    other.append({"n": 1})
    other.finish("ok")


def another_configuration_whose_status_is_broken(folder: Path) -> None:
    another_configuration(folder)
    (folder / "status.json").write_text("{")


def another_programs_configuration(folder: Path) -> None:
    (folder / "config.yaml").write_text("experiment: mine\n")


@pytest.mark.parametrize(
    "there",
    [
        nobody_says_whose,
        a_file_of_that_name,
        another_configuration,
        another_configuration_whose_status_is_broken,
        another_programs_configuration,
    ],
)
def test_what_is_not_a_run_of_the_same_configuration_is_left_as_it_is(tmp_path, there):
    path = tmp_path / "job"
    path.mkdir()
    there(path)
    before = snapshot(tmp_path)
    folder = RunFolder(path)
    with pytest.raises(ConfigError, match=r"choose another folder|is no folder"):
        folder.start(tiny_job().config, "mine")
    folder.finish("failed", "not let in")
    with pytest.raises(ConfigError):
        folder.close(tiny_config(), "failed", "why", "mine")
    assert snapshot(tmp_path) == before


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_was_not_let_in_does_not_end_the_one_that_is_there(tmp_path):
    RunFolder(tmp_path).start(tiny_job("model.N=32").config, "first")
    second = RunFolder(tmp_path)
    with pytest.raises(ConfigError):
        second.start(tiny_job().config, "second")
    second.finish("failed", "refused")
    assert second.status()["status"] == "running"


@pytest.mark.parametrize("broken", ["status.json", "config.yaml"])
def test_one_of_status_and_configuration_is_enough_to_know_a_run_again(tmp_path, broken):
    folder = RunFolder(tmp_path)
    folder.start(tiny_job().config, "first")
    folder.append({"n": 1})
    (tmp_path / broken).write_text("{")
    folder.start(tiny_job().config, "second")
    assert folder.records() == []
    assert folder.status()["run_id"] == "second"


def test_a_folder_is_claimed_where_the_file_system_has_no_flock(tmp_path, monkeypatch):
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.setattr("fcntl.flock", unsupported)
    folder = RunFolder(tmp_path / "job")
    with folder.claim() as first, folder.claim(wait_s=0.0) as second:
        assert (first, second) == (True, False)


def test_a_run_never_ends_before_it_started_though_the_clock_was_set_back(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(tiny_job().config, "run")
    path = tmp_path / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "started": "2999-01-01T00:00:00.000+00:00"}))
    folder.finish("ok")
    assert folder.status()["ended"] == "2999-01-01T00:00:00.000+00:00"


def test_a_folder_deleted_under_a_run_is_named_and_not_made_again(tmp_path):
    folder = RunFolder(tmp_path / "job")
    folder.start(tiny_job().config, "run")
    shutil.rmtree(folder.path)
    with pytest.raises(FileNotFoundError, match=str(folder.path)):
        folder.append({"n": 1})
    folder.finish("failed", "why")
    assert not folder.path.exists()


def test_a_requeued_jobs_status_is_not_its_last(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(tiny_job().config, "run")
    folder.finish("timeout", "SLURM: out of time; requeued, 1 of 3", requeued=True)
    assert not folder.has_ended()
    folder.finish("failed", "SLURM: cancelled (scancel)")
    assert (folder.has_ended(), folder.status()["reason"]) == (True, "SLURM: cancelled (scancel)")


def test_a_reason_is_one_line_without_control_characters(tmp_path):
    folder = RunFolder(tmp_path)
    folder.start(tiny_job().config, "run")
    folder.finish("failed", "red \x1b[31malert\x07\nüber · 2")
    assert folder.status()["reason"] == r"red \x1b[31malert\x07\nüber · 2"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "missing or empty"),
        ('{"n": 1}\n{"n": 2', "line 2: not JSON"),
        ('{"n": 1}\n[]\n', "line 2: not a JSON object"),
        ('{"n": 1}', "line 1: not whole"),
    ],
)
def test_done_means_that_every_record_is_whole(tmp_path, text, problem):
    folder = RunFolder(tmp_path)
    folder.start(tiny_job().config, "run")
    folder.append({"n": 1})
    folder.finish("ok")
    assert folder.is_done()
    assert folder.is_done(tiny_job().config)
    assert not folder.is_done(tiny_job("model.N=32").config)
    (tmp_path / "metrics.jsonl").write_text(text)
    assert not folder.is_done()
    assert problem in folder.checked_status()["reason"]


def tiny_job(*overrides: str) -> Job:
    return load_job(tiny_config(*overrides))


def tiny_config(*overrides: str) -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        register()
        tiny = ["hardware=cpu", "model.N=16", "experiment.name=x", *overrides]
        return plain(compose("config", overrides=tiny))
