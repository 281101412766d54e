"""The command line: what works, what is refused in one line, and what is left behind."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from sweeps import load_runs
from tests.launching import NO_SLURM, slurm_answers, wait_until

ROOT = Path(__file__).parents[2]
SMALL = ("model.N=64", "model.B=8", "hardware=cpu")
NO_REPORT = "hydra.launcher.report=false"
ONE_PROCESS = "hydra.launcher.reuse_ranks=true"  # for a sweep's jobs: each process of its own imports torch


def statuses(folder: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(folder.rglob("status.json"))]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["modle.N=64"], "did you mean 'model.N'?"),
        (["method.kernl=gather"], "did you mean 'method.kernel'?"),
        (["+bogus=1"], "bogus=1: unknown key"),
        (["+model.bogus=1"], "model.bogus"),
        (["method=blok_shock"], "did you mean 'block_shock'?"),
        (["method=3"], "method=3: allowed: block_shock, contenders, dense_single"),
        (["method=null"], "method=null: allowed: block_shock, contenders, dense_single"),
        (["hydra/launcher=3"], "hydra/launcher=3: allowed: basic, "),
        (["method=dtensor_row", "method.collective=nccl"], "nccl: method=dtensor_row has no such key (block_shock, "),
        (["phase.optimizer=adam"], "phase.optimizer=adam: phase=phase1_forward has no such key (checkpoint, "),
        (["phase=profile", "method.weights=packed"], "method=keep_all has no such key (block_shock has it)"),
        (["sweep.model.N=3"], "sweep.model.N=3: unknown key"),
        (["phase.blurb=3"], "phase.blurb=3: unknown key (all keys"),
        (["--multirun", "--cfg", "job"], "leave out -m and give each key one value"),
        (["--resolve"], "can only be used in conjunction with --cfg"),
        (["phase=phase9"], "allowed: benchmark, checkpoint, largest_batch, phase0_correctness"),
        (["model.N=abc"], "model.N: Value 'abc' of type 'str' could not be converted to Integer"),
        (["phase.timed_iters=x"], "phase.timed_iters=x"),
        (["phase.timed_iters=0"], "phase.timed_iters=0: must be at least 1"),
        (["phase.warmup_iters=-3"], "phase.warmup_iters=-3: must be at least 1"),
        (["phase.timing=stopwatch"], "allowed: auto, sync, cuda_events, cuda_graph, none"),
        (["phase.timing=cuda_graph"], "needs a GPU"),
        (["model.B=0"], "model.B=0: must be at least 1"),
        (["model.N=66"], "model.N=66: block_shock on 1 ranks needs a multiple of 4"),
        (["model.K=30"], "model.K=30"),
        (
            ["model.K=64", "method=dense_single", "mask=window_4of6"],
            "model.K=64: mask=window_4of6 prunes blocks of 6 inputs; use a multiple, such as 60\n",
        ),
        (
            [
                "workload=mlp_block",
                "model.K=60",
                "model.N=60",
                "workload.hidden=64",
                "method=dense_single",
                "mask=window_4of6",
            ],
            "workload.hidden=64: mask=window_4of6 prunes blocks of 6 inputs",
        ),
        (["model.N=36", "hardware.world_size=4"], "needs a multiple of 8"),
        (
            ["model.K=65", "method=dense_tp_row", "hardware.world_size=2"],
            "model.K=65: dense_tp_row on 2 ranks needs a multiple of 2\n",
        ),
        (["model.N=65", "method=dense_tp_column", "hardware.world_size=2"], "on 2 ranks needs a multiple of 2\n"),
        (["hardware.world_size=3"], "needs 1 or an even number of ranks"),
        (["hardware.world_size=0"], "hardware.world_size=0: must be at least 1"),
        (["hardware.world_size=2", "method=dense_single"], "dense_single runs on one rank"),
        (["method=dense_tp_row"], "one rank is dense_single"),
        (["hardware.backend=nccl"], "NCCL needs GPUs"),
        (["model.dtype=int8"], "allowed: auto, bf16, fp16, fp32, fp64"),
        (["method.kernel=gather", "mask=random_2of4"], "needs a mask made of dense blocks"),
        (["method.kernel=cusparselt"], "needs an NVIDIA GPU"),
        (["method.compress_every=2"], "packed weights are never compressed"),
        (["mask.name=checkerboard"], "select the mask with mask=checkerboard"),
        (["mask.pattern=1110"], "two ones each"),
        (["phase=phasex_drift", "model.K=32"], "needs K = N"),
        (["phase=phase3_train_step", "phase.optimizer=sdg"], "did you mean 'sgd'?"),
        (["phase=phase3_train_step", "phase.lr=-1"], "must be positive"),
        (["phase=phase3_train_step", "phase.lr=nan"], "must be positive"),
        (["phase=phase3_train_step", "phase.optimizr=sgd"], "did you mean 'phase.optimizer'?"),
        (["mask.pattern=1100/0011/1010"], "has 3 rows; allowed: 1, 2 or 4"),
        (["workload=attention_like", "workload.head_dim=0"], "must be at least 1"),
        (["method._target_=nowhere.Mine"], "can't be imported"),
        (["model.N=${nowhere}"], "nowhere"),
        (["hardware.timeout_s=inf"], "must be seconds, more than 0 and at most 31536000 (a year)"),
        (["hardware.timeout_s=nan"], "must be seconds, more than 0 and at most 31536000 (a year)"),
        (["hydra.run.dir=/proc/nowhere"], "choose another folder"),
        (["hydra.mode=MULTIRUN", "experiment.output_dir=/proc/nowhere"], "choose another folder"),
        (["experiment.output_dir=/proc/nowhere"], "choose another folder"),
        (["experiment.output_dir=/dev/null"], "choose another folder"),
        (["experiment.output_dir=''"], "experiment.output_dir=: names no folder"),
        (["experiment.name="], "experiment.name=: must be a folder's name"),
        (["experiment.name=.."], "experiment.name=..: must be a folder's name"),
        (["experiment.name=a/b"], "experiment.name=a/b: must be a folder's name"),
        (["experiment.seed=99999999999999999999"], "from -9223372036854775808 to 18446744073709551615"),
    ],
)
def test_bad_input_is_refused_in_one_line_before_anything_is_left_behind(cli, tmp_path, arguments, expected):
    done = cli(*SMALL, *arguments)
    assert done.code == 2
    assert done.err.count("\n") == 1
    assert done.err.startswith("blockshock: ")
    assert expected in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_every_seed_that_torch_takes_is_taken(cli, seed):
    assert cli(*SMALL, "phase=phase0_correctness", f"experiment.seed={seed}").code == 0


def test_a_gpu_that_is_not_there_is_refused(cli, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    assert "no CUDA GPU; use hardware=cpu" in cli("hardware=local_gpu").err


def test_more_ranks_than_gpus_are_refused(cli, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    done = cli("hardware=local_gpu", "hardware.world_size=4")
    assert (done.code, "this machine has 2 GPUs" in done.err) == (2, True)


def test_bf16_on_a_gpu_without_it_is_refused(cli, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("blockshock.measure.nvml.capability", lambda: (7, 5))
    assert "has no bf16 arithmetic" in cli("hardware=local_gpu", "model.dtype=bf16").err


@pytest.mark.parametrize("argument", ["modle.N=3", "model.N=66"])
def test_hydra_full_error_shows_the_trace(argument):
    environment = {**os.environ, "HYDRA_FULL_ERROR": "1"}
    command = [sys.executable, "-m", "blockshock", argument]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert "Traceback" in done.stderr
    assert done.returncode != 0


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize(
    "phase",
    ["phase0_correctness", "phase1_forward", "phase2_backward_input", "phase3_train_step", "phasex_drift"],
)
def test_every_phase_leaves_a_complete_run_folder(cli, tmp_path, phase, world_size):
    done = cli(*SMALL, f"phase={phase}", f"hardware.world_size={world_size}")
    assert done.code == 0, done.err
    (folder,) = (path.parent for path in tmp_path.rglob("status.json"))
    assert folder.parent.parent == tmp_path / "outputs" / "runs" / phase
    logs = {f"log.rank{rank}.txt" for rank in range(world_size)}
    assert {p.name for p in folder.iterdir()} >= {"config.yaml", "env.json", "seed.txt", "metrics.jsonl"} | logs
    status = statuses(folder)[0]
    assert status["status"] == "ok"
    assert {"reason", "started", "ended", "config_hash", "schema", "pid", "host"} <= status.keys()
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    designed = "schema run_id timestamp_unix phase method mask workload N B dtype world_size device timings_ms"
    for record in records:
        assert {*designed.split(), "memory_peak_bytes"} <= record.keys()
    assert records[0]["dtype"] == "fp32"  # `auto` is settled before it is recorded
    assert all(v["passed"] for v in records[0]["correctness"].values())
    if phase in ("phase1_forward", "phase2_backward_input", "phase3_train_step"):
        (record,) = records
        assert record["roofline"]["floor_ms"] > 0
        assert record["roofline"]["fraction"] > 0
        for name, statistics in record["timings_ms"].items():
            blocks = statistics.pop("blocks_p50_ms")
            assert set(statistics) == {"count", "sum_ms", "avg_ms", "p50_ms", "p95_ms", "min_ms", "max_ms"}
            assert len(blocks) == (1 if name == "build" else 5)
            assert statistics["min_ms"] <= min(blocks) <= max(blocks) <= statistics["max_ms"]
        assert ("allreduce" in record["timings_ms"]) == (world_size == 2)
    else:
        assert len(records) == (50 if phase == "phasex_drift" else 1)


def test_training_regions_and_sizes_are_recorded(cli, tmp_path):
    options = ("phase=phase3_train_step", "method.weights=masked", "mask=random_2of4")
    assert cli(*SMALL, *options).code == 0
    record = load_runs([tmp_path]).iloc[0]
    for region in ("build", "forward", "backward", "opt_step", "compress", "total_step"):
        assert record[f"timings_ms.{region}.p50_ms"] > 0
    assert record["gradient_bytes"] == 2 * 64 * 64 * 4  # both masked halves are dense copies here
    assert record["training.last"] < record["training.first"]


def test_packed_weights_never_compress_and_hold_half_of_a_masked_copys_gradients(cli, tmp_path):
    assert cli(*SMALL, "phase=phase3_train_step").code == 0
    record = load_runs([tmp_path]).iloc[0]
    assert "timings_ms.compress.p50_ms" not in record
    assert record["gradient_bytes"] == 64 * 64 * 4
    assert record["optimizer_bytes"] == pytest.approx(2 * 64 * 64 * 4, rel=0.01)


def test_a_failed_check_fails_the_run_and_is_recorded(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    write_method(tmp_path, "wrong", "y * 1.01")
    done = cli(*SMALL, f"hydra.searchpath=[file://{tmp_path}/conf]", "method=wrong", "phase=phase0_correctness")
    assert done.code == 1
    assert "Y is wrong: relative error 0.01" in done.err
    row = load_runs([tmp_path / "outputs"]).iloc[0]
    assert row["status"] == "failed"
    assert not row["correctness.Y.passed"]


def test_a_method_is_added_by_one_class_and_one_yaml_outside_of_the_package(cli, tmp_path):
    write_method(tmp_path, "mine", "y")
    phases = "phase=phase0_correctness,phase1_forward,phase2_backward_input,phase3_train_step"
    mine = (f"hydra.searchpath=[file://{tmp_path}/conf]", "method=mine")
    done = cli("-m", *SMALL, *mine, "method.power=2", phases, ONE_PROCESS, NO_REPORT)
    assert done.code == 0, done.err
    runs = load_runs([tmp_path / "outputs"])
    assert set(runs.method) == {"mine"}
    assert set(runs["config.method.power"]) == {2}
    assert set(runs.status) == {"ok"}
    refused = cli(*SMALL, *mine, "method.power=much")
    assert (refused.code, "method.power=much" in refused.err) == (2, True)


def test_a_mask_that_is_not_complementary_2_of_4_is_refused(cli, tmp_path):
    (tmp_path / "mask_three.py").write_text(
        "from dataclasses import dataclass\n"
        "@dataclass\n"
        "class Three:\n"
        "    name: str\n"
        "    period: int | None = None\n"
        "    column_wise: bool = False\n"
        "    def make(self, weight, generator):\n"
        "        mask = weight == weight\n"
        "        mask[:, ::4] = False\n"
        "        return mask\n"
    )
    (tmp_path / "conf" / "mask").mkdir(parents=True)
    (tmp_path / "conf" / "mask" / "three.yaml").write_text("_target_: mask_three.Three\nname: three\n")
    sys.path.insert(0, str(tmp_path))
    done = cli(*SMALL, f"hydra.searchpath=[file://{tmp_path}/conf]", "mask=three")
    assert (done.code, "not 2:4 along rows" in done.err) == (2, True)
    assert not list(tmp_path.rglob("status.json"))


def write_method(folder: Path, name: str, result: str) -> None:
    """A method in a module of its own, found through Python's path, and its YAML file."""
    (folder / f"method_{name}.py").write_text(
        "from dataclasses import dataclass\n"
        "from blockshock.methods.dense_single import DenseSingleLinear\n"
        "@dataclass\n"
        "class Mine:\n"
        "    name: str\n"
        "    power: int = 1\n"
        "    def build(self, problem, weight):\n"
        "        return MineLinear(problem, weight)\n"
        "class MineLinear(DenseSingleLinear):\n"
        "    def forward(self, x):\n"
        "        y = super().forward(x)\n"
        f"        return {result}\n"
    )
    (folder / "conf" / "method").mkdir(parents=True)
    (folder / "conf" / "method" / f"{name}.yaml").write_text(f"_target_: method_{name}.Mine\nname: {name}\npower: 1\n")
    sys.path.insert(0, str(folder))


