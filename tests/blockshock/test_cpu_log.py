"""The processors' time while something is timed, by hand-made numbers of the system."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from blockshock.measure import cpu_log
from blockshock.measure.cpu_log import CpuLog

CPU = torch.device("cpu")
TICKS = os.sysconf("SC_CLK_TCK")
Pass = Callable[..., None]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Pass:
    """`passes(2.0, own=1.0, all_=3.0)`: that many seconds by the clock, and of processors."""
    told = {"clock": 100.0, "own": 5.0, "all": 50.0, "stolen": 0.0}

    def write() -> None:
        # the halves of all processes' time in user mode and in system mode; idle and iowait are not busy
        half = round(told["all"] / 2 * TICKS)
        words = [half, 0, half, 10**6, 10**5, 0, 0, round(told["stolen"] * TICKS), 77, 0]
        (tmp_path / "stat").write_text(f"cpu  {' '.join(map(str, words))}\ncpu0 1 2 3 4 5 6 7 8 9 10\n")

    def advance(seconds: float, own: float = 0.0, all_: float = 0.0, stolen: float = 0.0) -> None:
        for name, more in (("clock", seconds), ("own", own), ("all", all_), ("stolen", stolen)):
            told[name] += more
        write()

    write()
    monkeypatch.setattr(cpu_log, "STAT", tmp_path / "stat")
    monkeypatch.setattr(cpu_log.time, "perf_counter", lambda: told["clock"])
    monkeypatch.setattr(cpu_log.time, "process_time", lambda: told["own"])
    return advance


def test_cores_are_told_apart(passes: Pass, caplog: pytest.LogCaptureFixture) -> None:
    log = CpuLog(CPU)
    passes(2.0, own=3.0, all_=3.6)
    found = log.summary()
    assert found == pytest.approx({"own": 1.5, "others": 0.3, "stolen": 0.0})
    cpu_log.warn(found)
    assert not caplog.records


@pytest.mark.parametrize(("spent", "who"), [({"all_": 7.0}, "other processes"), ({"stolen": 4.0}, "virtual machines")])
def test_a_disturbed_timing_is_warned_of(
    passes: Pass, caplog: pytest.LogCaptureFixture, spent: dict[str, float], who: str
) -> None:
    log = CpuLog(CPU)
    passes(2.0, own=2.0, **({"all_": 2.0} | spent))
    found = log.summary()
    assert not caplog.records  # a CPU's own times
    with caplog.at_level(logging.WARNING):
        cpu_log.warn(found)
    assert who in caplog.text
    assert len(caplog.records) == 1


def test_ranks_of_one_host_are_no_others_and_of_several_hosts_the_busiest_counts(
    passes: Pass, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two ranks of a host whose cores they keep busy alone, and one of a host that is shared."""
    ranks = [[7.0, 1.0, 3.1, 0.0], [7.0, 2.0, 3.1, 0.0], [8.0, 1.0, 2.5, 0.25]]  # host; own, all and stolen cores
    monkeypatch.setattr(cpu_log.distributed, "gather_tensors", lambda _: [torch.tensor(one) for one in ranks])
    log = CpuLog(CPU)
    passes(1.0)
    assert log.summary() == pytest.approx({"own": 3.0, "others": 1.5, "stolen": 0.25})


def test_ticks_that_lag_behind_the_clock_are_no_negative_load(passes: Pass) -> None:
    log = CpuLog(CPU)
    passes(0.004, own=0.004)
    assert log.summary()["others"] == 0.0


def test_where_the_system_does_not_say_nothing_is_claimed(passes: Pass, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_log, "STAT", Path("/nowhere"))
    log = CpuLog(CPU)
    passes(1.0, own=0.5)
    assert log.summary() == {"own": 0.5, "others": None, "stolen": None}
