"""phase=benchmark on a CPU: what takes turns, what is checked and recorded, who is left out and who is rejected."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from hydra import compose, initialize_config_dir

from blockshock.cli import resolvers
from blockshock.config import CONF, load_job
from blockshock.errors import ConfigError, WrongValue
from blockshock.jobs.correctness import CheckFailed
from blockshock.jobs.job import execute, reusing_ranks
from blockshock.phases.benchmark.contenders import Contender, admit, naming
from blockshock.phases.benchmark.products import judged
from sweeps import load_runs
from sweeps.report.tables.benchmarks import benchmarks
from tests.blockshock import collective_tasks
from tests.launching import write_method

SMALL = ("phase=benchmark", "hardware=cpu", "model.N=64", "model.B=8", "phase.timed_iters=2", "phase.rounds=2")
RANKS = {"product": 1, "backward": 1, "all_reduce": 2, "forward": 2, "train": 2, "law": 2}
MASKS = {"complement_1100_0011", "complement_1010_0101", "complement_1001_0110", "checkerboard", "random_2of4"}
PEERS = {"dtensor_row", "dtensor_column", "dense_tp_row", "dense_tp_column"}
OURS = {"block_shock/1100", "block_shock/checkerboard", "block_shock/random"}
LAW = {"dense_tp_row", "dense", "half_k_dense", "block_shock", "sparse_half", "all_reduce"}
GRADIENTS = {f"{name}/{gradient}" for name in MASKS for gradient in ("dX", "dW")}
NAMES = {
    "product": {"half_k_dense", "dense", *(f"{mask}/auto" for mask in MASKS)},
    "backward": {"half_k_dense", "half_k_dense/dW", *GRADIENTS},
    "all_reduce": {"gloo"},
    "forward": PEERS | OURS,  # what needs a GPU is left out
    "train": PEERS | OURS,
    "law": LAW,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job of each part, one run folder each, by the part's name."""
    resolvers.register()
    found = tmp_path_factory.mktemp("benchmarks")
    with initialize_config_dir(str(CONF), version_base="1.3"), reusing_ranks():
        for part, ranks in RANKS.items():
            job = load_job(compose("config", [*SMALL, f"phase/part={part}", f"hardware.world_size={ranks}"]))
            outcome = execute(job.config, found / part, "test")
            assert outcome.status == "ok", (part, outcome.reason)
    return found


def records(folder: Path) -> pd.DataFrame:
    return pd.read_json(folder / "metrics.jsonl", lines=True)


def names(rows: pd.DataFrame) -> list[str]:
    return [f"{row.method}/{row.variant}".rstrip("/") for row in rows.itertuples()]


@pytest.mark.parametrize("part", RANKS)
def test_every_part_measures_its_contenders_in_turn_and_compares_them_with_float64(folder, part):
    rows = records(folder / part)
    assert len(rows) == len(NAMES[part])
    assert set(names(rows)) == NAMES[part]
    assert set(rows["world_size"]) == {RANKS[part]}
    assert (rows["p50_us"] > 0).all()
    assert rows["rounds_us"].map(len).eq(2).all()
    pieces = {"half_k_dense", "dense", "sparse_half", "all_reduce"}  # PyTorch's own, or part of what is checked
    checked = rows[~rows["method"].isin(pieces)]
    assert (checked["relative_error"] < 1e-5).all()
    assert (checked["dense_relative_error"] > 0).all()


def test_a_step_says_what_a_rank_holds_and_an_all_reduce_what_a_table_chooses(folder):
    train = records(folder / "train").set_index("variant")
    # weight, gradient and two moments of half of W, and AdamW's step counter
    assert train.loc["1100", "state_bytes"] == 4 * 4 * 64 * 64 // 2 + 4
    assert train.loc["1100", "dense_state_bytes"] == 4 * 4 * 64 * 64
    reduced = records(folder / "all_reduce")
    assert reduced[["bytes", "chosen"]].to_numpy().tolist() == [[4 * 64 * 8, True]]
    assert (records(folder / "product")["copy_gbs"].dropna() > 0).all()


