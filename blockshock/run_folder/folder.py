"""The run folder: what one job leaves behind, readable after a `kill -9` at any moment.

config.yaml, env.json, seed.txt, metrics.jsonl (one line a measurement), status.json, log.rank<r>.txt.
"""

from __future__ import annotations

import errno
import json
import math
import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import UnionType
from typing import Any

from filelock import Timeout
from omegaconf import OmegaConf

from blockshock import SCHEMA
from blockshock.errors import ConfigError
from blockshock.locks import locked
from blockshock.run_folder import contents
from blockshock.run_folder.files import Unreadable, parse_object, printable, read_object, read_text, write_atomically
from blockshock.run_folder.naming import config_hash

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
        self._own_run: str | None = None  # the run that this object has started

    def start(self, config: dict[str, Any], run_id: str) -> None:
        """Make the folder and say `running`. Files of an earlier try with the same configuration are deleted; those
        of its phase by `clear`.

        Raises ConfigError, and leaves the folder as it is, where it holds something else.
        """
        self._own_run = run_id
        hash_ = self._check_owner(config)
        self.path.mkdir(parents=True, exist_ok=True)
        self._status("running", "", started=_now(), ended=None, hash_=hash_, run_id=run_id)
        contents.clear(self.path, contents.RUN_FILES)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        write_atomically(self.path / "seed.txt", f"{config['experiment']['seed']}\n")

    def clear(self, phase: Any) -> None:
        """Delete what an earlier try has written beside what every run writes: the files that `phase` names."""
        contents.clear(self.path, getattr(phase, "files", ()))

    @contextmanager
    def claim(self, wait_s: float = 30.0) -> Iterator[bool]:
        """The folder to this process, until it ends, however it ends; False where another keeps it for `wait_s`.

        Where the file system has no `flock`, the lock is a file with the process's name in it (blockshock/locks.py).
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                stack.enter_context(locked(self.path / contents.LOCK, wait_s))
            except Timeout:
                yield False
            else:
                yield True

    def is_claimed(self) -> bool:
        """Whether another process holds the folder now. Makes nothing."""
        if not (self.path / contents.LOCK).exists():
            return False
        with self.claim(wait_s=0.0) as ours:
            return not ours

    def is_done(self, config: dict[str, Any] | None = None) -> bool:
        """Whether this folder's job is `ok` and has its records; with `config`, the job of that configuration."""
        if not (self.path / contents.STATUS).exists():
            return False
        found = self.checked_status()
        return found["status"] == "ok" and (config is None or found["config_hash"] == config_hash(config))

    def close(self, config: dict[str, Any], status: str, reason: str, run_id: str, requeued: bool = False) -> None:
        """Record how a job ended that could not say so itself, or that can't run: also where it made no folder.

        Raises ConfigError, and leaves the folder as it is, where it holds something else.
        """
        hash_ = self._check_owner(config)
        self.path.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        now = _now()
        self._status(status, reason, started=now, ended=now, hash_=hash_, run_id=run_id, requeued=requeued)

    def finish(self, status: str, reason: str = "", value: float | None = None, requeued: bool = False) -> None:
        """Write how the run ended. The first failure stands: a later `ok` or a peer's echo does not replace it.

        `requeued`: for now; SLURM starts the job over, and what becomes of it then replaces this status.
        """
        if not (self.path / contents.STATUS).exists():
            return  # interrupted before the folder was made, or the folder was deleted meanwhile
        now = self.status()
        if now["status"] != "running" and not now.get("requeued"):
            return
        if self._own_run not in (None, now.get("run_id")):
            return  # another run's status: this one was not let in
        ended = max(_now(), now["started"], key=datetime.fromisoformat)  # clocks may have been set back
        kept = {"started": now["started"], "hash_": now["config_hash"], "run_id": now.get("run_id", "")}
        self._status(status, reason, ended=ended, value=value, requeued=requeued, **kept)

    def is_requeued(self) -> bool:
        """Whether the job has said that SLURM starts it over."""
        return (self.path / contents.STATUS).exists() and bool(self.status().get("requeued"))

    def has_ended(self) -> bool:
        """Whether the job has written how it ended, and is not to start over."""
        if not (self.path / contents.STATUS).exists():
            return False
        found = self.status()
        return found["status"] not in ("running", UNREADABLE) and not found.get("requeued")

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
            return {"status": UNREADABLE, "reason": printable(str(error))}
        return found | {"reason": printable(found["reason"])}

    def checked_status(self) -> dict[str, Any]:
        """As `status`, but `unreadable` too where it is `ok` and what it measured is gone or not whole."""
        found = self.status()
        problem = self._problem_of_records() if found["status"] == "ok" else None
        return {"status": UNREADABLE, "reason": problem} if problem else found

    def _problem_of_records(self) -> str | None:
        """What is wrong with the records of a run that is `ok`: every phase records some."""
        if not self.has_records():
            return NO_RECORDS
        try:
            for number, line in enumerate(read_text(self.path / contents.RECORDS).splitlines(keepends=True), start=1):
                parse_object(f"{contents.RECORDS}: line {number}", line)
                if not line.endswith("\n"):
                    return f"{contents.RECORDS}: line {number}: not whole"
        except FileNotFoundError:
            return None  # a kind of run that keeps none
        except Unreadable as error:
            return printable(str(error))
        return None

    def has_records(self) -> bool:
        try:
            return (self.path / "metrics.jsonl").stat().st_size > 0
        except FileNotFoundError:
            return False

    def append(self, *records: dict[str, Any]) -> None:
        """A line each, written with one call and synced. NaN and inf become null.

        A SIGKILL may cut the last line, since Linux writes page by page. Readers leave such a line out, or name it
        where the run is `ok`; the next run replaces the file.

        Raises OSError where the disk is full; the file is then as it was.
        """
        texts = (json.dumps(_finite(record), separators=(",", ":"), allow_nan=False) for record in records)
        lines = "".join(f"{text}\n" for text in texts).encode()
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

    def _check_owner(self, config: dict[str, Any]) -> str:
        """The configuration's hash; ConfigError where the folder holds something else than its runs."""
        hash_ = config_hash(config)
        problem = contents.obstacle(self.path, hash_)
        if problem:
            raise ConfigError("folder", self.path, problem)
        return hash_

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
        requeued: bool = False,
    ) -> None:
        assert status in STATUSES, status
        content = {
            "schema": SCHEMA,
            "status": status,
            "reason": printable(reason),
            "started": started,
            "ended": ended,
            "config_hash": hash_,
            "run_id": run_id,
            "value": value,  # what the job returned to Hydra, for a sweeper that asks again
            "pid": os.getpid(),
            "pid_started": process_start(os.getpid()),  # another process may be given the same number later
            "host": socket.gethostname(),
        }
        if requeued:
            content["requeued"] = True
        self.write_json("status.json", content)


def process_start(pid: int) -> int | None:
    """When a process of this host started, in clock ticks since boot; None where that can't be known."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return int(fields[19])


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
