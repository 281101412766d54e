"""Batch scripts through submitit: its pickles, script and folder, with what it leaves out.

executor = ArrayExecutor(folder)               # parameters as submitit.SlurmExecutor has them
ids = executor.submit_calls(function, [arguments, ...])     # ["17_0", "17_1", ...]
"""

from __future__ import annotations

import re
import subprocess
import uuid
from collections.abc import Callable, Sequence
from typing import Any

import submitit
from submitit.core.utils import DelayedSubmission, JobPaths
from submitit.slurm.slurm import _make_sbatch_string

DEFAULT_ARRAY = 1001  # SLURM's own MaxArraySize, where the cluster does not say
PARTITION_LIMIT = 10**9  # minutes: for submitit, which wants a number; the batch script then has no --time


def array_limit() -> int:
    """How many jobs one array of this cluster may have, and how many its controller holds (with other users' jobs)."""
    try:
        shown = subprocess.run(["scontrol", "show", "config"], capture_output=True, text=True, timeout=60).stdout
    except (OSError, subprocess.TimeoutExpired):
        shown = ""
    found = {
        key: int(value) for key, value in re.findall(r"^(MaxArraySize|MaxJobCount)\s*= (\d+)$", shown, re.MULTILINE)
    }
    return max(1, min(found.get("MaxArraySize", DEFAULT_ARRAY), found.get("MaxJobCount", DEFAULT_ARRAY) - 1))


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