def test_out_of_memory_is_a_status_of_its_own_and_harms_no_other_job(cli, tmp_path):
    # 2^22 x 2^22 floats are 64 TiB: no host has them, so the allocator says no at once
    sweep = ("hardware=cpu", "phase=phase0_correctness", "method=dense_single", "model.N=4194304,32", "model.B=8")
    done = cli("-m", *sweep, NO_REPORT)
    assert done.code == 0, done.err
    found = {s["status"]: s["reason"] for s in statuses(tmp_path)}
    assert sorted(s["status"] for s in statuses(tmp_path)) == ["ok", "oom"]
    assert "N=4194304" in found["oom"]


def test_a_sweep_with_jobs_that_cannot_run_is_refused_whole_or_skips_them_on_request(cli, tmp_path):
    sweep = ["-m", *SMALL, "method=dense_single,block_shock", "hardware.world_size=1,2", "experiment.name=some"]
    sweep += [ONE_PROCESS, "phase=phase0_correctness", NO_REPORT]
    refused = cli(*sweep)
    assert refused.code == 2
    assert "1 of 4 jobs can't run, none was started" in refused.err
    assert not list(tmp_path.iterdir())
    done = cli(*sweep, "hydra.launcher.skip_unsupported=true")
    assert done.code == 0, done.err
    assert sorted(s["status"] for s in statuses(tmp_path)) == ["ok", "ok", "ok", "unsupported"]


