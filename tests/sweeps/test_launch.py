"""Sweeps by the local launcher, as a user starts them: killed, resumed, out of memory, out of disk, with plugins."""

import json
import os
import signal
import subprocess
import sys
import venv
from contextlib import nullcontext
from pathlib import Path

import psutil
import pytest
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser

from blockshock.cli.sweep_keys import as_typed, left_to_jobs
from blockshock.run_folder.folder import RunFolder
from sweeps import load_runs
from tests.launching import QUICK, ROOT, counts, environment, run, start, statuses, wait_until, write_method


def test_a_sweep_of_4_survives_sigkill_of_a_job_and_of_its_launcher(tmp_path):
    """After a resume all 4 are ok, each measured once; what was finished before is not touched."""
    sweep = [*QUICK, "model.N=range(4,20,4)", "model.B=8", "experiment.name=four", "hydra.launcher.max_parallel=2"]
    process = start(tmp_path, *sweep)
    wait_until(lambda: counts(tmp_path)["running"] and counts(tmp_path)["ok"])
    victim = next(s for s in statuses(tmp_path).values() if s["status"] == "running")
    os.kill(victim["pid"], signal.SIGKILL)
    wait_until(lambda: counts(tmp_path)["ok"] >= 2)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=100)
    _, alive = psutil.wait_procs(children, timeout=60)
    assert not [child for child in alive if child.status() != psutil.STATUS_ZOMBIE]  # no job outlives its launcher
    found = statuses(tmp_path)
    (killed,) = [s for s in found.values() if s["config_hash"] == victim["config_hash"]]
    assert killed["status"] == "failed"
    assert "ended without a report" in killed["reason"]
    assert "SIGKILL" in killed["reason"]
    assert not counts(tmp_path)["running"]
    finished = {path: path.read_bytes() for path in measured(tmp_path)}
    assert 2 <= len(finished) < 4

    options = ("hydra.launcher.max_parallel=2", "hydra.launcher.report=false")
    code, err = run(tmp_path, "-m", "hydra.launcher.resume=outputs/sweeps/four", *options)
    assert code == 0, err
    assert "4 ok" in err
    assert f"{len(finished)} were measured before and kept" in err
    assert counts(tmp_path) == {"ok": 4}
    assert {path: path.read_bytes() for path in finished} == finished
    runs = load_runs([tmp_path / "outputs/sweeps/four"])
    assert sorted(runs["N"]) == list(range(4, 20, 4))  # a record each, none twice, none lost
    assert sorted(p.name for p in (tmp_path / "outputs/sweeps").iterdir()) == ["four"]


