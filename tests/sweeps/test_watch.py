"""A job's process hears signals whatever thread takes them, from its first moment, and SLURM is believed by id."""

import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from submitit.core.utils import DelayedSubmission

from blockshock.run_folder.folder import RunFolder
from sweeps.launchers import job_process, slurm_queue
from sweeps.launchers.sweep.manifest import Manifest
from sweeps.status import rows_of
from tests.launching import NO_SLURM, environment, slurm_answers, statuses, wait_until, write_method

needs_slurm = pytest.mark.skipif(not slurm_answers(), reason=NO_SLURM)

# Threads that were there before, as OpenBLAS starts them when numpy is imported; one of them takes the signal. The
# main thread is in a call that never returns to Python.
EARLY_THREADS = """
import ctypes, signal, sys, threading, time
from pathlib import Path
early = threading.Thread(target=time.sleep, args=(600,), daemon=True)
early.start()
from sweeps.launchers import watch
from blockshock.run_folder.folder import RunFolder
watching = watch.begin()
config = {"experiment": {"name": "x"}, "phase": {"name": "p"}, "model": {}}
watching.begins(RunFolder(sys.argv[1]), config, "run")
def send():
    time.sleep(0.2)
    signal.pthread_kill(early.ident, getattr(signal, sys.argv[2]))
threading.Thread(target=send, daemon=True).start()
libc = ctypes.CDLL(None)
while True:
    libc.sleep(600)
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR2"])
def test_a_signal_that_another_librarys_thread_takes_is_heard(tmp_path, name):
    command = [sys.executable, "-c", EARLY_THREADS, str(tmp_path / "job"), name]
    done = subprocess.run(command, env=environment(tmp_path), capture_output=True, text=True, timeout=200)
    status = RunFolder(tmp_path / "job").status()
    expected = ("timeout", "its process hung") if name == "SIGUSR2" else ("failed", "interrupted")
    assert (status["status"], status["reason"]) == expected
    assert (done.returncode, done.stderr) == (1, "")


def test_what_is_started_in_a_job_does_not_take_its_signals(tmp_path):
    """SLURM signals every process of a step."""
    code = (
        "import signal, subprocess, sys\n"
        "from sweeps.launchers import watch\n"
        "watch.begin()\n"
        "child = 'import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))'\n"
        "subprocess.run([sys.executable, '-c', child])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(tmp_path), capture_output=True, text=True)
    assert done.stdout.strip() == str(sorted({signal.SIGINT, signal.SIGTERM, signal.SIGUSR2})), done.stderr


SLOW_JOB = """
import os, pathlib, time
def wait():
    pathlib.Path(__file__).with_suffix('.here').touch()
    time.sleep(600)
def task():
    wait()
if __name__ == 'slow_to_import' and 'SUBMITIT_FOLDER' in os.environ:
    wait()