def test_records_say_which_optional_contenders_are_left_out_and_why(folder):
    why = "needs hardware.backend=nccl, not gloo"
    symmetric = [f"{name}: collective={name}: {why}" for name in ("nccl", "one_shot", "two_shot", "copy")]
    assert records(folder / "all_reduce").loc[0, "left_out"] == symmetric
    assert "block_shock_outputs: is for 4 ranks or more" in records(folder / "forward")["left_out"].iloc[0]
    assert records(folder / "backward").loc[0, "left_out"] == []


def test_the_report_reads_every_part_with_its_ratios(folder):
    table = benchmarks(load_runs([folder]))
    assert {part: set(rows["contender"]) for part, rows in table.groupby("part")} == NAMES
    for part, baseline in (("product", "half_k_dense"), ("backward", "half_k_dense"), ("forward", "dtensor_row")):
        rows = table[table["part"] == part]
        assert set(rows["baseline"]) == {baseline}
        for quantity, of in rows.groupby("quantity"):
            (divisor,) = of.loc[of["method"] == baseline, "p50_us"]
            assert of["ratio"].to_numpy() == pytest.approx(of["p50_us"].to_numpy() / divisor), quantity
    assert set(table["kernel"]) >= {"auto"}
    assert set(table.loc[table["variant"] == "auto", "chosen_kernel"]) == {"gather", "masked_dense"}


def test_a_single_run_prints_each_contender_with_its_ratio_and_names_those_left_out(cli):
    done = cli(*SMALL, "phase/part=product", "~phase.contenders.checkerboard")
    assert done.code == 0, done.err
    assert "without random_2of4_cusparselt: kernel=cusparselt: needs an NVIDIA GPU" in done.out
    lines = [line.split() for line in done.out.splitlines() if " x half_k_dense" in line]
    assert {line[0] for line in lines} == NAMES["product"] - {"checkerboard/auto"}
    times = {line[0]: float(line[2]) for line in lines}
    for line in lines:
        assert float(line[4]) == pytest.approx(times[line[0]] / times["half_k_dense"], rel=1e-2, abs=2e-3)


def test_a_sweep_measures_a_cell_once_and_labels_it_by_its_part(cli, tmp_path):
    arguments = ["-m", *SMALL, "phase/part=product", "experiment.name=cells", "hydra.launcher.report=false"]
    arguments += ["hydra.launcher.reuse_ranks=true"]
    assert cli(*arguments, "model.B=8").code == 0
    before = statuses(tmp_path)
    assert cli(*arguments, "model.B=8,16").code == 0
    after = statuses(tmp_path)
    assert len(after) == 2
    assert before.items() <= after.items()  # the same file, not measured again
    assert all(name.startswith("benchmark_product_N64-B") for name in after)


def statuses(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in folder.rglob("status.json")}


BROKEN = {
    "raise RuntimeError('no such luck')": "mine: RuntimeError: no such luck",
    "y = y + 1e-3": "mine: Y is wrong: relative error",
}


@pytest.mark.parametrize("lines", BROKEN)
def test_a_users_own_method_takes_part_and_is_named_where_it_is_broken(cli, tmp_path, monkeypatch, lines):
    path, _ = write_method(tmp_path, lines, base="dense_tp_row.DenseTpRowLinear")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(tmp_path)
    contender = ("+method@phase.contenders.mine.method=mine", "hardware.world_size=2")
    done = cli(*SMALL, "phase/part=forward", path, *contender)
    assert done.code == 1
    assert BROKEN[lines] in done.err
    (status,) = (json.loads(text) for text in statuses(tmp_path).values())
    assert (status["status"], BROKEN[lines] in status["reason"]) == ("failed", True)


