"""Machines that lack something: CPU time, a home folder, locks in the file system, a reader of what is printed."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import warnings

import pytest
import torch
from filelock import Timeout

from blockshock.cli.pipes import BY_SIGPIPE
from blockshock.locks import locked
from blockshock.measure import cache, cpu, environment
from blockshock.measure.cache import cached_measurement

CPU = torch.device("cpu")


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """`cgroups(own, files)`: /proc/self/cgroup and the files below /sys/fs/cgroup, on a machine of eight cores."""

    def arrange(own: str, files: dict[str, str]) -> None:
        monkeypatch.setattr(cpu, "CGROUPS", tmp_path / "cgroup")
        monkeypatch.setattr(cpu, "OWN_GROUPS", tmp_path / "own")
        (tmp_path / "own").write_text(own)
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    return arrange


V1 = "9:name=systemd:/\n3:cpu,cpuacct:/docker/abc\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "quota", "available"),
    [
        ("0::/pod/job\n", {"pod/job/cpu.max": "300000 100000\n", "pod/cpu.max": "max 100000\n"}, 3.0, 3),
        ("0::/pod/job\n", {"pod/job/cpu.max": "max 100000\n", "pod/cpu.max": "150000 100000\n"}, 1.5, 1),
        ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5, 1),  # as a container sees its own group
        ("0::/../outside\n", {"cpu.max": "400000 100000\n"}, 4.0, 4),
        (V1, {"cpu,cpuacct/cpu.cfs_quota_us": "250000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"}, 2.5, 2),
        (V1, {"cpu/docker/abc/cpu.cfs_quota_us": "-1\n", "cpu/docker/abc/cpu.cfs_period_us": "100000\n"}, None, 8),
        ("0::/pod\n", {"pod/cpu.max": "max 100000\n"}, None, 8),
        ("0::/pod\n", {"pod/cpu.max": "1600000 100000\n"}, 16.0, 8),  # more than there are cores
        ("", {}, None, 8),
    ],
)
def test_a_containers_cpu_quota_limits_the_threads_and_is_recorded(cgroups, own, files, quota, available):
    cgroups(own, files)
    assert cpu.cpu_quota() == quota
    assert cpu.available_cpus() == available
    recorded = environment.describe(CPU)["cpu"]
    assert (recorded["quota"], recorded["available"]) == (quota, available)


@pytest.mark.parametrize("home", [None, "/nowhere/at/all"])
def test_without_a_home_folder_measurements_are_kept_in_the_temporary_one_and_that_is_said_once(
    tmp_path, monkeypatch, caplog, home
):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.tempfile, "gettempdir", lambda: str(tmp_path))
    if home is None:
        monkeypatch.delenv("HOME", raising=False)
        monkeypatch.setattr("pwd.getpwuid", lambda uid: {}[uid])  # this user is in no list
    else:
        monkeypatch.setenv("HOME", home)
    cache._without_home.cache_clear()
    for _ in range(3):
        assert cached_measurement("product", {"N": 1}, CPU, lambda: {"gather": 1.0}, ["gather"]) == {"gather": 1.0}
    (kept,) = tmp_path.glob("blockshock-*/measured-*.json")
    assert json.loads(kept.read_text()) == {"product": {"N=1": {"gather": 1.0}}}
    assert sum("set XDG_CACHE_HOME to keep them elsewhere" in r.getMessage() for r in caplog.records) == 1
    cache._without_home.cache_clear()


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_flock_still_gives_a_lock_to_one_at_a_time(tmp_path, monkeypatch, number):
    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    warnings.simplefilter("error")  # filelock would warn of it
    with locked(tmp_path / ".lock", wait_s=0), pytest.raises(Timeout), locked(tmp_path / ".lock", wait_s=0.1):
        pass
    with locked(tmp_path / ".lock", wait_s=0):
        pass
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cached_measurement("product", {"N": 1}, CPU, lambda: {"gather": 1.0}, ["gather"])
    assert cached_measurement("product", {"N": 1}, CPU, lambda: {"gather": 2.0}, ["gather"]) == {"gather": 1.0}


def test_a_cache_that_another_job_keeps_locked_costs_the_entry_and_not_the_job(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "WAIT_S", 0.1)
    path = cache.cache_path(CPU)
    path.parent.mkdir(parents=True)
    with locked(path.with_suffix(".lock"), wait_s=0):
        assert cached_measurement("product", {"N": 1}, CPU, lambda: {"gather": 1.0}, ["gather"]) == {"gather": 1.0}
    assert "can't be kept" in caplog.text
    assert not path.exists()


@pytest.mark.parametrize(
    "module", ["blockshock.cli.main", "blockshock.cli.tune", "sweeps.report.command", "sweeps.status"]
)
def test_a_command_whose_reader_has_left_ends_without_a_word(tmp_path, module):
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-c", f"from {module} import main; main()", "--help"]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=tmp_path, env=env)
    os.close(writer)
    assert (done.returncode, done.stderr) == (BY_SIGPIPE, "")