"""


@pytest.mark.parametrize("module", ["slow_to_import", "slow_to_run"])
def test_a_signal_in_a_jobs_first_moments_is_not_lost(tmp_path, monkeypatch, module):
    """submitit's own module ignores a SIGTERM between its start and the job's."""
    (tmp_path / f"{module}.py").write_text(SLOW_JOB)
    monkeypatch.syspath_prepend(tmp_path)
    DelayedSubmission(importlib.import_module(module).task).dump(tmp_path / "7_submitted.pkl")
    job = environment(tmp_path) | {"SUBMITIT_EXECUTOR": "local", "SUBMITIT_LOCAL_JOB_ID": "7"}
    process = subprocess.Popen(
        [*job_process.command(), str(tmp_path)], env=job, cwd=tmp_path, stdout=subprocess.PIPE, text=True
    )
    wait_until((tmp_path / f"{module}.here").exists)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert out.splitlines()[-1] == "blockshock ends: failed: interrupted"


@pytest.fixture
def waiting_job(tmp_path) -> Iterator[str]:
    """The id of a job in SLURM that the sweep in tmp_path/sweep has submitted."""
    folder = tmp_path / "sweep" / ".submitit"
    folder.mkdir(parents=True)
    script = folder / "submission.sh"
    script.write_text("#!/bin/sh\nsleep 300\n")
    yield (id_ := submit(script))
    subprocess.run(["scancel", id_], check=True)


def submit(script: Path, *options: str) -> str:
    command = ["sbatch", "--parsable", "--hold", "--output=/dev/null", *options, str(script)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@needs_slurm
def test_slurm_is_asked_by_id_whatever_a_shell_has_exported(tmp_path, waiting_job, monkeypatch):
    exported = {
        "SQUEUE_STATES": "COMPLETED", "SQUEUE_USERS": "nobody", "SQUEUE_PARTITION": "none", "SQUEUE_NAMES": "other",
        "SQUEUE_FORMAT": "%j", "SQUEUE_FORMAT2": "JobID", "SLURM_JOB_ID": "1", "SLURM_TIME_FORMAT": "relative",
        "LOGNAME": "somebody_else", "USER": "somebody_else",
    }  # fmt: skip
    for name, value in exported.items():
        monkeypatch.setenv(name, value)
    known = slurm_queue.states({waiting_job: tmp_path / "sweep", "99999999": tmp_path / "sweep"})
    assert {id_: state.name for id_, state in known.items()} == {waiting_job: "PENDING"}
    assert slurm_queue.states({"99999999": tmp_path / "sweep"}) == {}
    assert slurm_queue.states({"--user=root": tmp_path, "7;ls": tmp_path, "": tmp_path}) == {}


@needs_slurm
def test_a_strangers_job_of_the_same_id_is_as_unknown_as_none(tmp_path, waiting_job):
    other = tmp_path / "copy"
    Manifest(["-m"], [], jobs={"job": []}, slurm={"job": waiting_job}).write(tmp_path / "sweep")
    other.mkdir()
    (tmp_path / "sweep" / "sweep.json").rename(other / "sweep.json")
    assert slurm_queue.states({waiting_job: other}) == {}
    assert [row.state for row in rows_of(other)] == ["not started"]
    assert slurm_queue.states({waiting_job: tmp_path / "sweep"})[waiting_job].goes_on
    (tmp_path / "link").symlink_to(tmp_path / "sweep")
    assert slurm_queue.states({waiting_job: tmp_path / "link"})[waiting_job].goes_on


@needs_slurm
def test_a_job_that_squeue_does_not_show_is_asked_for_again_and_one_that_ended_has_ended(
    tmp_path, waiting_job, monkeypatch
):
    array = submit(tmp_path / "sweep" / ".submitit" / "submission.sh", "--array=0-40,50%2")
    jobs = dict.fromkeys([waiting_job, *(f"{array}_{task}" for task in (0, 40, 45, 50))], tmp_path / "sweep")
    here = tmp_path / "bin"
    here.mkdir()
    fake(here / "squeue", "exit 0")
    with monkeypatch.context() as silent:
        silent.setenv("PATH", f"{here}:{os.environ['PATH']}")
        assert slurm_queue.states(jobs).keys() == jobs.keys() - {f"{array}_45"}
        fake(here / "squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
        assert slurm_queue.states(jobs) is None
    subprocess.run(["scancel", array], check=True)
    known = slurm_queue.states(jobs)
    assert not known[f"{array}_50"].goes_on
    assert known[waiting_job].goes_on


def fake(path: Path, script: str) -> None:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


SLEEPS = """
import time
while not pathlib.Path(__file__).with_name('wake').exists():
    time.sleep(0.1)
"""


@needs_slurm
@pytest.mark.timeout(900)
@pytest.mark.slow
def test_a_job_near_its_limit_is_requeued_though_libraries_have_threads_and_then_finishes(tmp_path):
    """With OMP_NUM_THREADS unset numpy's OpenBLAS starts threads before any code of ours runs."""
    mine = write_method(tmp_path, SLEEPS)
    arguments = ["hardware=cpu", "phase=phase0_correctness", "model.N=16", "model.B=8", "experiment.name=limit"]
    options = ["hydra/launcher=slurm", "hydra.launcher.wait=false", "hydra.launcher.max_requeues=1"]
    threads = {name: value for name, value in environment(tmp_path).items() if name != "OMP_NUM_THREADS"}
    command = [sys.executable, "-m", "blockshock", "-m", *options, *mine, *arguments]
    subprocess.run(command, cwd=tmp_path, env=threads | {"OPENBLAS_NUM_THREADS": "4"}, check=True, timeout=200)
    sweep = tmp_path / "outputs" / "sweeps" / "limit"
    (id_,) = Manifest.read(sweep).slurm.values()

    def status() -> dict:
        return next(iter(statuses(sweep).values()), {})

    try:
        wait_until(lambda: status().get("status") == "running", seen=status)
        subprocess.run(["scancel", "--signal=USR2", id_], check=True)
        wait_until(lambda: status().get("requeued"), seen=status)
        assert (status()["status"], status()["reason"]) == (
            "timeout",
            f"SLURM: out of time or preempted (job {id_}); requeued, 1 of 1",
        )
        wait_until(lambda: slurm_queue.states({id_: sweep})[id_].waits or status()["status"] == "running")
        assert {row.state for row in rows_of(sweep)} <= {"in the queue", "running"}
        (tmp_path / "wake").touch()
        wait_until(lambda: status()["status"] == "ok", 500, lambda: (status(), slurm_queue.state(id_)))
        assert "requeued" not in status()
    finally:
        subprocess.run(["scancel", id_], check=True)
