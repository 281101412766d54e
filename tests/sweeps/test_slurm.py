"""Sweeps on a real SLURM, two nodes on this host: tests/slurm.sh (make slurm-up) starts it where there is none."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from sweeps import load_runs
from sweeps.launchers import slurm_queue
from sweeps.launchers.sbatch import array_limit
from sweeps.launchers.slurm import SlurmLauncherConf, shape
from sweeps.launchers.sweep.compose import Needs
from sweeps.launchers.sweep.manifest import Manifest
from sweeps.report.command import write_report
from sweeps.status import rows_of
from tests.launching import environment, needs_slurm, statuses, wait_until, write_method

# Both nodes share this machine's cores, and each rank would take all of them.
ONE_THREAD = {"OMP_NUM_THREADS": "1"}

pytestmark = pytest.mark.timeout(600)
SLURM = ("-m", "hydra/launcher=slurm", "hydra.launcher.poll_s=1", "hardware=cpu", "model.N=16")


@dataclass
class Sweeping:
    """A sweep that a process has started, in a folder of its own."""

    folder: Path
    arguments: tuple[str, ...]
    process: subprocess.Popen

    def ended(self) -> tuple[int, str]:
        """The launcher's exit status and what it said."""
        _, err = self.process.communicate(timeout=300)
        return self.process.returncode, err

    @property
    def sweep(self) -> Path:
        return next((self.folder / "outputs" / "sweeps").iterdir())

    def status(self, batch: int) -> dict:
        """status.json of the job with this model.B; {} before it starts."""
        return next((s for name, s in statuses(self.sweep).items() if f"-B{batch}_" in name), {})

    def slurm_id(self, batch: int) -> str:
        manifest = Manifest.read(self.sweep)
        assert manifest is not None
        return next(id_ for name, id_ in manifest.slurm.items() if f"-B{batch}_" in name)


def launch(folder: Path, *arguments: str) -> Sweeping:
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "blockshock", *SLURM, *arguments]
    process = subprocess.Popen(
        command, cwd=folder, env=environment(folder) | ONE_THREAD, stderr=subprocess.PIPE, text=True
    )
    return Sweeping(folder, arguments, process)


LOSES_A_RANK = """
if len(x) == 24 and distributed.rank() == 1:
    os.kill(os.getpid(), signal.SIGKILL)
"""
SLEEPS = """
import time
while len(x) != 8 and not pathlib.Path(__file__).with_name('wake').exists():
    time.sleep(0.1)
"""


@pytest.fixture(scope="module")
def sweeps(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Sweeping]]:
    """Three sweeps, started at once: much of their time is waiting for SLURM."""
    root = tmp_path_factory.mktemp("slurm")
    (root / "array").mkdir()
    row = write_method(root / "array", LOSES_A_RANK, "dense_tp_row.DenseTpRowLinear")
    ranks = (*row, "hardware.world_size=2", "phase=phase1_forward", "model.B=8,16,24")
    started = {"array": launch(root / "array", *ranks, "hydra.launcher.ranks_per_node=1", "experiment.name=array")}
    for name in ("limit", "signals"):
        (root / name).mkdir()
        mine = write_method(root / name, SLEEPS)
        batches = "model.B=16" if name == "limit" else "model.B=8,16,24,32"
        # SLURM warns up to 30 s early: with more than 30 s here it may do so before the job's process is there to hear.
        options = {
            "limit": ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=5"),
            "signals": ("hydra.launcher.wait=false",),
        }[name]
        requeues = f"hydra.launcher.max_requeues={0 if name == 'limit' else 1}"
        started[name] = launch(
            root / name, *mine, batches, *options, requeues, "phase=phase0_correctness", f"experiment.name={name}"
        )
    yield started
    for one in started.values():
        one.process.kill()
        manifest = Manifest.read(one.sweep)
        if manifest:
            slurm_queue.cancel(list(manifest.slurm.values()))


