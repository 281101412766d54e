"""blockshock-doctor: what it says of this machine, of what is missing, and of what is broken."""

import importlib.metadata
import json
import logging
import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from blockshock.cli import doctor
from blockshock.doctor import devices, host
from blockshock.doctor.finding import BROKEN, LIMITED, MISSING, STATES, WORKS, Check, Finding

Usage = namedtuple("Usage", "total used free")


def look(name: str) -> Finding:
    return next(check for check in (*host.CHECKS, *devices.CHECKS) if check.name == name).run()


def only(monkeypatch: pytest.MonkeyPatch, *checks: Check) -> None:
    monkeypatch.setattr(doctor, "_checks", lambda: iter(checks))


@pytest.mark.slow
def test_every_check_answers_here_and_what_all_work_needs_works(capsys):
    doctor.main(["--json"])
    said = json.loads(capsys.readouterr().out)
    found = {row["check"]: row for row in said["checks"]}
    assert all(row["state"] in STATES and row["found"] for row in found.values())
    for name in ("Python", "packages", "PyTorch", "compiler", "ranks", "results", "cache"):
        assert found[name]["state"] == WORKS, found[name]
    assert all(row["remedy"] for row in found.values() if row["state"] == LIMITED)
    assert said["version"].startswith("block-shock ")


@pytest.mark.gpu
@pytest.mark.parametrize(
    "name", ["GPUs", "driver", "clocks", "compiler", "Triton", "cuSPARSELt", "sparse_mma", "CUPTI"]
)
def test_on_a_gpu_all_of_it_works(name):
    assert look(name).state == WORKS, look(name)


def test_a_line_a_check_with_what_to_do_below_it_and_a_count_at_the_end(monkeypatch, capsys):
    only(
        monkeypatch,
        Check("disk", lambda: Finding(WORKS, "70 GiB [free]")),
        Check("SLURM", lambda: Finding(MISSING, "no sbatch", "log in to a cluster")),
    )
    doctor.main([])
    assert capsys.readouterr().out.splitlines() == [
        "works    disk           70 GiB [free]",
        "missing  SLURM          no sbatch",
        "                        → log in to a cluster",
        "1 works, 1 missing",
    ]


def test_logging_is_afterwards_as_it_was(monkeypatch, capsys):
    only(monkeypatch, Check("disk", lambda: Finding(WORKS, "70 GiB")))
    logging.disable(logging.DEBUG)
    try:
        doctor.main([])
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(logging.NOTSET)


def test_what_raises_is_broken_if_all_work_needs_it_and_limited_otherwise(monkeypatch, capsys):
    def fails() -> Finding:
        raise RuntimeError("CUDA driver version is insufficient\nand a long story")

    only(monkeypatch, Check("clocks", fails, remedy="a newer driver"))
    doctor.main([])
    said = capsys.readouterr().out
    assert "limited  clocks         RuntimeError: CUDA driver version is insufficient\n" in said
    assert "a newer driver" in said
    only(monkeypatch, Check("PyTorch", fails, needed=True), Check("disk", lambda: Finding(WORKS, "there")))
    with pytest.raises(SystemExit) as left:
        doctor.main([])
    assert left.value.code == 1
    assert "broken   PyTorch" in (said := capsys.readouterr().out)
    assert "works    disk" in said  # the others are looked at all the same


def test_a_pytorch_that_does_not_load_is_named_and_the_host_is_checked_all_the_same(monkeypatch, capsys):
    import sys

    monkeypatch.setitem(sys.modules, "blockshock.doctor.devices", None)
    monkeypatch.delattr("blockshock.doctor.devices")
    monkeypatch.setattr(host, "CHECKS", host.CHECKS[:1])
    with pytest.raises(SystemExit) as left:
        doctor.main(["--json"])
    assert left.value.code == 1
    python, torch = json.loads(capsys.readouterr().out)["checks"]
    assert (python["check"], python["state"]) == ("Python", WORKS)
    assert (torch["check"], torch["state"]) == ("PyTorch", BROKEN)


def test_packages_that_are_absent_are_named_with_the_command_that_installs_them(monkeypatch):
    asked = ["torch>=2.11", "no-such-package<3", "another.one; python_version > '3'", "pytest>=8; extra == 'test'"]
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: asked)
    found = look("packages")
    assert (found.state, found.remedy) == (BROKEN, "pip install no-such-package another.one")


@pytest.mark.parametrize(
    ("sinfo", "state", "said"),
    [
        ("echo 'gpu* 4 gpu:h100:8'; echo 'cpu 2 (null)'", WORKS, "gpu*: 4 nodes, gpu:h100:8; cpu: 2 nodes, no GPUs"),
        ("echo 'slurm_load_partitions: Unable to contact' >&2; exit 1", LIMITED, "Unable to contact"),
        ("true", LIMITED, "no partition"),
    ],
)
def test_slurm_is_asked(tmp_path: Path, monkeypatch, sinfo, state, said):
    for name, body in (("sinfo", sinfo), ("sbatch", "true")):
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    found = look("SLURM")
    assert found.state == state
    assert said in found.found


def test_without_slurm_it_is_missing_which_is_no_failure(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look("SLURM").state == MISSING


def test_folders_that_cannot_be_written_and_disks_that_are_nearly_full_are_limits(tmp_path: Path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert look("cache").state == LIMITED
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "new"))
    assert look("cache").state == WORKS
    assert not (tmp_path / "new").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(2**40, 2**40 - 2**20, 2**20))
    assert look("cache").state == look("results").state == LIMITED


def test_a_containers_small_shared_memory_is_a_limit(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(64 * 2**20, 0, 64 * 2**20))
    found = look("shared memory")
    assert (found.state, found.found) == (LIMITED, "0.06 GiB")