def test_a_sweep_runs_from_a_checkout_that_is_not_installed(tmp_path):
    """Its jobs find our packages where their launcher has, whatever the working directory is."""
    site = tmp_path / "venv" / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    venv.create(tmp_path / "venv", symlinks=True, with_pip=False)
    # a folder that a .pth file names is on the path, and the .pth files in it, ours among them, are not read
    libraries = [entry for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    (site / "libraries.pth").write_text("\n".join(libraries))
    python = tmp_path / "venv" / "bin" / "python"
    alone = subprocess.run([python, "-c", "import torch, blockshock"], cwd=tmp_path, capture_output=True, text=True)
    assert "No module named 'blockshock'" in alone.stderr  # torch is there
    code = f"import sys; sys.path.append({str(ROOT)!r}); from blockshock.cli.main import main; main()"
    command = [python, "-P", "-c", code, *QUICK, "model.N=8", "model.B=4"]
    clean = {name: value for name, value in environment(tmp_path).items() if name != "PYTHONPATH"}
    done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    assert counts(tmp_path) == {"ok": 1}


def measured(folder: Path) -> list[Path]:
    return [p / "metrics.jsonl" for p in (f.parent for f in folder.rglob("status.json")) if RunFolder(p).is_done()]


REFUSED_IN_A_RANK = """
from blockshock.errors import ConfigError
from blockshock.ranks.launched import STARTED_HERE
def check(self, job):
    if job.model.B == 40 and STARTED_HERE in os.environ:
        raise ConfigError("model.B", 40, "not on this machine")
Mine.check = check
"""


def test_jobs_that_run_out_of_memory_or_lose_a_rank_harm_no_other_and_are_tried_again_on_request(tmp_path):
    """B says which: 8 is well, 16 kills its own rank once, 24 has no memory left, 32 fails every time. 40 is refused
    where it runs: the launcher's machine was another. Ranks have their job's environment."""
    mine = write_method(
        tmp_path,
        "pathlib.Path(__file__).with_name(f'of{len(x)}').write_text(os.environ['OF_JOB'])\n"
        "if len(x) == 16 and tries() == 1:\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "if len(x) == 24:\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (2**33, 2**33))\n"
        "    torch.ones(2**32)\n"
        "if len(x) == 32:\n"
        "    raise ZeroDivisionError('every time')\n",
    )
    with (tmp_path / "method_mine.py").open("a") as file:
        file.write(REFUSED_IN_A_RANK)
    sweep = [*QUICK, *mine, "model.N=16", "model.B=8,16,24,32,40", "experiment.name=bad", "hydra.launcher.retries=1"]
    numbered = "+hydra.job.env_set.OF_JOB=job ${hydra:job.num}"
    code, err = run(tmp_path, *sweep, numbered, "hydra.launcher.max_parallel=2")
    assert code == 1
    assert [(tmp_path / f"of{b}").read_text() for b in (8, 16)] == ["job 0", "job 1"]
    found = {row["config.model.B"]: (row["status"], row["reason"]) for _, row in load_runs([tmp_path]).iterrows()}
    assert found[8] == found[16] == ("ok", "")
    assert (found[24][0], "N=16" in found[24][1]) == ("oom", True)
    assert found[32] == ("failed", "rank 0: ZeroDivisionError: every time")
    assert found[40] == ("unsupported", "model.B=40: not on this machine")
    assert err.count("failed, tried again") == 2
    assert "rank 0 died: killed by SIGKILL" in err  # said when it happened, though the second try is ok
    assert "2 tries failed and were repeated" in err
    assert "2 ok, 1 oom, 1 failed, 1 unsupported" in sorted_summary(err)
    assert "hydra.launcher.resume=outputs/sweeps/bad" in err
    assert "Traceback" not in err


def sorted_summary(err: str) -> str:
    """The summary's counts, `ok` first, whatever ended first."""
    line = next(line for line in err.splitlines() if " ok" in line and " in " in line)
    parts = line.partition(" in ")[0].split(", ")
    order = ("ok", "oom", "failed", "unsupported")
    return ", ".join(sorted(parts, key=lambda part: order.index(part.split()[1])))


def test_a_resume_measures_again_what_can_not_be_read_or_has_lost_its_records(tmp_path):
    options = ("hydra.launcher.reuse_ranks=true", "hydra.launcher.report=false")
    code, err = run(tmp_path, *QUICK, *options[:1], "model.N=4,8,12", "model.B=8", "experiment.name=broken")
    assert code == 0, err
    cut, gone, kept = sorted(measured(tmp_path))
    before = kept.stat().st_mtime_ns
    cut.with_name("status.json").write_text('{"sta')
    gone.unlink()
    code, err = run(tmp_path, "-m", "hydra.launcher.resume=outputs/sweeps/broken", *options)
    assert code == 0, err
    assert "1 were measured before and kept" in err
    assert sorted(measured(tmp_path)) == [cut, gone, kept]
    assert kept.stat().st_mtime_ns == before


