"""What a launcher leaves in the folder of another application's job: status.json and the log; Hydra does the rest.

Nothing else is written or deleted there. `status.json` is what a run folder's is, and says in `config_hash` which
configuration it is about: the resolved one, without Hydra's own node.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cloudpickle

from blockshock.run_folder.contents import STATUS
from blockshock.run_folder.files import write_atomically
from blockshock.run_folder.folder import RunFolder

VALUE = "return_value.pkl"  # what a job returned, where JSON has no word for it


def hash_of(settled: dict[str, Any]) -> str:
    """Twelve hex digits over every key and value."""
    return hashlib.sha256(json.dumps(settled, sort_keys=True, default=str).encode()).hexdigest()[:12]


class TaskFolder(RunFolder):
    """A job's folder that belongs to its application; only the status is ours."""

    def begin(self, settled: dict[str, Any], run_id: str) -> None:
        """Say `running`."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.forget()
        self._status("running", "", started=_now(), ended=None, hash_=hash_of(settled), run_id=run_id)

    def forget(self) -> None:
        """Remove what we wrote of an earlier run."""
        for name in (STATUS, VALUE):
            (self.path / name).unlink(missing_ok=True)

    def rank_is_done(self, rank: int, try_: str) -> None:
        """Say to rank 0 that this rank's task has returned. `try_`: which start of the job it was."""
        write_atomically(self._done(rank), try_)

    def ranks_are_done(self, ranks: int, try_: str) -> bool:
        """Whether all other ranks have said so in this start of the job. Removes their files once they have."""
        others = [self._done(rank) for rank in range(1, ranks)]
        if any(not path.exists() or path.read_text() != try_ for path in others):
            return False
        for path in others:
            path.unlink(missing_ok=True)
        return True

    def _done(self, rank: int) -> Path:
        return self.path / f".rank{rank}.done"

    def close(self, config: dict[str, Any], status: str, reason: str, run_id: str, requeued: bool = False) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        now, hash_ = _now(), hash_of(config)
        self._status(status, reason, started=now, ended=now, hash_=hash_, run_id=run_id, requeued=requeued)

    def is_done(self, config: dict[str, Any] | None = None) -> bool:
        """Whether the job is `ok`; with `config`, the job of that configuration."""
        if not (self.path / STATUS).exists():
            return False
        found = self.status()
        return found["status"] == "ok" and (config is None or found["config_hash"] == hash_of(config))

    def finish_with(self, value: Any) -> None:
        """Record `ok` and what the task returned. Raises what pickling raises: the job is then not `ok`."""
        if _is_json(value):
            self.finish("ok", value=value)
        else:
            temporary = self.path / f".{VALUE}.{os.getpid()}"
            temporary.write_bytes(cloudpickle.dumps(value))
            os.replace(temporary, self.path / VALUE)
            self.finish("ok")

    def value(self) -> Any:
        """What the task has returned."""
        kept = self.status().get("value")
        path = self.path / VALUE
        return pickle.loads(path.read_bytes()) if kept is None and path.exists() else kept

    def has_records(self) -> bool:
        """A task keeps what it measures wherever it likes."""
        return True


def _is_json(value: Any) -> bool:
    """Whether a reader of JSON gets the same value back, types included."""
    if type(value) is dict:
        return all(type(key) is str and _is_json(child) for key, child in value.items())
    if type(value) is list:
        return all(map(_is_json, value))
    return value is None or type(value) in (bool, int, str) or (type(value) is float and math.isfinite(value))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
