"""Jobs that share a GPU take turns: real processes that count, stopped by one that measures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.launching import ROOT, wait_until

# A job, and a process that it has started: both count, each in a file of its own.
COUNTS = """
import os, sys, time
from blockshock.measure.turns import share
share(sys.argv[1], 3)
name = f"{sys.argv[2]}-{'parent' if os.fork() else 'child'}"
file, count, parent = os.open(name, os.O_WRONLY | os.O_CREAT), 0, os.getppid()
while os.getppid() == parent:
    time.sleep(0.001)
    count += 1
    os.pwrite(file, count.to_bytes(8, "big"), 0)
"""
# A job that says what others counted in its turn, aside, and in a turn again; then it waits in a turn to be killed.
MEASURES = """
import sys, time
from pathlib import Path
from blockshock.measure.turns import aside, share, turn
from tests.blockshock.test_turns import counted
share(sys.argv[1], 3)
def advance():
    before = counted(Path.cwd())
    time.sleep(0.2)
    return [b - a for a, b in zip(before, counted(Path.cwd()))]
with turn():
    print(advance(), flush=True)
    with aside():
        while not all(advance()):
            pass
    with turn():
        print(advance(), flush=True)
    print(advance(), flush=True)
    time.sleep(1000)
"""


def counted(folder: Path) -> list[int]:
    return [int.from_bytes(path.read_bytes(), "big") for path in sorted(folder.glob("*-*"))]


def python(folder: Path, code: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, str(folder / "turns"), *arguments]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, cwd=folder, env=env, stdout=subprocess.PIPE, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "turns").mkdir()
    return tmp_path


@pytest.fixture
def counting(folder: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two jobs that count, each with a child."""
    jobs = [python(folder, COUNTS, name) for name in ("one", "two")]
    try:
        wait_until(lambda: len(counted(folder)) == 4 and all(counted(folder)), seen=lambda: counted(folder))
        yield jobs
    finally:
        for job in jobs:
            job.kill()


def go_on(folder: Path) -> bool:
    before = counted(folder)
    time.sleep(0.05)
    return all(b > a for a, b in zip(before, counted(folder), strict=True))


def test_others_and_their_children_stand_still_in_a_turn_and_go_on_aside_and_when_its_process_is_killed(
    folder, counting
):
    measuring = python(folder, MEASURES)
    try:
        assert measuring.stdout is not None
        said = [measuring.stdout.readline().strip() for _ in range(3)]  # the second of them: aside, they all went on
        assert said == ["[0, 0, 0, 0]"] * 3
        assert not any(b - a for a, b in zip(counted(folder), counted(folder), strict=True))
    finally:
        measuring.send_signal(signal.SIGKILL)
    wait_until(lambda: go_on(folder))


def test_a_turn_begins_only_when_another_has_ended(folder, counting):
    first, second = python(folder, MEASURES), python(folder, MEASURES)
    try:
        assert first.stdout is not None
        assert second.stdout is not None
        wait_until(lambda: not go_on(folder))  # one of them has its turn, until the end of time
        os.kill(first.pid, signal.SIGKILL)
        assert [second.stdout.readline().strip() for _ in range(3)] == ["[0, 0, 0, 0]"] * 3
    finally:
        first.kill()
        second.kill()
    wait_until(lambda: go_on(folder))


def test_a_process_that_was_given_the_number_of_a_job_that_has_ended_is_left_alone(folder, counting):
    entry = folder / "turns" / str(counting[0].pid)
    wait_until(entry.exists)
    entry.write_text("1.0")  # when that job began
    measuring = python(folder, MEASURES)
    try:
        assert measuring.stdout is not None
        said = [measuring.stdout.readline() for _ in range(3)][-1]  # from here on it has its turn
        assert said.rstrip().endswith("0, 0]")
        one, two = counted(folder)[:2], counted(folder)[2:]
        wait_until(lambda: all(now > then for now, then in zip(counted(folder), one, strict=False)))
        assert counted(folder)[2:] == two
    finally:
        measuring.kill()
    assert not entry.exists()


def test_a_process_that_shares_nothing_neither_waits_nor_stops_anyone(folder, counting, monkeypatch):
    from blockshock.measure import turns

    monkeypatch.delenv(turns.SHARED, raising=False)
    with turns.turn(), turns.aside(), turns.turn():
        wait_until(lambda: go_on(folder))
    assert turns.jobs_that_share() == 1