@pytest.mark.parametrize("text", ["{", "{}"])
def test_a_broken_sweep_json_is_refused_by_name_and_nothing_is_changed(cli, tmp_path, monkeypatch, text):
    planned(cli, monkeypatch, "model.N=8,16", "method=dense_single", "experiment.name=own")
    broken = tmp_path / "outputs/sweeps/own/sweep.json"
    broken.write_text(text)
    for arguments, key in (
        (["hydra.launcher.resume=outputs/sweeps/own"], "hydra.launcher.resume=outputs/sweeps/own: sweep.json: "),
        ([*QUICK[1:], "model.N=8,16", "experiment.name=own"], "hydra.sweep.dir="),
    ):
        done = cli("-m", *arguments)
        assert (done.code, done.err.count("\n")) == (2, 1), done.err
        assert key in done.err
        assert "sweep.json: " in done.err
    assert broken.read_text() == text


def test_fail_fast_stops_at_the_first_failure_and_leaves_the_rest_unmeasured(tmp_path):
    mine = write_method(tmp_path, "if len(x) == 8:\n    raise ZeroDivisionError\n")
    sweep = [*QUICK, *mine, "model.N=16", "model.B=8,16,24", "hydra.launcher.failure_policy=fail_fast"]
    code, err = run(tmp_path, *sweep)
    assert code == 1
    assert counts(tmp_path) == {"failed": 1}
    assert "stopped at the first failure (fail_fast), 2 jobs were not finished" in err


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small tmpfs, which needs root")
def test_a_full_disk_stops_the_sweep_with_its_reason_and_a_resume_finishes_it(tmp_path):
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=110k", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this machine lets no tmpfs be mounted (a container without the right)")
    try:
        sweep = [*QUICK, "model.N=4,8,12", "model.B=8", f"experiment.output_dir={disk}", "experiment.name=full"]
        code, err = run(tmp_path, *sweep)
        assert code == 1
        assert "No space left on device" in err
        assert "hydra.launcher.resume=small/sweeps/full" in err
        assert "Traceback" not in err
        before = {path: path.read_bytes() for path in measured(disk)}
        assert 1 <= len(before) < 3
        subprocess.run(["mount", "-o", "remount,size=9m", str(disk)], check=True)
        code, err = run(tmp_path, *sweep)
        assert code == 0, err
        assert {path: path.read_bytes() for path in before} == before
        runs = load_runs([disk])
        assert sorted(runs["N"]) == [4, 8, 12]
        assert set(runs["status"]) == {"ok"}
        assert not list(disk.rglob(".status.json.*"))  # no litter of half-written files
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


PLUGIN = """
from pathlib import Path
from hydra.plugins.sweeper import Sweeper
from hydra.core.plugins import Plugins

class TwoStep(Sweeper):
    "Launches two batches as an optimiser would: the second depends on what the first returned."

    def __init__(self, **options):
        pass

    def setup(self, *, hydra_context, task_function, config):
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments):
        batch = [[*arguments, f"model.N={n}"] for n in (8, 16)]
        values = [r.return_value for r in self.launcher.launch(batch, initial_job_idx=0)]
        best = (8, 16)[values.index(min(values))]
        last = self.launcher.launch([[*arguments, f"model.N={2 * best}", "model.K=8"]], initial_job_idx=2)
        Path("values.txt").write_text(repr([*values, *(r.return_value for r in last)]))
"""
CALLBACK = """
import logging
import sys
from pathlib import Path
from hydra.experimental.callback import Callback

class Note(Callback):
    def note(self, text):
        with open(Path(__file__).with_name("notes.txt"), "a") as file:
            file.write(text + "\\n")

    def on_multirun_start(self, config, **kwargs):
        self.note("sweep starts")

    def on_job_start(self, config, **kwargs):
        logging.getLogger("note").info("from the callback of job %s", config.hydra.job.num)
        self.note(f"job {config.hydra.job.num} starts")

    def on_job_end(self, config, job_return, **kwargs):
        self.note(f"job {config.hydra.job.num} {job_return.status.name} {job_return.return_value is not None}")
        self.note(f"job {config.hydra.job.num} with torch: {'torch' in sys.modules}")

    def on_multirun_end(self, config, **kwargs):
        self.note("sweep ends")
"""


