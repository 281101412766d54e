"""Which files of a folder a run has written. A new try deletes these; what else stands there is left alone.

obstacle(path, hash_)        # None, or why a run of the configuration with this hash can't start there
clear(path, RUN_FILES)       # delete what an earlier try of the same configuration has written
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

import yaml

from blockshock.run_folder.files import Unreadable, printable, read_object, read_text
from blockshock.run_folder.naming import config_hash

STATUS, CONFIG, RECORDS, LOCK = "status.json", "config.yaml", "metrics.jsonl", ".lock"
LOCKS = (LOCK, f"{LOCK}.owner")  # the second where the file system has no flock
# What every run writes; a phase names its own in `files`. `status.json` is replaced, never deleted.
RUN_FILES = (CONFIG, RECORDS, "env.json", "seed.txt", "log.rank[0-9]*.txt")
STARTING = (*LOCKS, ".hydra", "blockshock.log")  # what a run that has not begun leaves: our lock, Hydra's own
SWEEP_FILES = ("sweep.json", "multirun.yaml", *LOCKS, ".submitit", ".hydra", "report", "optimization_results.yaml")
_NAMED = 3  # names that a message shows


def clear(path: Path, patterns: Iterable[str]) -> None:
    """Delete the files whose names match one of `patterns`. Nothing else, and no folder."""
    for file in path.iterdir():
        if _is_one_of(file.name, patterns) and (file.is_file() or file.is_symlink()):
            file.unlink(missing_ok=True)


def obstacle(path: Path, hash_: str, untouched: bool = False) -> str | None:
    """Why a run of the configuration with this hash can't write into `path`; None where it can.

    A run of the same configuration there is replaced. `untouched`: Hydra has not been there yet, so anything but a run
    is somebody else's.
    """
    if not path.is_dir():
        return "is no folder" if path.exists() or path.is_symlink() else None
    owner = hash_in(path)
    if owner == hash_ or (owner is not None and _was_never_measured(path)):
        return None
    if owner is not None:
        return f"holds the run of another configuration ({owner}, this one is {hash_}); choose another folder"
    names = sorted(file.name for file in path.iterdir())
    ours = [name for name in names if _is_one_of(name, (STATUS, *RUN_FILES))]
    if ours:
        return f"has {_some(ours)}, and nothing says of which configuration; choose another folder, or delete this one"
    others = [name for name in names if not _is_one_of(name, STARTING)]
    return f"holds other files ({_some(others)}); choose an empty folder" if others and untouched else None


def obstacle_to_sweep(path: Path) -> str | None:
    """Why a sweep can't write into `path`: something else than a sweep is there."""
    if not path.is_dir() or (path / "sweep.json").exists():
        return None
    names = sorted(file.name for file in path.iterdir() if not _is_sweeps(file))
    return f"holds other files ({_some(names)}); choose an empty folder, or a sweep's" if names else None


def hash_in(path: Path) -> str | None:
    """The hash of the configuration whose run is in `path`: of its status, or of config.yaml where that is broken."""
    try:
        found = read_object(path / STATUS).get("config_hash")
        if isinstance(found, str):
            return found
    except (Unreadable, FileNotFoundError):
        pass
    try:
        config = yaml.safe_load(read_text(path / CONFIG))
        return config_hash(config) if _is_of_a_run(config) else None
    except (Unreadable, FileNotFoundError, yaml.YAMLError):
        return None


def _was_never_measured(path: Path) -> bool:
    """A job that could not run: its status and configuration are all there is."""
    try:
        return read_object(path / STATUS).get("status") == "unsupported" and not (path / RECORDS).exists()
    except (Unreadable, FileNotFoundError):
        return False


def _is_of_a_run(config: object) -> bool:
    """Other programs have a config.yaml too."""
    if not isinstance(config, dict) or not all(isinstance(options, dict) for options in config.values()):
        return False
    return {"experiment", "phase", "model"} <= config.keys()


def _is_sweeps(file: Path) -> bool:
    """One of a sweep's own files, or a folder in which there are runs (`hydra.sweep.subdir` may be a few deep)."""
    if _is_one_of(file.name, SWEEP_FILES):
        return True
    return file.is_dir() and any(next(file.glob(f"{'*/' * depth}{STATUS}"), None) for depth in range(3))


def _is_one_of(name: str, patterns: Iterable[str]) -> bool:
    """Also `.status.json.123`: what write_atomically leaves of a process that was killed."""
    names = [name] + [name[1:].rpartition(".")[0]] * (name.startswith(".") and name.rpartition(".")[2].isdecimal())
    return any(fnmatchcase(each, pattern) for each in names for pattern in patterns)


def _some(names: list[str]) -> str:
    shown = ", ".join(printable(name) for name in names[:_NAMED])
    return shown + (f" and {len(names) - _NAMED} more" if len(names) > _NAMED else "")