def test_a_sweep_of_the_same_name_measures_nothing_twice_and_says_what_it_kept(cli, tmp_path):
    sweep = ["-m", *SMALL, "phase=phase0_correctness", "experiment.name=again"]
    sweep += [NO_REPORT, ONE_PROCESS]
    first = cli(*sweep, "model.B=8,16")
    assert (first.code, "kept" in first.err) == (0, False)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.jsonl")}
    again = cli(*sweep, "model.B=8,16,24")
    assert (again.code, "2 were measured before and kept" in again.err) == (0, True)
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("metrics.jsonl")}
    assert len(before) == 2
    assert len(after) == 3
    assert before.items() <= after.items()


def test_two_sweeps_cannot_write_into_one_folder(cli, tmp_path):
    folder = tmp_path / "outputs/sweeps/same"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        done = cli("-m", *SMALL, "experiment.name=same", "model.B=8,16")
        assert (done.code, "another sweep is writing here" in done.err) == (2, True)
    assert cli("-m", *SMALL, "phase=phase0_correctness", "experiment.name=same", "model.B=8", NO_REPORT).code == 0


USERS = {"thesis.tex": "precious", "config.yaml": "mine: 1", "metrics.jsonl": "{}", "figures/a.png": "x"}


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A folder with somebody's files: the home folder, and the current one."""
    folder = tmp_path / "home"
    (folder / "figures").mkdir(parents=True)
    for name, text in USERS.items():
        (folder / name).write_text(text)
    (tmp_path / "link").symlink_to(folder)
    monkeypatch.setenv("HOME", str(folder))
    return folder