def test_sweepers_of_others_get_values_and_callbacks_hear_every_job(tmp_path):
    """A sweeper in two batches, a callback in both processes, and Hydra's numbers, folders and logs.

    A job's process supervises its rank, and has not imported torch for that: each job of a sweep would wait for it.
    """
    (tmp_path / "hydra_plugins").mkdir()
    (tmp_path / "hydra_plugins" / "two_step.py").write_text(PLUGIN)
    (tmp_path / "notes.py").write_text(CALLBACK)
    code, err = run(
        tmp_path,
        *QUICK,
        "hydra.sweeper={_target_:hydra_plugins.two_step.TwoStep}",
        "+hydra.callbacks.note._target_=notes.Note",
        "model.B=8",
        "hydra.sweep.dir=here",
        "hydra.sweep.subdir=number_${hydra.job.num}",
        "hydra.output_subdir=dot_hydra",
    )
    assert code == 0, err
    found = statuses(tmp_path / "here")
    assert sorted(found) == ["number_0", "number_1", "number_2"]
    values = [found[f"number_{i}"]["value"] for i in range(3)]
    assert (tmp_path / "values.txt").read_text() == repr(values)
    assert all(isinstance(value, float) for value in values)
    starts_and_ends = [line for i in range(3) for line in _heard_of(i)]
    assert (tmp_path / "notes.txt").read_text().splitlines() == ["sweep starts", *starts_and_ends, "sweep ends"]
    assert "model.N=16" in (tmp_path / "here/number_1/dot_hydra/overrides.yaml").read_text()
    assert "from the callback of job 1" in (tmp_path / "here/number_1/blockshock.log").read_text()


def _heard_of(job: int) -> tuple[str, ...]:
    return f"job {job} starts", f"job {job} COMPLETED True", f"job {job} with torch: False"


def planned(cli, monkeypatch, *arguments: str) -> list[dict]:
    """The configurations that a sweep would run, none of them run."""
    plain = []

    def keep(self, jobs):
        plain.extend(job.settled for job in jobs)
        for job in jobs:
            job.folder.close(job.settled, "ok", "", "planned")
        return True

    monkeypatch.setattr("sweeps.launchers.local.LocalRunner.run", keep)
    done = cli("-m", "hardware=cpu", "hydra.launcher.report=false", *arguments)
    assert done.code == 0, done.err
    return plain


def test_hydras_sweep_syntax_is_intact(cli, monkeypatch):
    jobs = planned(cli, monkeypatch, "model.N=range(64,129,64)", "model.B=choice(8,16)", "mask=glob(complement_10*)")
    found = {(job["model"]["N"], job["model"]["B"], job["mask"]["name"]) for job in jobs}
    masks = ("complement_1001_0110", "complement_1010_0101")
    assert found == {(n, b, mask) for n in (64, 128) for b in (8, 16) for mask in masks}


def test_each_job_is_composed_once_and_in_batches_where_those_are_asked_for(cli, monkeypatch):
    composed = []
    load = ConfigLoaderImpl.load_sweep_config
    monkeypatch.setattr(
        ConfigLoaderImpl, "load_sweep_config", lambda *args, **more: (composed.append(1), load(*args, **more))[1]
    )
    assert len(planned(cli, monkeypatch, "model.N=64,128,192", "hydra.sweeper.max_batch_size=2")) == 3
    assert len(composed) == 3


MAPPING = "must be keys with their values: {method: keep_all}"
OURS = "{method: block_shock, method.kernel: 'gather,reference'}"
CASES = f"+hydra.sweeper.cases={{dense: {{method: dense_single}}, ours: {OURS}}}"


