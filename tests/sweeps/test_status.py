"""blockshock-status: one screen of any sweep, from its files alone."""

import json
import os
import socket
import sys

import pytest

from sweeps.manifest import Manifest
from sweeps.status import main, rows_of


@pytest.fixture
def shown(monkeypatch, capsys):
    """`shown(folder)`: what blockshock-status prints, and its exit status."""

    def run(folder):
        monkeypatch.setattr(sys, "argv", ["blockshock-status", str(folder)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out + captured.err

    return run


def running_in(folder, pid):
    path = folder / "status.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pid": pid, "host": socket.gethostname()}))


def test_one_screen_says_what_is_done_running_failed_and_how_to_go_on(write_run, shown, tmp_path, monkeypatch):
    write_run("done")
    running_in(write_run("going", status="running"), os.getpid())
    running_in(write_run("lost", status="running"), 2**22 + 1)  # above the largest pid
    write_run("bad_1", status="failed", reason="rank 1 died: killed by SIGKILL")
    write_run("bad_2", status="failed", reason="rank 1 died: killed by SIGKILL")
    names = ("done", "going", "lost", "bad_1", "bad_2", "never")
    arguments = ["-m", "model.N=8,16", "experiment.name=my sweep"]
    Manifest(arguments, [], jobs={name: [] for name in names}).write(tmp_path / "sweep")
    monkeypatch.chdir(tmp_path)
    code, text = shown("sweep")
    assert code == 0
    assert "6 jobs" in text
    for count in ("1 ok", "1 running", "1 died", "2 failed", "1 not started"):
        assert count in text
    assert f"process {os.getpid()}" in text
    assert "2  rank 1 died: killed by SIGKILL  (bad_1, ...)" in text
    assert "  blockshock -m model.N=8,16 'experiment.name=my sweep' hydra.launcher.resume=sweep\n" in text


def test_a_sweep_that_is_done_is_told_in_one_line(write_run, shown, tmp_path):
    write_run("one")
    Manifest(["-m"], [], jobs={"one": []}).write(tmp_path / "sweep")
    assert shown(tmp_path / "sweep")[1].count("\n") == 1


def test_run_folders_without_a_sweep_are_shown_too(write_run, tmp_path):
    write_run("alone", status="oom", reason="no memory")
    assert [(row.name, row.state, row.detail) for row in rows_of(tmp_path / "sweep")] == [("alone", "oom", "no memory")]


@pytest.mark.parametrize(("name", "problem"), [("nowhere", "no such folder"), ("", "no run folder or sweep here")])
def test_a_folder_without_runs_is_refused(shown, tmp_path, name, problem):
    code, text = shown(tmp_path / name)
    assert (code, problem in text, text.count("\n")) == (2, True, 1)
