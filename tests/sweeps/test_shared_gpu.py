"""hydra.launcher.jobs_per_gpu: jobs of one GPU run side by side, and measure one at a time. The GPU is a name here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from blockshock.errors import ConfigError
from sweeps.launchers.local import LocalLauncherConf, LocalRunner
from sweeps.launchers.machine.gpu_placement import Machine
from tests.launching import QUICK, environment, statuses, write_method

# A launcher on a machine that has one GPU, which nobody uses.
ONE_GPU = """
from sweeps.launchers import local
local._gpus = lambda: ["0"]
from blockshock.cli.main import main
main()
"""
SAYS_WHEN = """
import time
here = pathlib.Path(__file__)
with open(here.with_name(f"{len(x)}.times"), "a") as file:
    print(os.environ.get("BLOCKSHOCK_SHARED_GPU", ""), time.monotonic(), file=file)
if len(x) == 16 and "BLOCKSHOCK_SHARED_GPU" in os.environ:
    raise MemoryError("beside others")
"""


def sweep(folder: Path, *arguments: str) -> tuple[int, str]:
    mine = write_method(folder, SAYS_WHEN)
    options = (*QUICK, *mine, "model.N=16", "experiment.name=shared", "hydra.launcher.gpus=1", *arguments)
    command = [sys.executable, "-c", ONE_GPU, *options]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, timeout=240)
    return done.returncode, done.stderr


@pytest.mark.slow
def test_jobs_share_a_gpu_in_turns_and_one_without_room_runs_again_alone(tmp_path):
    code, err = sweep(tmp_path, "model.B=8,16,24,32", "hydra.launcher.jobs_per_gpu=3")
    assert code == 0, err
    times = {}
    for path in tmp_path.glob("*.times"):
        lines = [line.split(" ") for line in path.read_text().splitlines()]
        times[int(path.stem)] = [(shared, float(at)) for shared, at in lines]
    # a job's forwards are one after another, with none of another job's between
    moments = sorted((at, batch) for batch, found in times.items() if batch != 16 for _, at in found)
    order = [batch for i, (_, batch) in enumerate(moments) if i == 0 or batch != moments[i - 1][1]]
    assert sorted(order) == [8, 24, 32]
    shared = {batch: {said.rpartition(":")[2] for said, _ in found} for batch, found in times.items()}
    assert shared == {8: {"3"}, 24: {"3"}, 32: {"3"}, 16: {"3", ""}}
    assert {status["status"] for status in statuses(tmp_path).values()} == {"ok"}
    assert "runs again with the GPU to itself" in err
    jobs = {said.split(":")[-2] for batch, found in times.items() for said, _ in found if said}
    assert len(jobs) == 4  # each in a process of its own


@pytest.mark.slow
def test_jobs_that_share_ranks_share_a_gpu_too(tmp_path):
    code, err = sweep(
        tmp_path, "model.B=8,24,32,40", "hydra.launcher.jobs_per_gpu=2", "hydra.launcher.reuse_ranks=true"
    )
    assert code == 0, err
    said = [line for path in tmp_path.glob("*.times") for line in path.read_text().splitlines()]
    assert len({line.split(":")[-2] for line in said}) == 2  # processes, of two jobs each


def test_a_gpu_is_shared_by_at_most_so_many_jobs_the_emptiest_first():
    machine = Machine(["0", "1", "2"], [0], jobs_per_gpu=3)
    assert machine.with_room() is None  # what no one has is for `free`
    machine.hold([0], shared=True)
    machine.hold([1], shared=True)
    machine.hold([2], shared=False)
    machine.hold([0], shared=True)
    assert machine.with_room() == 1
    machine.hold([1], shared=True)
    machine.hold([1], shared=True)
    assert machine.with_room() == 0
    machine.hold([0], shared=True)
    assert machine.with_room() is None
    assert machine.free(use_busy=True) == []
    for gpu in (1, 1, 2):
        machine.leave([gpu])
    assert machine.free(use_busy=True) == [2]
    assert machine.with_room() == 1


@pytest.mark.parametrize("jobs", [0, -1])
def test_a_number_of_jobs_below_one_is_rejected(jobs):
    runner = LocalRunner(LocalLauncherConf(jobs_per_gpu=jobs), None, None)
    with pytest.raises(ConfigError, match=r"hydra\.launcher\.jobs_per_gpu"):
        runner.check([])