def files_in(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "argument",
    [
        "hydra.run.dir=.",
        "hydra.run.dir=${oc.env:HOME}",
        "hydra.run.dir=../link",
        "hydra.run.dir=thesis.tex",
        "hydra.run.dir=figures",
        "hydra.sweep.dir=.",
        "hydra.sweep.dir=../link",
        "hydra.sweep.dir=figures",
        "hydra.sweep.subdir=.",
        "hydra.sweep.subdir=../",
        "experiment.output_dir=thesis.tex",
    ],
)
def test_a_folder_with_somebody_elses_files_is_refused_and_left_as_it_is(cli, home, monkeypatch, argument):
    monkeypatch.chdir(home)
    sweep = ["-m"] * argument.startswith("hydra.sweep.")
    done = cli(*sweep, *SMALL, "phase=phase0_correctness", argument)
    assert (done.code, done.err.count("\n")) == (2, 1)
    assert "choose " in done.err or "leave it out" in done.err
    assert files_in(home) == USERS


def test_a_run_again_in_its_folder_replaces_its_own_files_and_no_other_configuration_may(cli, tmp_path):
    run = (*SMALL, "phase=phasex_drift", "phase.steps=2", "hydra.run.dir=mine")
    assert cli(*run).code == 0
    (tmp_path / "mine" / "notes.txt").write_text("kept")
    (tmp_path / "mine" / ".drift.csv.4711").write_text("the phase's own, of a process that was killed")
    assert cli(*run).code == 0
    before = files_in(tmp_path)
    assert before["mine/notes.txt"] == "kept"
    assert before["mine/metrics.jsonl"].count("\n") == 2
    assert "mine/.drift.csv.4711" not in before
    done = cli(*run, "model.B=16")
    assert (done.code, "holds the run of another configuration" in done.err) == (2, True)
    assert files_in(tmp_path) == before