@pytest.mark.parametrize("batches", ["null", "2"])
def test_each_case_of_a_sweep_is_a_product_of_its_own(cli, monkeypatch, batches):
    given = ("hardware=cpu", CASES, "model.N=64,128", "model.B=8", f"hydra.sweeper.max_batch_size={batches}")
    jobs = planned(cli, monkeypatch, *given)
    found = [(job["method"]["name"], job["method"].get("kernel"), job["model"]["N"]) for job in jobs]
    ours = [("block_shock", kernel, n) for kernel in ("gather", "reference") for n in (64, 128)]
    assert sorted(found, key=str) == sorted([("dense_single", None, 64), ("dense_single", None, 128), *ours], key=str)


def test_a_case_can_be_changed_or_left_out_by_its_name_and_a_key_given_is_every_cases(cli, monkeypatch):
    more = [
        "hydra.sweeper.cases.ours={method.kernel: reference}",
        "~hydra.sweeper.cases.dense",
        "method.weights=masked",
    ]
    (job,) = planned(cli, monkeypatch, CASES, "model.N=64", "model.B=8", *more)
    assert (job["method"]["name"], job["method"]["kernel"]) == ("block_shock", "reference")
    assert job["method"]["weights"] == "masked"


def test_the_compiled_front_has_ours_and_every_baseline_for_each_workload_given(cli, monkeypatch):
    jobs = planned(cli, monkeypatch, "+sweep=compiled_front", "workload=tiny_gpt2,tiny_vit")
    ours = [job["method"] for job in jobs if job["method"]["name"] == "recompute_compiled"]
    in_chunks = [method for method in ours if method["chunked_loss"] == "auto"]
    in_one_piece = [method for method in ours if method["chunked_loss"] == "plain"]
    assert len({method["memory_budget"] for method in in_one_piece}) == 11
    assert len({method["memory_budget"] for method in in_chunks}) == 6
    assert (len(in_one_piece), len(in_chunks), len(ours)) == (22, 12, 34)
    baselines = [job["method"] for job in jobs if job["workload"]["name"] == "tiny_vit" and "saved" in job["method"]]
    assert {method["blocks"] for method in baselines} == {None, 0.25, 0.5, 0.75}
    assert {method["memory_budget"] for method in baselines} == {1, 0.8, 0.5, 0.2, 0}
    assert max(len(method["saved"]) for method in baselines) == 4
    assert {method["backend"] for method in baselines} == {"aot_eager"}  # inductor on GPUs


@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_a_job_that_cannot_be_composed_stops_a_sweep_before_its_first(cli, tmp_path, launcher):
    """The second job's key is unknown to its method; Hydra's own launcher would run the first before it sees that."""
    own = [f"hydra/launcher={launcher}", "hardware=cpu", "phase=phase0_correctness", "model.N=16", "model.B=8"]
    done = cli("-m", *own, "method=block_shock,dense_single", "method.weights=packed")
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "method.weights=packed: not every method of this sweep has that key" in done.err
    assert not list(tmp_path.rglob("status.json"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["method=dense_single,dtensor_row", "method.weights=packed"], "not every method of this sweep has that key"),
        (["+sweep=hypotheses", "phase.optimizer=adam"], "not every phase of this sweep has that key"),
        (["method=dtensor_row", "method.weights=packed", "model.N=8,16"], "method=dtensor_row has no such key"),
        (["method=3,4"], "method=3,4: allowed: block_shock"),
    ],
)
def test_what_a_swept_group_does_not_have_is_said_in_one_line(cli, tmp_path, arguments, expected):
    done = cli("-m", "hardware=cpu", *arguments)
    assert (done.code, expected in done.err, done.err.count("\n")) == (2, True, 1), done.err
    assert not list(tmp_path.iterdir())


def test_the_same_job_asked_for_twice_is_refused(cli):
    done = cli("-m", *QUICK[1:], "model.N=8,8")
    assert (done.code, "would share the folder" in done.err, "they are the same" in done.err) == (2, True, True)


