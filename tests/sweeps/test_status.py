"""blockshock-status: one screen of any sweep, from its files alone."""

import json
import os
import socket
import sys

import pytest

from blockshock.run_folder.files import Unreadable
from blockshock.run_folder.folder import process_start
from sweeps.launchers import slurm_queue
from sweeps.launchers.sweep.manifest import Manifest
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


def test_what_can_not_be_read_is_told_with_its_reason_and_is_to_be_run_again(write_run, shown, tmp_path):
    write_run("fine")
    (write_run("cut") / "status.json").write_text('{"sta')
    (write_run("gone") / "metrics.jsonl").write_text("")
    Manifest(["-m"], [], jobs={name: [] for name in ("fine", "cut", "gone")}).write(tmp_path / "sweep")
    code, text = shown(tmp_path / "sweep")
    assert code == 0
    assert "3 jobs  1 ok  2 unreadable" in text
    assert "1  status.json: not JSON" in text
    assert "1  metrics.jsonl: missing or empty, its records are gone  (gone)" in text
    assert "hydra.launcher.resume=" in text


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"arguments": 1}'])
def test_a_broken_sweep_json_is_one_line_that_names_it_and_exit_2(write_run, shown, tmp_path, text):
    write_run("one")
    (tmp_path / "sweep" / "sweep.json").write_text(text)
    code, said = shown(tmp_path / "sweep")
    assert code == 2
    assert said.startswith(f"blockshock-status: {tmp_path}/sweep/sweep.json: ")
    assert said.count("\n") == 1


def test_a_manifest_whose_jobs_are_no_overrides_is_unreadable(tmp_path):
    content = {"arguments": [], "hydra_overrides": [], "skip_unsupported": False, "slurm": {}}
    for jobs in ({"a": 1}, {"a": [1]}, {"a": "model.N=4"}):
        (tmp_path / "sweep.json").write_text(json.dumps({**content, "jobs": jobs}))
        with pytest.raises(Unreadable, match=r"sweep\.json"):
            Manifest.read(tmp_path)


def states(sweep) -> dict[str, str]:
    return {row.name: row.state for row in rows_of(sweep)}


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**31, 2**63, 2**70])
def test_a_process_number_that_no_process_can_have_is_of_one_that_died(write_run, tmp_path, pid):
    running_in(write_run("odd", status="running"), pid)
    assert states(tmp_path / "sweep") == {"odd": "died"}


def test_a_process_number_that_another_process_has_by_now_is_of_one_that_died(write_run, tmp_path):
    own = process_start(os.getpid())
    for name, started in (("same", own), ("reused", own - 1)):
        folder = write_run(name, status="running")
        running_in(folder, os.getpid())
        path = folder / "status.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pid_started": started}))
    assert states(tmp_path / "sweep") == {"same": "running", "reused": "died"}


def test_a_status_from_a_clock_that_was_set_back_is_shown_without_a_negative_age(write_run, shown, tmp_path):
    folder = write_run("future", status="running")
    running_in(folder, os.getpid())
    path = folder / "status.json"
    path.write_text(path.read_text().replace("2026-01-02T03:04:00", "2999-01-01T00:00:00"))
    code, text = shown(tmp_path / "sweep")
    assert (code, "    0:00  future" in text) == (0, True)


def test_control_characters_of_names_and_reasons_reach_no_terminal(write_run, shown, tmp_path):
    write_run("red\x1b[31m", status="failed", reason="bell\x07 and\nanother line")
    running_in(write_run("up\x1b[A", status="running"), os.getpid())
    _, text = shown(tmp_path / "sweep")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert r"bell\x07 and\nanother line  (red\x1b[31m)" in text


def test_records_that_are_not_whole_are_told(write_run, shown, tmp_path):
    (write_run("cut") / "metrics.jsonl").write_text('{"schema": 1}\n{"sch')
    assert "metrics.jsonl: line 2: not JSON" in shown(tmp_path / "sweep")[1]


def test_a_folder_that_is_deleted_while_it_is_read_is_left_out(write_run, tmp_path, monkeypatch):
    write_run("there")
    gone = tmp_path / "sweep" / "gone" / "status.json"
    monkeypatch.setattr("pathlib.Path.rglob", lambda path, _: [gone, path / "there" / "status.json"])
    assert states(tmp_path / "sweep") == {"there": "ok"}


@pytest.mark.parametrize(
    ("status", "requeued", "in_slurm", "expected"),
    [
        ("timeout", True, "PENDING", "in the queue"),
        ("timeout", True, "REQUEUED", "in the queue"),
        ("timeout", True, "RUNNING", "running"),
        ("timeout", False, "COMPLETING", "timeout"),
        ("failed", False, "PENDING", "in the queue"),
        ("ok", False, "PENDING", "ok"),
        ("running", False, "SIGNALING", "running"),
        ("running", False, "STOPPED", "running"),
        ("running", False, "A_STATE_OF_2040", "running"),
        ("running", False, "CANCELLED", "died"),
        ("running", False, None, "died"),  # unknown, or a stranger's
        (None, False, "CONFIGURING", "in the queue"),
        (None, False, "RUNNING", "running"),
        (None, False, "FAILED", "died"),  # before a line of it ran
        (None, False, "CANCELLED", "died"),  # in the queue
        (None, False, None, "not started"),
    ],
)
def test_only_a_terminal_state_or_an_unknown_id_has_ended(
    write_run, tmp_path, monkeypatch, status, requeued, in_slurm, expected
):
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    if status:
        path = write_run("job", status=status) / "status.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "requeued": requeued}))
    Manifest(["-m"], [], jobs={"job": []}, slurm={"job": "7_1"}).write(sweep)
    known = {"7_1": slurm_queue.State(in_slurm)} if in_slurm else {}
    monkeypatch.setattr(slurm_queue, "available", lambda: True)
    monkeypatch.setattr(slurm_queue, "states", lambda jobs: known)
    monkeypatch.setattr(slurm_queue, "state", lambda job: known.get(job))
    assert states(sweep) == {"job": expected}