@needs_slurm
def test_an_array_of_two_rank_jobs_over_two_nodes_one_of_which_loses_a_rank(sweeps):
    code, err = sweeps["array"].ended()
    assert code == 1
    assert "2 ok" in err
    lost = sweeps["array"].status(24)
    reason = f"SLURM: task 1: Killed (job {sweeps['array'].slurm_id(24)})"  # not its peer's broken connection
    assert (lost["status"], lost["reason"]) == ("failed", reason)
    assert reason in err
    ids = list(Manifest.read(sweeps["array"].sweep).slurm.values())
    assert len({id_.split("_")[0] for id_ in ids}) == 1  # one array
    runs = load_runs([sweeps["array"].sweep]).dropna(subset="B")  # a run without records has none
    assert sorted(runs["B"]) == [8, 16]
    assert set(runs["world_size"]) == {2}
    assert set(runs["timings_ms.allreduce.count"]) == {100}  # five blocks of twenty
    assert (sweeps["array"].sweep / "report" / "report.html").exists()
    script = next((sweeps["array"].sweep / ".submitit").glob("*_submission.sh")).read_text()
    assert "--nodes=2" in script
    assert "--ntasks-per-node=1" in script


@needs_slurm
def test_without_waiting_status_and_report_work_while_jobs_run(sweeps):
    one = sweeps["signals"]
    code, err = one.ended()
    assert code == 0, err
    assert "4 jobs are in SLURM's queue" in err
    assert "blockshock-status outputs/sweeps/signals" in err
    wait_until(lambda: one.status(8).get("status") == "ok")
    wait_until(lambda: all(one.status(b).get("status") == "running" for b in (16, 24, 32)))
    states = {row.state for row in rows_of(one.sweep)}
    assert states == {"ok", "running"}
    assert any(f"SLURM {one.slurm_id(16)}" in row.detail for row in rows_of(one.sweep))
    assert write_report([one.sweep], one.folder / "report").exists()


@needs_slurm
def test_a_job_that_slurm_cancels_kills_or_requeues_says_so_and_a_resume_attaches_and_finishes(sweeps):
    """Continues the sweep of the test before: 16 is cancelled, 24 killed, 32 requeued and still running at resume."""
    one = sweeps["signals"]
    wait_until(lambda: all(one.status(b).get("status") == "running" for b in (16, 24, 32)))
    subprocess.run(["scancel", one.slurm_id(16)], check=True)
    os.kill(one.status(24)["pid"], signal.SIGKILL)  # as the kernel does where memory is short
    first_start = one.status(32)["started"]
    slurm_queue.requeue(one.slurm_id(32))
    wait_until(lambda: one.status(16)["status"] != "running")
    assert (one.status(16)["status"], "cancelled (scancel)" in one.status(16)["reason"]) == ("failed", True)
    wait_until(lambda: one.status(24)["status"] != "running")
    assert one.status(24)["status"] == "failed"
    assert one.status(24)["reason"] == f"SLURM: task 0: Killed (job {one.slurm_id(24)})"
    wait_until(lambda: one.status(32)["status"] != "running")
    assert one.status(32)["reason"] == f"SLURM: requeued; it starts over (job {one.slurm_id(32)})"
    # Two minutes (AuthInfo=cred_expire) where the SLURM is not tests/slurm.sh's: a start before that is revoked.
    wait_until(lambda: one.status(32)["status"] == "running", 300, lambda: slurm_queue.state(one.slurm_id(32)))
    assert one.status(32)["started"] > first_start
    still = one.slurm_id(32)
    again = launch(one.folder, *(a for a in one.arguments if "wait" not in a))
    (one.folder / "wake").touch()
    code, err = again.ended()
    assert code == 0, err
    assert "1 jobs are in SLURM's queue already" in err or one.status(32)["status"] == "ok"
    assert one.slurm_id(32) == still  # attached, not submitted again
    assert "4 ok" in err
    runs = load_runs([one.sweep])
    assert sorted(runs["B"]) == [8, 16, 24, 32]
    assert set(runs["status"]) == {"ok"}