def test_an_optimisers_batch_may_ask_for_one_job_twice_which_then_runs_once(cli, monkeypatch):
    """Hydra's basic sweeper stands for it: it takes the two jobs' results, as an optimiser does."""
    jobs = planned(cli, monkeypatch, "hydra/sweeper=basic", "method=dense_single", "model.N=8,8,16")
    assert [job["model"]["N"] for job in jobs] == [8, 16]


@pytest.mark.parametrize("launcher", ["local", "basic"])
def test_a_swept_key_that_is_given_again_is_refused(cli, tmp_path, launcher):
    done = cli("-m", f"hydra/launcher={launcher}", "hardware=cpu", "model.N=8,16", "model.N=32")
    expected = "blockshock: model.N=8,16,32: is given 2 times; give all its values at once: model.N=8,16,32\n"
    assert (done.code, done.err) == (2, expected)
    assert not list(tmp_path.iterdir())


def test_a_preset_without_m_is_refused(cli, tmp_path):
    done = cli("+sweep=n", "hardware=cpu")
    assert (done.code, done.err) == (2, "blockshock: +sweep=n: a sweep needs -m: blockshock -m +sweep=n ...\n")
    assert not list(tmp_path.iterdir())


def test_jobs_that_share_the_reading_and_merging_of_files_are_composed_as_hydra_composes_each(cli, monkeypatch):
    """Two of every four make the same choices: what one sets, the other leaves as the files have it."""
    cases = "+hydra.sweeper.cases={small: {model.B: 8, method: dense_single}, odd: {model.N: 24, method: dense_single}}"
    sweep = (cases, "mask=checkerboard,random_2of4", "workload=gaussian,uniform")
    together = planned(cli, monkeypatch, *sweep, "experiment.name=one")
    monkeypatch.setattr("sweeps.launchers.sweep.compose._shared_work", nullcontext)
    assert planned(cli, monkeypatch, *sweep, "experiment.name=one", "hydra.sweep.dir=two") == together
    assert len(together) == 8
    assert {(job["model"]["B"], job["model"]["N"]) for job in together} == {(8, 1024), (64, 24)}


def test_composing_many_jobs_says_how_far_it_is(cli, monkeypatch):
    monkeypatch.setattr("sweeps.launchers.sweep.compose.SAID", 1)
    done = cli("-m", "hardware=cpu", "method=dense_single", "model.N=4,8,12", "hydra.launcher.dry_run=true")
    assert done.err.splitlines() == [f"composing and checking the jobs: {i} of 3" for i in (1, 2)]
    assert "dry run: 3 jobs, none started" in done.out


@pytest.mark.slow
def test_joblibs_launcher_runs_our_jobs(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    code, err = run(
        tmp_path, *QUICK[:-1], "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "model.N=8,16", "model.B=8"
    )
    assert code == 0, err
    assert counts(tmp_path) == {"ok": 2}


def test_a_numbered_folder_that_holds_another_configurations_result_is_refused_and_kept(cli, tmp_path, monkeypatch):
    numbered = ("method=dense_single", "hydra.sweep.dir=here", "hydra.sweep.subdir=${hydra.job.num}")
    planned(cli, monkeypatch, *numbered, "model.N=8,16")
    before = (tmp_path / "here/0/status.json").read_bytes()
    done = cli("-m", "hardware=cpu", *numbered, "model.N=24,32")
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    assert "holds the run of another configuration" in done.err
    assert (tmp_path / "here/0/status.json").read_bytes() == before


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("hydra.launcher.failure_policy=stop", "allowed: keep_going, fail_fast"),
        ("hydra.launcher.retries=-1", "hydra.launcher.retries=-1: must be at least 0"),
        ("hydra.launcher.max_parallel=0", "hydra.launcher.max_parallel=0: must be at least 1"),
        ("hydra.launcher.resume=nowhere", "no such folder"),
        ("hydra.launcher.max_paralel=2", "did you mean 'hydra.launcher.max_parallel'?"),
    ],
)
def test_launcher_options_are_refused_in_one_line(cli, tmp_path, argument, expected):
    done = cli(*QUICK, "model.N=8,16", argument)
    assert (done.code, expected in done.err, done.err.count("\n")) == (2, True, 1), done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batches", ["null", "2"])
