"""Batch scripts through submitit: its pickles, script and folder, with what it leaves out.

executor = ArrayExecutor(folder)               # parameters as submitit.SlurmExecutor has them
ids = executor.submit_calls(function, [arguments, ...])     # ["17_0", "17_1", ...]
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import _make_sbatch_string

from blockshock.errors import ConfigError

PARTITION_LIMIT = 10**9  # minutes: for submitit, which wants a number; the batch script then has no --time


class ArrayExecutor(submitit.SlurmExecutor):
    """Every submission is an array; submitit's own arrays would not use the batch script of this class."""

    @classmethod
    def affinity(cls) -> int:
        """Scripts can be shown where there is no SLURM."""
        return 2

    def submit_calls(self, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[str]:
        """SLURM's ids of `function(*arguments[i])`, in order. Raises what submitit raises where sbatch refuses."""
        self.folder.mkdir(parents=True, exist_ok=True)
        pickles = []
        for one in arguments:
            delayed = DelayedSubmission(function, *one)
            delayed.set_timeout(self.parameters["time"], 0)
            pickles.append(self.folder / f"{uuid.uuid4().hex}.pkl")
            delayed.dump(pickles[-1])
        try:
            array = self._submit_command(self._submitit_command_str, len(arguments)).job_id
        except BaseException:
            for path in pickles:
                path.unlink()
            raise
        ids = [f"{array}_{task}" for task in range(len(arguments))]
        for id_, path in zip(ids, pickles, strict=True):
            JobPaths(self.folder, id_).move_temporary_file(path, "submitted_pickle")
        return ids

    def script(self, count: int) -> str:
        """The batch script of an array of `count` jobs."""
        self.parameters["map_count"] = count
        return self._make_submission_file_text(self._submitit_command_str, "")

    def _submit_command(self, command: str, count: int = 1) -> submitit.Job[Any]:
        self.parameters["map_count"] = count
        return super()._submit_command(command)

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        # In the names of output files % begins a pattern: one of a folder's own is written %%.
        written = str(self.folder).replace("%", "%%")
        text: str = _make_sbatch_string(command=command, folder=written, **self.parameters)
        return text.replace(f"#SBATCH --time={PARTITION_LIMIT}\n", "")


def check_path(path: str) -> None:
    """Refuse a folder whose name holds a pattern that submitit replaces wherever it finds it."""
    pattern = next((pattern for pattern in ("%j", "%t", "%A", "%a") if pattern in path), None)
    if pattern:
        problem = f"its path holds {pattern}, which submitit replaces by a job's number; choose a folder without"
        raise ConfigError("hydra.sweep.dir", path, problem)