TWO = "hardware.world_size=2"
MINE = ("+method@phase.contenders.mine.method=block_shock", TWO)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["phase/part=produkt"], "did you mean 'product'?"),
        (["phase.part=train", TWO], "choose it by phase/part=train"),
        (["phase/part=product", TWO], "part product is one rank's work"),
        (["phase/part=forward"], "part forward needs an even number of ranks"),
        (["phase/part=law", "hardware.world_size=4"], "part law is about two ranks"),
        (["phase/part=product", "model.N=6"], "model.N=6: part product needs a multiple of 4"),
        (["phase/part=product", "model.B=0"], "model.B=0: must be at least 1"),
        (["phase/part=product", "phase.rounds=0"], "phase.rounds=0: must be at least 1"),
        (["phase/part=product", "phase.rouns=3"], "did you mean 'phase.rounds'?"),
        (["method=block_shock"], "leave method out, or add one by +method@phase.contenders.NAME.method=block_shock"),
        (["+method@phase.contenders.mine.method=blok_shock", TWO], "did you mean 'block_shock'?"),
        (
            [*MINE, "phase.contenders.mine.method.kernel=gather", "+mask@phase.contenders.mine.mask=random_2of4"],
            "blocks",
        ),
        ([*MINE, "phase.contenders.mine.method.kernl=gather"], "did you mean 'phase.contenders.mine.method.kernel'?"),
        (
            [*MINE, "phase.contenders.mine.method.kernel=cusparselt"],
            "phase.contenders.mine.method.kernel=cusparselt: nee",
        ),
        (["+mask@phase.contenders.mine.mask=checkerboard", TWO], "phase.contenders.mine.method=None: names no method"),
        (["phase/part=product", "+phase.contenders.checkerboard.kernl=auto"], "allowed keys: optional, mask, kernel"),
        (
            ["phase/part=product", "phase.contenders.random_2of4_cusparselt.kernel=cusparse"],
            "phase.contenders.random_2of4_cusparselt.kernel=cusparse: allowed: auto",
        ),
        (
            ["phase/part=product", "phase.contenders.random_2of4_cusparselt.kernel=auto"],
            "is measured as random_2of4/auto, and so is random_2of4; leave one out by ~phase.contenders.",
        ),
        (["phase/part=all_reduce", "~phase.contenders.gloo", TWO], "none can run here: nccl: collective=nccl: needs"),
        (["phase/part=law", "~phase.contenders.dense_tp_row", TWO], "relates one contender of block_shock and one of"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_parts_contenders_and_sizes_are_rejected_before_ranks_start(cli, tmp_path, arguments, told):
    done = cli(*SMALL, *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.count("\n") == 1
    assert told in done.err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        ("method=contenders", "method=contenders: stands for what phase=benchmark compares; use method=block_shock"),
        ("phase/part=train", "phase/part=train: belongs to phase=benchmark"),
    ],
)
def test_what_belongs_to_the_benchmark_is_rejected_in_another_phase(cli, argument, told):
    done = cli("phase=phase1_forward", argument)
    assert (done.code, told in done.err) == (2, True)


def object_to(wrong: dict[str, ConfigError]) -> Callable[[str, Contender], str]:
    def check(key: str, contender: Contender) -> str:
        if key in wrong:
            raise wrong[key]
        return key

    return check


def test_only_an_optional_contender_is_left_out_and_a_misspelling_never_is():
    needs = ConfigError("method.kernel", "x", "needs a GPU")
    both = {"a": Contender(), "b": Contender(optional=True)}
    found = admit(both, object_to({"b": needs}))
    assert (list(found.contenders), found.left_out) == (["a"], {"b": "method.kernel=x: needs a GPU"})
    with pytest.raises(ConfigError, match=r"^phase\.contenders\.a\.method\.kernel=x: needs a GPU$"):
        admit(both, object_to({"a": needs}))
    with pytest.raises(ConfigError, match=r"phase\.contenders\.b\.method\.kernel=x: allowed: y"):
        admit(both, object_to({"b": WrongValue("method.kernel", "x", "allowed: y")}))
    with pytest.raises(ConfigError, match=r"none can run here: b: method\.kernel=x"):
        admit({"b": Contender(optional=True)}, object_to({"b": needs}))