@pytest.mark.parametrize("nothing", ["model.N=range(5,5)", "mask=glob(zzz*)"])
def test_a_sweep_without_any_job_is_refused(cli, tmp_path, nothing, batches):
    done = cli(*QUICK, "model.B=8,16", nothing, f"hydra.sweeper.max_batch_size={batches}")
    assert (done.code, done.err) == (2, f"blockshock: {nothing}: is empty: no jobs to run\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("place", ["experiment.name=../out", "experiment.name=", "experiment.output_dir=''"])
def test_jobs_without_a_folder_of_their_own_are_refused_not_recorded(cli, tmp_path, place):
    done = cli(*QUICK, "model.N=8,16", place, "hydra.launcher.skip_unsupported=true")
    assert (done.code, done.err.count("\n"), place.strip("'") in done.err) == (2, 1, True), done.err
    assert not list(tmp_path.iterdir())


def test_a_refused_resume_leaves_the_folder_as_it_was(cli, tmp_path):
    (tmp_path / "mine").mkdir()
    done = cli("-m", "hydra.launcher.resume=mine")
    assert (done.code, "holds no sweep.json" in done.err) == (2, True)
    assert not list((tmp_path / "mine").iterdir())


def test_a_refused_sweep_leaves_hydras_record_of_the_one_before(cli, tmp_path, monkeypatch):
    planned(cli, monkeypatch, "model.N=8,16", "experiment.name=kept")
    before = (tmp_path / "outputs/sweeps/kept/multirun.yaml").read_text()
    assert "model.N=8,16" in before
    assert cli(*QUICK, "model.N=8,-1", "experiment.name=kept").code == 2
    assert (tmp_path / "outputs/sweeps/kept/multirun.yaml").read_text() == before


def test_a_bare_resume_of_a_sweep_with_options_of_its_own_names_the_whole_command(cli, tmp_path, monkeypatch):
    planned(cli, monkeypatch, "model.N=8,16", "method=dense_single", "experiment.name=own", "hydra.job.chdir=false")
    done = cli("-m", "hydra.launcher.resume=outputs/sweeps/own")
    assert done.code == 2
    assert "experiment.name=own hydra.job.chdir=false hydra.launcher.resume=outputs/sweeps/own" in done.err


PRESETS = sorted(path.stem for path in (ROOT / "conf" / "sweep").glob("*.yaml"))


# Two presets have tests of their own: each job is composed as Hydra composes it, in a tenth of a second.
@pytest.mark.parametrize("preset", [name for name in PRESETS if name not in ("memory_budget", "compiled_front")])
def test_every_preset_plans_jobs_and_any_key_overrides_it(cli, monkeypatch, preset):
    of_models = preset in ("batch_memory", "models_over_ranks")
    key, value = ("workload.batch_size", 2) if of_models else ("model.B", 8)
    group = key.split(".")[0]
    few = ["workload=tiny_gpt2"] if of_models else ["mask=checkerboard", "model.N=64"]
    few += ["hardware.world_size=2"] * (preset in ("hypotheses", "workloads", "first_picture"))
    jobs = planned(cli, monkeypatch, f"+sweep={preset}", f"{key}={value}", *few)
    assert jobs
    assert {job[group][key.split(".")[1]] for job in jobs} == {value}


@pytest.mark.parametrize(
    ("arguments", "key", "values"),
    [
        (["+sweep=largest_batch", "phase.memory=3MB"], "phase.memory", {"3MB"}),
        (["+sweep=largest_batch", "phase.at_most=8"], "phase.at_most", {8}),
        (["+sweep=compiled_front", "phase.verify=false"], "phase.verify", {False}),
        (
            ["workload=tiny_gpt2,tiny_bert", "method=keep_all", "phase=checkpoint", "workload.seq_len=8"],
            "workload.seq_len",
            {8},
        ),
        (
            ["workload=tiny_gpt2", "method=keep_all", "phase=checkpoint,profile", "++phase.verify=false"],
            "phase.verify",
            {False},
        ),
        (
            [
                "phase=checkpoint",
                "workload=tiny_gpt2",
                "method=recompute_greedy,recompute_optimal",
                "method.memory_budget='1MB'",
            ],
            "method.memory_budget",
            {"1MB"},
        ),
        (["+sweep=memory_budget", "method.memory_budget=${model.B}"], "method.memory_budget", {64}),
    ],
)
def test_a_key_that_only_the_jobs_have_is_theirs(cli, tmp_path, monkeypatch, arguments, key, values):
    """Hydra first composes a configuration with the default phase, method and workload, which has no such key."""
    jobs = planned(cli, monkeypatch, *arguments, "hydra.launcher.skip_unsupported=true")
    group, name = key.split(".")
    assert {job[group][name] for job in jobs} == values
    (manifest,) = (json.loads(path.read_text()) for path in tmp_path.rglob("sweep.json"))
    assert manifest["arguments"][3:-1] == arguments  # as they were typed, for the resume


@pytest.mark.parametrize("value", ["null", "", "'a, b'", r"'it\'s'", "${model.B}", "[1,2]", "{a: 1}", "1e-3", r"a\,b"])
def test_what_hydra_is_given_instead_is_a_sweep_and_becomes_what_was_typed(value):
    typed = ["-m", "phase=checkpoint,profile", f"phase.verify={value}", f"+phase.more={value}", "model.B=8"]
    given = left_to_jobs(typed)
    assert as_typed(given) == typed
    assert [argument for argument in given if argument not in typed] == given[2:4]
    assert all(override.is_sweep_override() for override in OverridesParser.create().parse_overrides(given[2:4]))
    assert left_to_jobs(typed[1:]) == typed[1:]  # no sweep
    assert left_to_jobs([*typed, "hydra/sweeper=basic"]) == [*typed, "hydra/sweeper=basic"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["+sweep=compiled_front", "phase.verfy=false"],
            "phase.verfy=false: unknown key; did you mean 'phase.verify'?",
        ),
        (
            ["+sweep=first_picture", "phase.verify=false"],
            "phase.verify=false: not every phase of this sweep has that key",
        ),
        (["+sweep=compiled_front", "phase.verify=}"], "phase.verify=}"),
    ],
)
def test_a_key_that_no_job_has_is_still_rejected(cli, arguments, expected):
    done = cli("-m", *arguments)
    assert done.code == 2
    assert expected in done.err
    assert "choice(" not in done.err


