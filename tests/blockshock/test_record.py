"""The run folder stays readable whatever happens to the process that writes it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
from hydra import compose, initialize_config_dir

from blockshock.cli.main import CONF
from blockshock.cli.resolvers import register
from blockshock.config import load_job, plain
from blockshock.run_folder.files import write_atomically
from blockshock.run_folder.folder import RunFolder

WRITER = """
import sys
from blockshock.run_folder.folder import RunFolder
folder = RunFolder(sys.argv[1])
n = 0
while True:
    n += 1
    folder.append({"n": n, "text": "x" * 3000, "nan": float("nan")})
    folder.write_json("status.json", {"status": "running", "reason": "y" * 5000, "n": n})
"""


def test_a_sigkill_at_any_moment_leaves_whole_lines_and_a_whole_status(tmp_path):
    for round_ in range(6):
        folder = tmp_path / str(round_)
        folder.mkdir()
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)])
        while not (folder / "status.json").exists():
            time.sleep(0.01)
        time.sleep(0.013 * round_)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
        assert all(line.endswith("\n") for line in lines)
        assert [json.loads(line)["n"] for line in lines] == list(range(1, len(lines) + 1))
        assert json.loads((folder / "status.json").read_text())["status"] == "running"


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
    job = load_job(tiny_config())
    folder = RunFolder(tmp_path / "job")
    folder.start(job, "first")
    folder.append({"n": 1})
    folder.finish("failed", "why")
    (folder.path / "blockshock.log").write_text("Hydra's, open already")
    removed = []
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **kw: (removed.append(folder.status()["status"]), unlink(path)))
    folder.start(job, "second")
    assert set(removed) == {"running"}
    assert folder.records() == []
    assert (folder.path / "blockshock.log").exists()


def tiny_config() -> dict:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        register()
        return plain(compose("config", overrides=["hardware=cpu", "model.N=16", "experiment.name=x"]))