@needs_slurm
def test_a_job_over_its_time_limit_ends_with_that_reason(sweeps):
    code, err = sweeps["limit"].ended()
    assert code == 1
    status = sweeps["limit"].status(16)
    assert status["status"] == "timeout"
    assert status["reason"].startswith("SLURM: out of time or preempted (job ")
    assert "timeout: " in err
    assert "Traceback" not in err


@needs_slurm
def test_a_job_that_ends_before_it_begins_says_why_also_where_no_launcher_waits(tmp_path):
    setups = {"none": "exit 3", "own": "srun() { echo no such node; return 9; }"}
    options = ("method=dense_single", "model.B=8", "phase=phase0_correctness", "hydra.launcher.wait=false")
    launched = {
        name: launch(tmp_path / name, *options, f"hydra.launcher.setup=['{line}']") for name, line in setups.items()
    }
    for one in launched.values():
        code, err = one.ended()
        assert code == 0, err
    rows = {name: lambda one=one: rows_of(one.sweep)[0] for name, one in launched.items()}
    wait_until(lambda: all(row().state not in ("in the queue", "running") for row in rows.values()))
    ids = {name: one.slurm_id(8) for name, one in launched.items()}
    assert rows["none"]().state == "died"  # its batch script had no last line
    assert rows["none"]().detail == f"SLURM: job {ids['none']} ended with exit code 3:0"
    assert rows["own"]().state == "failed"
    assert rows["own"]().detail == f"SLURM: job {ids['own']} ended with exit code 9: no such node"
    assert launched["own"].status(8)["reason"] == rows["own"]().detail


@needs_slurm
def test_what_slurm_refuses_is_said_without_a_trace(tmp_path):
    one = launch(tmp_path / "x", "method=dense_single", "model.B=8,16", "hydra.launcher.partition=nowhere")
    code, err = one.ended()
    assert code == 2
    assert "sbatch refused the jobs" in err.splitlines()[-1]
    assert "invalid partition specified: nowhere" in err
    assert "Traceback" not in err


def test_without_slurm_the_launcher_is_refused_in_one_line(cli, monkeypatch):
    monkeypatch.setattr("sweeps.launchers.slurm_queue.available", lambda: False)
    done = cli(*SLURM, "method=dense_single", "model.B=8,16")
    assert (done.code, "no sbatch and squeue here" in done.err, done.err.count("\n")) == (2, True, 1), done.err


def test_what_the_nodes_have_must_be_said(cli, monkeypatch):
    monkeypatch.setattr("sweeps.launchers.slurm_queue.available", lambda: True)
    done = cli("-m", "hydra/launcher=slurm", "method=dense_single", "model.B=8,16")
    assert (done.code, "say hardware=slurm (GPUs) or hardware=cpu" in done.err) == (2, True)


def test_a_dry_run_shows_the_batch_script_with_what_was_asked_for(cli, tmp_path, monkeypatch):
    monkeypatch.setattr("sweeps.launchers.slurm_queue.available", lambda: True)
    sbatch = "hydra.launcher.sbatch={mail-type: END, exclude: n7}"
    options = ("hydra.launcher.memory_gb=4", "hydra.launcher.setup=[module load cuda]", "hydra.launcher.timeout_min=20")
    done = cli(*SLURM, "method=dense_single", "model.B=8,16", sbatch, *options, "hydra.launcher.dry_run=true")
    assert done.code == 0, done.err
    for line in ("--mail-type=END", "--exclude=n7", "--mem=4096M", "--time=20", "--array=0-1%2"):
        assert f"#SBATCH {line}\n" in done.out
    assert "\nmodule load cuda\n" in done.out
    assert "dry run: 2 jobs, none started" in done.out
    assert not list(tmp_path.iterdir())


def test_a_warning_that_would_come_before_the_job_starts_is_refused(cli, monkeypatch):
    monkeypatch.setattr("sweeps.launchers.slurm_queue.available", lambda: True)
    done = cli(*SLURM, "method=dense_single", "model.B=8,16", "hydra.launcher.timeout_min=1")
    problem = "hydra.launcher.signal_delay_s=90: must be shorter than the time limit of a job, here 60 s"
    assert (done.code, done.err) == (2, f"blockshock: {problem}\n")


