"""The launchers in a Hydra application that knows nothing of them: ten lines, as docs/launchers.md shows them."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sweeps.applications.task_folder import TaskFolder
from tests.launching import ROOT, needs_slurm, statuses

PAGE = ROOT / "docs" / "launchers.md"
LOCAL = ("-m", "hydra/launcher=local")


def printed(language: str, number: int = 0) -> str:
    """A block of the page."""
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)[number]


def run(folder: Path, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    """`python train.py ARGUMENTS`."""
    path = f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    return subprocess.run(
        [sys.executable, "train.py", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": path, **env},
        capture_output=True,
        text=True,
        timeout=240,
    )


def write(folder: Path, body: str, before: str = "") -> None:
    """An application whose task function is `body`, with `lr` and `trainer.devices`."""
    (folder / "config.yaml").write_text("lr: 1\ntrainer:\n  devices: 0\n")
    lines = "".join(f"    {line}\n" for line in body.splitlines())
    (folder / "train.py").write_text(
        f"import hydra\n{before}\n"
        '@hydra.main(version_base="1.3", config_path=".", config_name="config")\n'
        f"def train(cfg):\n{lines}\n"
        'if __name__ == "__main__":\n    train()\n'
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """The page's application and its first command, run as printed."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "train.py").write_text(printed("python"))
    (folder / "config.yaml").write_text(printed("yaml"))
    command = printed("sh").splitlines()[0].split("#")[0].split()
    assert command[:2] == ["python", "train.py"]
    return folder, run(folder, *command[2:])