def test_two_runs_cannot_write_into_one_folder(cli, tmp_path):
    (tmp_path / "mine").mkdir()
    with FileLock(tmp_path / "mine" / ".lock"):
        done = cli(*SMALL, "phase=phase0_correctness", "hydra.run.dir=mine")
    assert (done.code, "another run is writing there" in done.err) == (2, True)
    assert {path.name for path in (tmp_path / "mine").iterdir()} <= {".lock"}


def test_an_exported_run_id_names_no_folder(cli, tmp_path, monkeypatch):
    monkeypatch.setenv("BLOCKSHOCK_RUN_ID", "of_yesterday")
    for _ in range(2):
        assert cli(*SMALL, "phase=phase0_correctness").code == 0
    names = {path.parent.name for path in tmp_path.rglob("status.json")}
    assert len(names) == 2
    assert "of_yesterday" not in names


@pytest.mark.parametrize(
    "exported",
    [
        {"WORLD_SIZE": "", "RANK": "", "MASTER_ADDR": "", "MASTER_PORT": ""},
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"},
        {"WORLD_SIZE": "8", "RANK": "0"},
        {"SLURM_JOB_ID": "99999999", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "SLURM_RESTART_COUNT": "7"},
    ],
)
def test_variables_of_a_shell_or_an_allocation_start_no_ranks(cli, monkeypatch, exported):
    for name, value in exported.items():
        monkeypatch.setenv(name, value)
    assert cli(*SMALL, "phase=phase0_correctness", "hardware.world_size=2").code == 0


def test_a_local_sweep_in_a_requeued_allocation_runs_its_jobs(cli, tmp_path, monkeypatch):
    """The allocation's number, restarts and tasks are not the job's."""
    allocation = {"SLURM_JOB_ID": "99999999", "SLURM_RESTART_COUNT": "7", "SLURM_PROCID": "1", "SLURM_NTASKS": "2"}
    for name, value in {**allocation, "WORLD_SIZE": "2", "RANK": "1", "BLOCKSHOCK_RUN_ID": "of_yesterday"}.items():
        monkeypatch.setenv(name, value)
    done = cli("-m", *SMALL, "phase=phase0_correctness", "experiment.name=inside", NO_REPORT)
    assert done.code == 0, done.err
    assert [status["status"] for status in statuses(tmp_path)] == ["ok"]