def test_arrays_are_as_large_as_the_cluster_says(tmp_path, monkeypatch):
    """A scontrol that prints what SLURM's does."""
    (tmp_path / "scontrol").write_text("#!/bin/sh\necho 'MaxArraySize            = 31'\necho 'MaxJobCount = 10000'\n")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert array_limit() == 31


@needs_slurm
def test_names_of_any_kind_and_a_setup_that_changes_folder_leave_results_where_they_belong(tmp_path):
    name = "50% of 'it' (ü)"
    quoted = "'" + name.replace("'", "\\'") + "'"
    mine = (
        "method=dense_single",
        "phase=phase0_correctness",
        f"experiment.name={quoted}",
        "hydra.launcher.setup=[cd /]",
    )
    one = launch(tmp_path / "x", *mine, "model.B=8", "hydra.launcher.report=false")
    code, err = one.ended()
    assert code == 0, err
    assert one.sweep.name == name
    assert one.status(8)["status"] == "ok"


@pytest.mark.parametrize(
    ("ranks", "per_node", "nodes", "tasks"), [(1, 8, 1, 1), (8, 8, 1, 8), (16, 8, 2, 8), (6, 4, 2, 3), (5, 4, 5, 1)]
)
def test_ranks_are_spread_equally_over_as_few_nodes_as_hold_them(ranks, per_node, nodes, tasks):
    needs = Needs(ranks, gpus=ranks, cpus_per_rank=None, memory_gb=None, timeout_s=600.0)
    wanted = shape(needs, SlurmLauncherConf(ranks_per_node=per_node), startup_s=300.0)
    assert (wanted.nodes, wanted.tasks_per_node, wanted.gpus_per_node) == (nodes, tasks, tasks)
    assert wanted.timeout_min == 15


@pytest.mark.parametrize(
    ("state", "log", "expected"),
    [
        ("TIMEOUT", "", ("timeout", "SLURM: ran into its time limit (job 7_1)")),
        ("OUT_OF_MEMORY", "", ("oom", "SLURM: used more memory than it asked for (job 7_1)")),
        ("NODE_FAIL", "", ("failed", "SLURM: a node failed (job 7_1)")),
        ("FAILED", "slurmstepd: error: Detected 1 oom-kill event(s) in StepId=7.0", ("oom", None)),
        (
            "COMPLETING",
            "*** STEP 7.0 ON n1 CANCELLED AT 2026 DUE TO TIME LIMIT ***",
            ("timeout", "SLURM: ran into its time limit (job 7_1)"),
        ),
        ("COMPLETING", "*** JOB 7 ON n1 CANCELLED AT 2026 ***", ("failed", "SLURM: cancelled (scancel) (job 7_1)")),
        (
            "COMPLETING",
            "srun: error: n2: task 1: Killed\n*** STEP 7.0 ON n1 CANCELLED AT 2026 ***",
            ("failed", "SLURM: task 1: Killed (job 7_1)"),
        ),
        (
            "FAILED",
            "x\nblockshock ends: timeout: out of time\nsrun: error: n1: task 0: Exited\n",
            ("timeout", "out of time"),
        ),
        (
            "FAILED",
            "srun: error: n1: task 0: User defined signal 2\n",
            ("timeout", "SLURM: out of time or preempted before it began (job 7_1)"),
        ),
        ("FAILED", "words\nthe last ones\n\n", ("failed", "SLURM: job 7_1 ended with exit code 1:0: the last ones")),
    ],
)
def test_how_slurm_ended_a_job_becomes_a_status_and_a_reason(monkeypatch, state, log, expected):
    monkeypatch.setattr(slurm_queue, "state", lambda job: slurm_queue.State(state, "1:0"))
    status, reason = slurm_queue.how_it_ended("7_1", log)
    assert status == expected[0]
    assert expected[1] in (None, reason)