@pytest.mark.parametrize(
    "error", [CheckFailed("wrong"), torch.OutOfMemoryError("CUDA out of memory"), MemoryError("x")]
)
def test_an_error_names_the_contender_and_still_says_how_the_job_ended(error):
    from blockshock.jobs.rank import is_out_of_memory

    with pytest.raises((CheckFailed, RuntimeError, MemoryError), match=r"^mine: ") as raised, naming("mine"):
        raise error
    assert isinstance(raised.value, CheckFailed) == isinstance(error, CheckFailed)
    assert is_out_of_memory(raised.value) == is_out_of_memory(error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_matmul_is_rejected_where_one_row_is_off_and_not_where_it_is_rounded_otherwise(dtype):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(n, 256, generator=generator).to(dtype) for n in (64, 48))
    exact = a.double() @ b.double().t()
    in_blocks = sum(x.double() @ y.double().t() for x, y in zip(a.split(64, 1), b.split(64, 1), strict=True))
    found = judged(in_blocks.to(dtype), a @ b.t(), exact, 256)
    assert math.isclose(found["relative_error"], float((in_blocks.to(dtype).double() - exact).norm() / exact.norm()))
    wrong = exact.to(dtype)
    wrong[5] *= 1.5
    with pytest.raises(CheckFailed, match="where a dense matmul has"):
        judged(wrong, a @ b.t(), exact, 256)


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_sum_is_compared_with_float64_before_it_is_timed(pools, world_size, dtype):
    right, wrong = pools(world_size).run(collective_tasks.checked_sums, dtype).value
    assert 0 < right["relative_error"] < torch.finfo(dtype).eps
    if world_size == 2:  # one addition: rounded once
        assert right["relative_error"] == pytest.approx(right["dense_relative_error"])
    assert "the sum's relative error is" in wrong


# This process, or another program's, may hold the GPUs: the launcher would wait for them.
ON_GPUS = ("hydra.launcher.use_busy_gpus=true", "hydra.launcher.report=false")


@pytest.mark.gpu
def test_on_a_gpu_contenders_are_replayed_as_graphs_and_timed_eagerly_too(cli, tmp_path):
    few = ("phase=benchmark", "phase.timed_iters=2", "phase.rounds=2", "hardware.world_size=1", "experiment.name=gpu")
    shape = ("model.N=1024", "model.B=16")
    done = cli("-m", *few, *shape, *ON_GPUS, "phase/part=product,backward")
    assert done.code == 0, done.err
    rows = pd.concat([records(path.parent) for path in tmp_path.rglob("metrics.jsonl")])
    assert (rows[["p50_us", "eager_p50_us"]] > 0).all(axis=None)
    assert set(names(rows)) >= NAMES["product"] | NAMES["backward"]


@pytest.mark.gpus
def test_on_two_gpus_every_part_about_two_ranks_is_measured(cli, tmp_path):
    few = ("phase=benchmark", "phase.timed_iters=2", "phase.rounds=2", "hardware.world_size=2", "experiment.name=gpus")
    shape = ("model.N=1024", "model.B=256", "hydra.launcher.reuse_ranks=true")
    done = cli("-m", *few, *shape, *ON_GPUS, "phase/part=all_reduce,forward,train,law")
    assert done.code == 0, done.err
    rows = pd.concat([records(path.parent) for path in tmp_path.rglob("metrics.jsonl")])
    found = {part: set(names(of)) for part, of in rows.groupby("part")}
    assert found["law"] == LAW
    assert "nccl" in found["all_reduce"]
    assert found["train"] >= PEERS | OURS | {"torch_semi_structured"}
    assert found["forward"] >= found["train"] | {
        "torch_semi_structured/frozen",
        "dense_tp_row/nccl",
        "block_shock/nccl",
    }
