"""The run folder: what one job leaves behind, readable after a `kill -9` at any moment.

config.yaml, env.json, seed.txt, metrics.jsonl (one line a measurement), status.json, log.rank<r>.txt.
"""

from __future__ import annotations

import errno
import fcntl
import json
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any

from omegaconf import OmegaConf

from blockshock import SCHEMA
from blockshock.config import Job
from blockshock.run_folder.files import Unreadable, read_object, write_atomically
from blockshock.run_folder.naming import config_hash

# What a new try finds in its folder and keeps: its own status, the lock it holds (claim), Hydra's log that goes on.
KEPT = ("status.json", ".lock", "blockshock.log")
STATUSES = ("ok", "oom", "unsupported", "failed", "timeout", "running")
UNREADABLE = "unreadable"  # what `checked_status` says of a folder whose result can't be read; never written
NO_RECORDS = "metrics.jsonl: missing or empty, its records are gone"
# What status.json holds. What else it may hold is asked for with `get`.
_KINDS: dict[str, type | UnionType] = dict.fromkeys(("status", "reason", "started", "config_hash"), str)
_KINDS |= {"ended": str | None, "pid": int | None, "host": str | None}


class RunFolder:
    """One job's folder. Only one process writes a given file: the parent (or rank 0) the status, rank 0 the rest."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def start(self, job: Job, run_id: str) -> None:
        """Make the folder and say `running`. Records of an earlier try with the same configuration go."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._status("running", "", started=_now(), ended=None, hash_=config_hash(job.config), run_id=run_id)
        for stale in self.path.iterdir():
            if stale.is_file() and stale.name not in KEPT:
                stale.unlink()
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(job.config)))
        write_atomically(self.path / "seed.txt", f"{job.experiment.seed}\n")

    def reopen(self, config: dict[str, Any], run_id: str) -> None:
        """Make the folder, or open one again, and say `running`. Records stay: for what is measured cell by cell."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._status("running", "", started=_now(), ended=None, hash_=config_hash(config), run_id=run_id)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))

    @contextmanager
    def claim(self, wait_s: float = 30.0) -> Iterator[bool]:
        """The folder to this process, until it ends, however it ends; False where another keeps it for `wait_s`."""
        self.path.mkdir(parents=True, exist_ok=True)
        deadline = time.monotonic() + wait_s
        with open(self.path / ".lock", "w") as lock:
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        yield False
                        return
                    time.sleep(0.1)
                else:
                    yield True
                    return

    def is_done(self) -> bool:
        """Whether this folder's job has been measured, is `ok` and has its records."""
        return (self.path / "status.json").exists() and self.checked_status()["status"] == "ok"

    def close(self, config: dict[str, Any], status: str, reason: str, run_id: str) -> None:
        """Record how a job ended that could not say so itself, or that can't run: also where it made no folder."""
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        now = _now()
        self._status(status, reason, started=now, ended=now, hash_=config_hash(config), run_id=run_id)

    def finish(self, status: str, reason: str = "", value: float | None = None) -> None:
        """Write the final status. The first failure stands: a later `ok` or a peer's echo does not replace it."""
        if not (self.path / "status.json").exists():
            return  # interrupted before the folder was made
        now = self.status()
        if now["status"] != "running":
            return
        kept = {"started": now["started"], "hash_": now["config_hash"], "run_id": now["run_id"]}
        self._status(status, reason, ended=_now(), value=value, **kept)

    def status(self) -> dict[str, Any]:
        """Its status.json; where that can't be read the status is `unreadable`, and the reason says why."""
        path = self.path / "status.json"
        try:
            found = read_object(path, _KINDS)
            if found["status"] not in STATUSES:
                raise Unreadable(f"{path.name}: no such status: {found['status']!r}")
            for moment in filter(None, (found["started"], found["ended"])):
                _time(path.name, moment)
        except Unreadable as error:
            return {"status": UNREADABLE, "reason": str(error)}
        return found

    def checked_status(self) -> dict[str, Any]:
        """As `status`, but `unreadable` too where it is `ok` and what it measured is gone: every phase records some."""
        found = self.status()
        if found["status"] == "ok" and not self.has_records():
            return {"status": UNREADABLE, "reason": NO_RECORDS}
        return found

    def has_records(self) -> bool:
        try:
            return (self.path / "metrics.jsonl").stat().st_size > 0
        except FileNotFoundError:
            return False

    def append(self, *records: dict[str, Any]) -> None:
        """A line each, written with one call and synced: a reader sees all or none. NaN and inf become null.

        Raises OSError where the disk is full; the file is then as it was.
        """
        told = (json.dumps(_finite(record), separators=(",", ":"), allow_nan=False) for record in records)
        lines = "".join(f"{line}\n" for line in told).encode()
        descriptor = os.open(self.path / "metrics.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            before = os.fstat(descriptor).st_size
            written = os.write(descriptor, lines)
            if written < len(lines):
                os.ftruncate(descriptor, before)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path / "metrics.jsonl"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def records(self) -> list[dict[str, Any]]:
        path = self.path / "metrics.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def write_json(self, name: str, content: dict[str, Any]) -> None:
        write_atomically(self.path / name, json.dumps(content, indent=1, sort_keys=True) + "\n")

    def log_path(self, rank: int) -> Path:
        return self.path / f"log.rank{rank}.txt"

    def _status(
        self,
        status: str,
        reason: str,
        *,
        started: str,
        ended: str | None,
        hash_: str,
        run_id: str,
        value: float | None = None,
    ) -> None:
        assert status in STATUSES, status
        content = {
            "schema": SCHEMA,
            "status": status,
            "reason": reason,
            "started": started,
            "ended": ended,
            "config_hash": hash_,
            "run_id": run_id,
            "value": value,  # what the job returned to Hydra, for a sweeper that asks again
            "pid": os.getpid(),
            "host": socket.gethostname(),
        }
        self.write_json("status.json", content)


def _time(name: str, text: str) -> None:
    try:
        known = datetime.fromisoformat(text).tzinfo is not None
    except ValueError:
        known = False
    if not known:
        raise Unreadable(f"{name}: {text!r} is no time with its zone")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