@pytest.mark.parametrize(
    ("world_size", "rank", "expected"),
    [("two", "0", "WORLD_SIZE=two: "), ("2", "2", "RANK=2: is no rank of WORLD_SIZE=2"), ("2", "-1", "RANK=-1: ")],
)
def test_variables_that_contradict_each_other_are_refused_in_one_line(cli, monkeypatch, world_size, rank, expected):
    for name, value in {"WORLD_SIZE": world_size, "RANK": rank, "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    done = cli(*SMALL)
    assert (done.code, done.err.count("\n"), expected in done.err) == (2, 1, True)


@pytest.mark.parametrize("command", ["blockshock --help", "sweeps.status ."])
def test_a_reader_that_has_gone_ends_a_command_without_a_trace(tmp_path, command):
    (tmp_path / "status.json").write_text("{}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split()], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(120) in (128 + signal.SIGPIPE, 1)  # rich has a status of its own


def test_control_characters_of_what_was_given_reach_no_terminal(cli):
    done = cli(*SMALL, "phase=phase0_correctness", "hydra.run.dir=/proc/\x1b[31mred")
    assert (done.code, "\x1b" in done.err, r"\x1b[31mred" in done.err) == (2, False, True)


def test_hydras_own_folder_names_can_be_overridden(cli, tmp_path):
    sweep = ("-m", *SMALL, "phase=phase0_correctness", "model.B=8,16", NO_REPORT, ONE_PROCESS)
    assert cli(*sweep, "hydra.sweep.dir=here", "hydra.sweep.subdir=job_${hydra.job.num}").code == 0
    assert {p.parent.name for p in (tmp_path / "here").rglob("status.json")} == {"job_0", "job_1"}
    assert cli(*SMALL, "phase=phase0_correctness", "hydra.run.dir=there").code == 0
    assert (tmp_path / "there" / "status.json").exists()


def test_settled_values_are_what_is_recorded(cli, tmp_path):
    assert cli(*SMALL).code == 0
    (folder,) = (path.parent for path in tmp_path.rglob("status.json"))
    config = folder / "config.yaml"
    assert "timing: sync" in config.read_text()
    assert "flush_l2: false" in config.read_text()
    measured = ("kernel: auto", "collective: auto")  # what they became is in the record
    settled = [line for line in config.read_text().splitlines() if not line.strip().startswith(("name:", *measured))]
    assert not any("auto" in line for line in settled)


def test_a_failing_job_in_a_sweep_is_reported_and_the_others_run(cli, tmp_path):
    write_method(tmp_path, "crashing", "y / 0 if len(x) == 16 else 1 / (len(x) - 16) * 0 * y + y")
    search = f"hydra.searchpath=[file://{tmp_path}/conf]"
    done = cli("-m", *SMALL, search, "phase=phase0_correctness", "method=crashing", "model.B=16,24", NO_REPORT)
    assert done.code == 1
    assert sorted(s["status"] for s in statuses(tmp_path)) == ["failed", "ok"]


def test_help_names_every_group_and_shows_examples(cli):
    shown = cli("--help").out
    for text in (
        "phase: benchmark, checkpoint",
        "method: block_shock",
        "mask: checkerboard",
        "hardware: auto",
        "sweep: ",
    ):
        assert text in shown
    assert shown.count("blockshock ") >= 3
    assert "world_size" in shown


def test_the_configuration_can_be_printed(cli):
    assert "'N': 1024" in cli("--cfg", "job").out
    assert (
        "hydra.searchpath" in cli("--info", "searchpath").out.lower() or "Provider" in cli("--info", "searchpath").out
    )


def test_completion_offers_groups_options_and_keys(monkeypatch, cli):
    for line, expected in (("method=", "method=block_shock"), ("mod", "model."), ("model.", "model.N=")):
        monkeypatch.setenv("COMP_LINE", f"blockshock {line}")
        monkeypatch.setenv("COMP_POINT", str(len(f"blockshock {line}")))
        assert expected in cli("-sc", "query=bash").out


def test_ranks_that_torchrun_has_started_are_joined(tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "blockshock",
        *SMALL, f"experiment.output_dir={tmp_path}",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    (status,) = statuses(tmp_path)  # one folder, though two processes ran Hydra
    assert status["status"] == "ok"
    (folder,) = (path.parent for path in tmp_path.rglob("status.json"))
    for printed_once in ("building block_shock\n", "· 2 x cpu\n", f"  {folder}\n"):
        assert done.stdout.count(printed_once) == 1
    (record,) = load_runs([tmp_path]).to_dict("records")
    assert record["world_size"] == 2
    assert record["timings_ms.allreduce.count"] == 5 * 20


@pytest.mark.skipif(not slurm_answers(), reason=NO_SLURM)
@pytest.mark.parametrize("shape", [["-N1", "-n2"], ["-N2", "--ntasks-per-node=1"]])
def test_ranks_that_srun_has_started_are_joined(tmp_path, shape):
    command = ["srun", "--kill-on-bad-exit=1", *shape, sys.executable, "-m", "blockshock", *SMALL]
    done = subprocess.run(
        [*command, f"experiment.output_dir={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (record,) = load_runs([tmp_path]).to_dict("records")
    assert (record["status"], record["world_size"]) == ("ok", 2)


def test_a_world_size_other_than_torchruns_is_refused(tmp_path):
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "blockshock",
        *SMALL, f"experiment.output_dir={tmp_path}", "hardware.world_size=4",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    assert "torchrun or srun has started 2 ranks" in done.stderr
    assert statuses(tmp_path) == []


def test_a_rank_that_fails_under_torchrun_fails_the_job(tmp_path):
    write_method(tmp_path, "broken", "y if __import__('torch').distributed.get_rank() == 0 else 1 / 0")
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "blockshock",
        *SMALL, f"experiment.output_dir={tmp_path}/o", f"hydra.searchpath=[file://{tmp_path}/conf]", "method=broken",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode != 0
    (status,) = statuses(tmp_path)
    assert (status["status"], status["reason"]) == ("failed", "rank 1: ZeroDivisionError: division by zero")


def test_it_runs_from_an_installed_wheel_in_any_folder(tmp_path, installed_wheel):
    """What `pip install .` puts into place has the configuration, the launcher and the report with it."""
    site = str(installed_wheel)
    code = (
        f"import sys; sys.path.insert(0, {site!r})\n"
        f"import blockshock.cli.main as m; assert m.__file__.startswith({site!r})\n"
        "m.main()"
    )
    arguments = ["-m", *SMALL, "phase=phase0_correctness", "experiment.name=wheel"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=200,
        env={**os.environ, "PYTHONPATH": site},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs/sweeps/wheel/report/report.html").exists()


@pytest.mark.parametrize("interrupt", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_every_rank_and_keeps_what_had_finished(tmp_path, interrupt):
    sweep = ["-m", *SMALL, "phase=phase1_forward", "hardware.world_size=2", "experiment.name=slow"]
    write_method(tmp_path, "sleepy", "(__import__('time').sleep(600 if len(x) == 16 else 0), y)[1]")
    options = [f"hydra.searchpath=[file://{tmp_path}/conf]", "method=sleepy", "model.B=8,16"]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
    command = [sys.executable, "-m", "blockshock", *sweep, *options, f"experiment.output_dir={tmp_path}/o"]
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)
    wait_until(lambda: sorted(s["status"] for s in statuses(tmp_path)) == ["ok", "running"], 200)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(interrupt)
    _, err = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "interrupted; what had finished is kept" in err
    assert "Traceback" not in err
    found = sorted((s["status"], s["reason"]) for s in statuses(tmp_path))
    assert found == [("failed", "interrupted"), ("ok", "")]
    psutil.wait_procs(children, timeout=200)
    assert not any(child.is_running() and child.status() != psutil.STATUS_ZOMBIE for child in children)


def test_an_interrupt_that_an_import_swallows_is_not_lost(tmp_path):
    """`except:` and callbacks of the garbage collector do that."""
    code = (
        "import os, signal, sys\n"
        "class Swallow:\n"
        "    def find_spec(self, name, *_):\n"
        "        if name == 'torch._C':\n"
        "            try:\n"
        "                os.kill(os.getpid(), signal.SIGINT)\n"
        "                signal.sigtimedwait((), 60)\n"
        "            except KeyboardInterrupt:\n"
        "                print('swallowed')\n"
        "from blockshock.cli.main import main\n"
        "sys.meta_path.insert(0, Swallow())\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *SMALL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (1, "swallowed\n")
    assert done.stderr == "blockshock: interrupted; what had finished is kept\n"
    assert not list(tmp_path.rglob("status.json"))


def test_an_interrupt_while_pytorch_is_imported_shows_nothing_of_pytorchs(tmp_path):
    """What PyTorch registers to log at exit is held back by a level that it sets last in its import."""
    code = (
        "import sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *_):\n"
        "        if hasattr(sys.modules.get('torch._subclasses.fake_tensor'), 'dump_cache_stats'):\n"
        "            raise KeyboardInterrupt\n"
        "from blockshock.cli.main import main\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code, *SMALL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "blockshock: interrupted; what had finished is kept\n"
