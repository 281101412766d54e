"""The run folder stays readable whatever happens to the process that writes it."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd

from blockshock.record import RunFolder, write_atomically

WRITER = """
import sys
from blockshock.record import RunFolder
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
