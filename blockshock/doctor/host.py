"""Checks of the host: Python, packages, processors, memory, disks and SLURM."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from blockshock.doctor.finding import BROKEN, LIMITED, MISSING, WORKS, Check, Finding
from blockshock.measure.cache import cache_folder
from blockshock.measure.cpu import available_cpus, cpu_name, cpu_quota

OLDEST_PYTHON = (3, 11)
SMALL_SHARED_MEMORY = 2**26  # bytes: what containers have by default, and NCCL runs out of
SMALL_DISK = 2**30
GIB = 2**30
ANSWER_S = 10.0  # SLURM's controller gets so long


def python() -> Finding:
    version = platform.python_version()
    if sys.version_info < OLDEST_PYTHON:
        return Finding(BROKEN, version, f"install Python {'.'.join(map(str, OLDEST_PYTHON))} or later")
    return Finding(WORKS, f"{version}, {platform.platform(terse=True)}")


def packages() -> Finding:
    """What this project's own metadata asks for."""
    try:
        asked = importlib.metadata.requires("block-shock") or []
    except importlib.metadata.PackageNotFoundError:
        return Finding(LIMITED, "block-shock is not installed: it runs from its folder", "pip install . in that folder")
    names = [re.split(r"[^\w.-]", line)[0] for line in asked if "extra ==" not in line]
    absent = [name for name in names if _version(name) is None]
    if absent:
        return Finding(BROKEN, f"without {', '.join(absent)}", f"pip install {' '.join(absent)}")
    return Finding(WORKS, f"block-shock {_version('block-shock')} and the {len(names)} packages that it needs")


def models() -> Finding:
    version = _version("transformers")
    if version is None:
        return Finding(
            MISSING, "no transformers", "pip install transformers: workload=gpt2, llama, bert and vit need it"
        )
    return Finding(WORKS, f"transformers {version}")


def processors() -> Finding:
    count, quota = available_cpus(), cpu_quota()
    found = f"{count} of {os.cpu_count()} cores, {cpu_name()}"
    if count < 2:
        return Finding(LIMITED, found, "give it two cores or more: ranks of one job share these")
    return Finding(WORKS, found if quota is None else f"{found}, a quota of {quota:g}")


def memory() -> Finding:
    found = psutil.virtual_memory()
    return Finding(WORKS, f"{found.available / GIB:.1f} of {found.total / GIB:.1f} GiB free")


def shared_memory() -> Finding:
    """/dev/shm, through which processes of one host pass data."""
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding(LIMITED, "no /dev/shm", "mount one (docker run --shm-size=1g): NCCL's ranks of one host use it")
    size = shutil.disk_usage(folder).total
    found = f"{size / GIB:.2f} GiB"
    if size <= SMALL_SHARED_MEMORY:
        return Finding(LIMITED, found, "make it larger (docker run --shm-size=1g): NCCL may run out of it")
    return Finding(WORKS, found)


def results() -> Finding:
    """Where runs are written by default."""
    return _writable(Path.cwd(), "experiment.output_dir=FOLDER writes results elsewhere")


def cache() -> Finding:
    """Where what was measured once is kept."""
    return _writable(cache_folder(), "set XDG_CACHE_HOME to a folder that can be written; else each job measures anew")


def slurm() -> Finding:
    if shutil.which("sbatch") is None or shutil.which("sinfo") is None:
        return Finding(
            MISSING, "no sbatch and sinfo", "log in to a cluster for hydra/launcher=slurm; local needs nothing"
        )
    asked = subprocess.run(
        ["sinfo", "--noheader", "--format", "%P %D %G"], capture_output=True, text=True, timeout=ANSWER_S
    )
    if asked.returncode:
        said = (asked.stderr.strip().splitlines() or [f"exit status {asked.returncode}"])[-1]
        return Finding(LIMITED, f"sinfo: {said}", "the controller must answer before jobs can be sent to it")
    partitions = [line.split() for line in asked.stdout.splitlines() if line.strip()]
    if not partitions:
        return Finding(LIMITED, "no partition", "ask for access to a partition")
    return Finding(WORKS, "; ".join(f"{name}: {nodes} nodes, {_gpus(gres)}" for name, nodes, gres in partitions[:6]))


def _gpus(gres: str) -> str:
    return gres if "gpu" in gres else "no GPUs"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _writable(folder: Path, remedy: str) -> Finding:
    """Whether a file can be made in `folder`, or in the nearest one above it that is there; nothing is left behind."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        return Finding(LIMITED, f"{folder}: {error.strerror}", remedy)
    free = shutil.disk_usage(there).free
    found = f"{folder}, {free / GIB:.1f} GiB free"
    return Finding(LIMITED if free < SMALL_DISK else WORKS, found, remedy if free < SMALL_DISK else "")


CHECKS = [
    Check("Python", python, needed=True),
    Check("packages", packages, needed=True),
    Check("models", models),
    Check("processors", processors),
    Check("memory", memory),
    Check("shared memory", shared_memory),
    Check("results", results),
    Check("cache", cache),
    Check("SLURM", slurm, remedy="the controller must answer before jobs can be sent to it"),
]
