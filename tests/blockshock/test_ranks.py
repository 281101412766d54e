"""Ranks start, work together, and never outlive their job."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from blockshock.jobs.rank import is_out_of_memory
from blockshock.ranks import RankInfo, forget_launch, launched
from blockshock.ranks import pool as ranks
from blockshock.ranks.pool import RankPool
from tests.blockshock import rank_tasks
from tests.launching import NO_SLURM, slurm_answers

ROOT = Path(__file__).parents[2]


def test_two_ranks_say_hello_and_sum_a_scalar():
    with RankPool(2) as pool:
        outcome = pool.run(rank_tasks.hello)
    assert outcome.status == "ok", outcome.reason
    assert outcome.value == (3.0, True, 2)


def test_one_rank_needs_no_process_group():
    with RankPool(1) as pool:
        assert pool.run(rank_tasks.hello).value == (1.0, False, 1)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("raise", "rank 1: ValueError: boom on rank 1"),
        ("exit", "rank 1 died: exit status 7"),
        ("kill", "rank 1 died: killed by SIGKILL"),
    ],
)
def test_a_rank_that_dies_takes_the_job_down_within_seconds_and_says_why(how, reason):
    with RankPool(2) as pool:
        processes = [psutil.Process(r.process.pid) for r in pool._ranks]
        outcome = pool.run(rank_tasks.misbehave, how, timeout_s=50.0)  # alone, rank 0 waits for 60
        assert outcome.status == "failed"
        assert outcome.reason.startswith(reason)
        assert not any(gone_wrong(p) for p in processes)


def test_the_first_rank_to_fail_is_blamed_whatever_order_the_reports_are_read_in(monkeypatch):
    """The parent looks late: both ranks' reports are there, and rank 0's is only an echo."""
    wait = ranks.mpc.wait
    late = SimpleNamespace(wait=lambda *args: (time.sleep(1.5), wait(*args))[1])
    monkeypatch.setattr(ranks, "mpc", late)  # the parent's own looks, not multiprocessing's
    with RankPool(2) as pool:
        outcome = pool.run(rank_tasks.misbehave, "raise")
    assert outcome.reason == "rank 1: ValueError: boom on rank 1"


@pytest.mark.parametrize(
    "message",
    ["CUDA error: out of memory", "Cuda failure 2 'out of memory'", "CUBLAS_STATUS_ALLOC_FAILED when calling x",
     "DefaultCPUAllocator: can't allocate memory"],
)  # fmt: skip
def test_running_out_of_memory_is_known_in_any_librarys_words(message):
    assert is_out_of_memory(RuntimeError(message))
    assert not is_out_of_memory(ValueError(message))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def test_a_job_that_hangs_is_ended_at_its_time_limit():
    with RankPool(2) as pool:
        processes = [psutil.Process(r.process.pid) for r in pool._ranks]
        outcome = pool.run(rank_tasks.misbehave, "hang", timeout_s=2.0)
        assert outcome.status == "timeout"
        assert not any(gone_wrong(p) for p in processes)


def test_a_pool_runs_job_after_job():
    with RankPool(2) as pool:
        assert [pool.run(rank_tasks.hello).value[0] for _ in range(3)] == [3.0] * 3


def test_the_slowest_rank_counts_iteration_by_iteration():
    with RankPool(2) as pool:
        own, slowest = pool.run(rank_tasks.slow_rank).value
    assert min(own) < 8  # this rank was fast in every other iteration
    assert min(slowest) > 9.5


def test_ranks_of_a_pool_that_is_left_by_an_exception_are_killed_at_once():
    pools = []

    def interrupted() -> None:
        with RankPool(2) as pool:
            pools.append(pool)
            pool.run(rank_tasks.hello)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {rank.process.exitcode for rank in pools[0]._ranks} == {-signal.SIGKILL}


def test_a_program_that_leaves_its_ranks_open_ends_all_the_same():
    """As one does that is interrupted again while it ends them."""
    code = "from blockshock.ranks import RankPool; pool = RankPool(2); print([r.process.pid for r in pool._ranks])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=True)
    assert not any(is_alive(pid) for pid in json.loads(done.stdout))


@pytest.mark.parametrize("signal_", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_rank_outlives_the_process_that_started_it(tmp_path, signal_):
    code = (
        "from blockshock.ranks import RankPool; from tests.blockshock import rank_tasks\n"
        f"with RankPool(2) as pool: pool.run(rank_tasks.wait_forever, {str(tmp_path)!r})"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL)
    pids = [int(wait_for(tmp_path / f"rank{r}")) for r in (0, 1)]
    os.kill(parent.pid, signal_)
    parent.wait()
    while any(is_alive(pid) for pid in pids):  # pytest's limit ends a test that waits in vain
        time.sleep(0.1)


SRUN = {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "n1"}
JOINED = "from blockshock.ranks import launched; print(launched())"


@pytest.mark.skipif(not slurm_answers(), reason=NO_SLURM)
def test_the_variables_of_a_step_that_has_ended_join_nobody(monkeypatch):
    """A batch job has them where it was submitted from within a step, and so has a shell that outlives its step."""
    for name, value in {**SRUN, "SLURM_JOB_ID": "99999999", "SLURM_STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launched() is None


@pytest.mark.skipif(not slurm_answers(), reason=NO_SLURM)
def test_what_is_started_in_an_interactive_step_starts_its_own_ranks():
    """`srun --pty` gives its terminal to one task; the others of the step idle."""
    step = f"srun -N1 -n2 --pty {sys.executable} -c '{JOINED}'"
    done = subprocess.run(["script", "-qec", step, os.devnull], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("None"), done.stdout


def test_a_launchers_own_job_forgets_what_an_ancestor_was_told(monkeypatch):
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "a", "MASTER_PORT": "1", "TORCHELASTIC_RUN_ID": "x"}
    for name, value in {**torchrun, **SRUN, "SLURM_STEP_NUM_TASKS": "2"}.items():
        monkeypatch.setenv(name, value)
    assert launched() == RankInfo(1, 1, 2, 2, None)
    forget_launch(own_step=True)
    assert not torchrun.keys() & os.environ.keys()
    assert SRUN.keys() <= os.environ.keys()
    forget_launch(own_step=False)
    assert not SRUN.keys() & os.environ.keys()
    assert launched() is None


def is_alive(pid: int) -> bool:
    """A process that nobody has waited for yet is an entry only: it does not run."""
    try:
        return gone_wrong(psutil.Process(pid))
    except psutil.NoSuchProcess:
        return False


def gone_wrong(process: psutil.Process) -> bool:
    """Still there, and not only as an entry waiting for its parent to read it."""
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def wait_for(path: Path) -> str:
    while not (path.exists() and path.read_text()):
        time.sleep(0.05)
    return path.read_text()


def test_a_host_without_any_network_is_named_at_once():
    """A namespace of its own has not even a loopback interface."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode != 0:
        pytest.skip("unshare -n is not permitted here")
    code = "from blockshock.ranks import RankPool; RankPool(1)"
    done = subprocess.run(["unshare", "-n", sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert "ranks find one another at 127.0.0.1, which does not answer" in done.stderr.splitlines()[-1]