def test_the_pages_application_runs_as_printed_and_each_job_has_status_log_and_value(page):
    folder, done = page
    assert done.returncode == 1  # one of its jobs fails, which the page is about
    found = statuses(folder)
    assert {status["status"] for status in found.values()} == {"ok", "failed"}
    assert found["0"]["value"] == 0.1
    assert found["2"]["reason"] == "ValueError: the loss is nan"
    (sweep,) = (path.parent for path in folder.rglob("sweep.json"))
    assert "training with lr=0.1" in (sweep / "0" / "log.rank0.txt").read_text()
    assert "ValueError: the loss is nan" in (sweep / "2" / "log.rank0.txt").read_text()
    assert (sweep / "0" / ".hydra" / "config.yaml").exists()
    assert "failed: 2: ValueError: the loss is nan" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_it_prints_resumes_and_runs_only_what_is_not_ok(page):
    folder, done = page
    (command,) = re.findall(r"run what is not ok again with: (.*)", done.stderr)
    (sweep,) = (path.parent for path in folder.rglob("sweep.json"))
    kept = [(sweep / name / "status.json").read_bytes() for name in "01"]
    again = subprocess.run(
        ["bash", "-c", command], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert again.returncode == 1
    assert "2 were measured before and kept" in again.stderr
    assert [(sweep / name / "status.json").read_bytes() for name in "01"] == kept
    assert len(list(folder.rglob("sweep.json"))) == 1


def test_what_is_printed_for_a_folder_of_any_name_runs_in_a_shell(tmp_path):
    write(tmp_path, "if not os.path.exists('again'): raise ValueError(cfg.lr)\nreturn 7", "import os")
    name = 'it\'s 5% "of" a,b=(ü'
    done = run(tmp_path, *LOCAL, "hydra.sweep.dir='" + name.replace("'", "\\'") + "'")
    (command,) = re.findall(r"run what is not ok again with: (.*)", done.stderr)
    (tmp_path / "again").touch()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    again = subprocess.run(["bash", "-c", command], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert statuses(tmp_path / name)["0"]["value"] == 7


def test_a_dry_run_lists_jobs_folders_and_needs_and_starts_nothing(tmp_path):
    write(tmp_path, "open('started', 'w')")
    done = run(tmp_path, *LOCAL, "lr=1,2", "hydra.launcher.gpus=0", "hydra.launcher.timeout_s=90",
               "hydra.sweep.dir=out", "hydra.launcher.dry_run=true")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "out/0  [lr=1]  1 rank, 0 GPUs, at most 1:30" in done.stdout
    assert "dry run: 2 jobs, none started" in done.stdout
    assert not list(tmp_path.rglob("started"))
    assert not list(tmp_path.rglob("status.json"))


def test_needs_are_interpolations_that_each_job_resolves_and_what_no_machine_has_is_said(tmp_path):
    write(tmp_path, "pass")
    done = run(
        tmp_path, *LOCAL, "trainer.devices=0,512", "hydra.launcher.gpus=${trainer.devices}", "hydra.sweep.dir=out"
    )
    assert done.returncode == 1
    assert "hydra.launcher.gpus=512: a job needs 512 GPUs, this machine has" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("status.json"))


def test_any_return_value_reaches_the_sweeper_and_how_a_job_ends_has_a_word(tmp_path):
    """A set, no memory, and a process that ends without a report."""
    write(
        tmp_path,
        "if cfg.lr == 1: return {1, 2}\nif cfg.lr == 2: raise MemoryError('too large')\nos._exit(3)",
        "import atexit, os, sys\natexit.register(lambda: print('PyTorch imported:', 'torch' in sys.modules))",
    )
    options = ("hydra.sweep.dir=out", "hydra.launcher.max_parallel=3")
    done = run(tmp_path, *LOCAL, "lr=1,2,3", *options)
    found = statuses(tmp_path)
    assert [found[name]["status"] for name in "012"] == ["ok", "oom", "failed"], (found, done.stderr)
    assert done.stdout == "PyTorch imported: False\n"  # by the launcher: the application has no use for it
    assert found["1"]["reason"] == "MemoryError: too large"
    assert "without a report" in found["2"]["reason"]
    from sweeps.applications.task_folder import TaskFolder

    assert TaskFolder(tmp_path / "out" / "0").value() == {1, 2}


@pytest.mark.parametrize("shared", ["true", "false"])
def test_a_job_that_can_not_say_how_it_failed_is_in_its_folder_and_in_the_summary(tmp_path, shared):
    """A value that no other process can be handed, and a folder that is gone."""
    write(
        tmp_path,
        "out = pathlib.Path(HydraConfig.get().runtime.output_dir)\n"
        "if cfg.lr == 1: return threading.Lock()\n"
        "if cfg.lr == 2: shutil.rmtree(out)\n"
        "if cfg.lr == 3: raise ValueError('the loss is nan')\n"
        "return 7",
        "import pathlib, shutil, threading\nfrom hydra.core.hydra_config import HydraConfig",
    )
    done = run(tmp_path, *LOCAL, "lr=1,2,3,4", "hydra.sweep.dir=out", f"hydra.launcher.reuse_ranks={shared}")
    found = statuses(tmp_path)
    assert {name: status["status"] for name, status in found.items()} == dict.fromkeys("012", "failed") | {"3": "ok"}
    assert "cannot pickle" in found["0"]["reason"]
    assert "its folder was deleted" in found["1"]["reason"]
    assert found["2"]["reason"] == "ValueError: the loss is nan"
    assert "1 ok" in done.stderr
    for name in "012":
        assert f"failed: {name}: {found[name]['reason']}" in done.stderr
    assert done.returncode == 1


def test_a_job_over_its_time_limit_ends_as_timeout_with_the_limit_as_its_reason(tmp_path):
    write(tmp_path, "time.sleep(600)", "import time")
    done = run(tmp_path, *LOCAL, "hydra.launcher.timeout_s=5", "hydra.sweep.dir=out")
    assert done.returncode == 1
    found = statuses(tmp_path)["0"]
    assert (found["status"], found["reason"]) == ("timeout", "ran longer than 5 s (hydra.launcher.timeout_s)")


def test_nothing_of_a_users_own_is_deleted_in_a_jobs_folder_and_another_configuration_runs_anew(tmp_path):
    write(tmp_path, "return cfg.lr")
    (tmp_path / "out" / "0").mkdir(parents=True)
    (tmp_path / "out" / "0" / "config.yaml").write_text("mine\n")
    (tmp_path / "out" / "0" / "metrics.jsonl").write_text("mine\n")
    for lr in (1, 2):
        done = run(tmp_path, *LOCAL, f"lr={lr}", "hydra.launcher.resume=out")
        assert done.returncode == 0, done.stderr
        assert statuses(tmp_path)["0"]["value"] == lr
    assert (tmp_path / "out" / "0" / "config.yaml").read_text() == "mine\n"
    assert (tmp_path / "out" / "0" / "metrics.jsonl").read_text() == "mine\n"


def test_what_can_not_be_handed_to_another_process_is_said_in_one_line(tmp_path):
    write(tmp_path, "return LOCK.locked()", "import threading\nLOCK = threading.Lock()")
    done = run(tmp_path, *LOCAL, "lr=1,2", "hydra.sweep.dir=out")
    assert done.returncode == 1
    assert "train: can't be handed to another process" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_callback_that_can_not_be_pickled_is_made_anew_in_each_job(tmp_path):
    write(tmp_path, "pass")
    (tmp_path / "notes.py").write_text(
        "import threading, pathlib\n"
        "from hydra.experimental.callback import Callback\n"
        "class Note(Callback):\n"
        "    def __init__(self):\n"
        "        self.lock = threading.Lock()\n"
        "    def on_job_end(self, config, **more):\n"
        "        pathlib.Path(config.hydra.runtime.output_dir, 'heard').touch()\n"
    )
    done = run(tmp_path, *LOCAL, "lr=1,2", "hydra.sweep.dir=out", "+hydra.callbacks.note._target_=notes.Note")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("callback Note can't be pickled") == 1
    assert len(list(tmp_path.rglob("heard"))) == 2


@needs_slurm
def test_on_slurm_a_job_gets_its_ranks_and_each_has_its_log(tmp_path):
    write(tmp_path, "print('rank', os.environ['SLURM_PROCID'])\nreturn cfg.lr", "import os")
    needs = ("hydra.launcher.ranks=2", "hydra.launcher.ranks_per_node=1", "hydra.launcher.timeout_s=120")
    options = ("hydra.launcher.poll_s=1", "hydra.launcher.signal_delay_s=10", "hydra.sweep.dir=out")
    done = run(tmp_path, "-m", "hydra/launcher=slurm", "lr=1,2", *needs, *options)
    assert done.returncode == 0, done.stderr
    assert {name: status["value"] for name, status in statuses(tmp_path).items()} == {"0": 1, "1": 2}
    expected = {"log.rank0.txt": "rank 0\n", "log.rank1.txt": "rank 1\n"}
    folder = tmp_path / "out" / "1"
    assert {path.name: path.read_text() for path in folder.glob("log.rank*.txt")} == expected
    manifest = json.loads((tmp_path / "out" / "sweep.json").read_text())
    assert manifest["application"].endswith("HydraApplication")


@needs_slurm
@pytest.mark.parametrize("last", ["return cfg.lr", "raise ValueError('rank 1 is wrong')", "os.kill(os.getpid(), 9)"])
def test_on_slurm_a_job_is_ok_when_all_of_its_ranks_are_also_those_that_end_last(tmp_path, last):
    body = f"if os.environ['SLURM_PROCID'] == '1':\n    time.sleep(6)\n    {last}\nreturn cfg.lr"
    write(tmp_path, body, "import os, time")
    needs = ("hydra.launcher.ranks=2", "hydra.launcher.ranks_per_node=1", "hydra.launcher.timeout_s=120")
    options = ("hydra.launcher.poll_s=1", "hydra.launcher.signal_delay_s=10", "hydra.sweep.dir=out")
    done = run(tmp_path, "-m", "hydra/launcher=slurm", "lr=3", *needs, *options)
    (status,) = statuses(tmp_path).values()
    if "return" in last:
        assert (done.returncode, status["status"], status["value"]) == (0, "ok", 3), done.stderr
        assert not list((tmp_path / "out" / "0").glob(".rank*"))
    else:
        assert (done.returncode, status["status"]) == (1, "failed"), done.stderr
        assert ("rank 1: ValueError: rank 1 is wrong" if "raise" in last else "SLURM: ") in status["reason"]


def test_a_rank_that_starts_after_the_others_have_ended_runs_all_the_same(tmp_path):
    """The folder's side of it: rank 0's `ok` waits for what the other ranks say in the same start of the job."""
    folder = TaskFolder(tmp_path)
    folder.begin({"lr": 1}, "run")
    assert folder.ranks_are_done(1, "run 0")
    assert not folder.ranks_are_done(3, "run 0")
    folder.rank_is_done(1, "run 0")
    folder.rank_is_done(2, "run 0")
    assert not folder.ranks_are_done(3, "run 1")  # SLURM has started the job over since
    assert folder.ranks_are_done(3, "run 0")
    assert not folder.ranks_are_done(3, "run 0")