def test_jobs_that_share_ranks_go_on_in_new_ones_after_a_sigkill(tmp_path):
    options = ("hydra.launcher.reuse_ranks=true", "hydra.launcher.retries=1")
    process = start(tmp_path, *QUICK, *options, "model.N=range(4,36,4)", "model.B=8", "experiment.name=shared")
    wait_until(lambda: counts(tmp_path)["ok"])
    pids = {status["pid"] for status in statuses(tmp_path).values()}
    assert len(pids) == 1  # one process for all
    os.kill(pids.pop(), signal.SIGKILL)
    _, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    assert counts(tmp_path) == {"ok": 8}
    assert len({status["pid"] for status in statuses(tmp_path).values()}) > 1
    runs = load_runs([tmp_path])
    assert sorted(runs["N"]) == list(range(4, 36, 4))  # a record each


LISTED = """
import sys
import hydra_plugins.blockshock
heavy = {"torch", "pandas", "submitit", "numpy", "matplotlib", "rich"} & sys.modules.keys()
assert not heavy, f"finding the plugins imports {heavy}"
"""


def test_finding_the_launchers_imports_nothing_heavy():
    """Every Hydra application of the environment pays for it, at each start."""
    subprocess.run([sys.executable, "-c", LISTED], cwd=ROOT, check=True)
