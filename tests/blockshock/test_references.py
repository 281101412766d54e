"""The dense runs of a model are computed once: by all ranks together, and read from disk by the next method's job."""

import json
import logging
import math

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from torch.nn.functional import cross_entropy

from blockshock.cli import tune
from blockshock.cli.main import CONF
from blockshock.cli.resolvers import register
from blockshock.config import load_job, plain
from blockshock.jobs.sample import Sample
from blockshock.measure import arrays
from blockshock.measure.arrays import array_path, cached_arrays, kept_arrays
from blockshock.problem import problem_of
from profiler.models import build
from tests.blockshock import model_tasks
from tests.blockshock.rank_tasks import CPU

STEPS = 20
DRIFT = ("phase=phasex_drift", "phase.mode=train", "hardware=cpu", "hardware.world_size=2", "workload.dropout=0")


def config(*overrides: str) -> dict:
    register()
    given = [*DRIFT, f"phase.steps={STEPS}", "model.dtype=bf16", *overrides]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load_job(plain(compose("config", overrides=given))).config


def by_itself(given: dict) -> list[torch.Tensor]:
    """Losses, logits and weights of the run as anyone writes it, on one device."""
    job = load_job(given)
    problem, work = problem_of(job, CPU), job.workload
    length = {} if work.seq_len is None else {"seq_len": work.seq_len}
    model = build(work.name, 1, dtype=torch.bfloat16, seed=job.experiment.seed, dropout=0.0, **length).model.double()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses, outputs, weights = [], [], []
    for step in range(1, STEPS + 1):
        x = problem.inputs(step)
        logits = model(x.double() if x.is_floating_point() else x).logits.flatten(0, -2)
        loss = cross_entropy(logits, problem.target(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
        outputs.append(logits.detach().flatten())
        weights.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    return [torch.stack(found) for found in (losses, outputs, weights)]


@pytest.mark.parametrize(
    ("model", "batch", "tolerance"),
    [
        ("tiny_gpt2", 2, 1e-12),
        ("tiny_vit", 3, 1e-12),  # one rank has two of them
        ("tiny_bert", 1, 1e-12),  # and one none
        ("tiny_llama", 2, 1e-7),  # transformers' RMSNorm computes in float32
    ],
)
def test_the_exact_run_that_two_ranks_share_is_that_of_one_device(pools, tmp_path, model, batch, tolerance):
    given = config(f"workload={model}", f"workload.batch_size={batch}")
    found = pools(2).run(model_tasks.exact_run, given, str(tmp_path), 1 << 20).value
    assert found["alike"]
    for ours, expected in zip(found["curves"], by_itself(given), strict=True):  # losses, all outputs, all weights
        assert ours.shape == expected.shape
        assert float((ours - expected).norm() / expected.norm()) <= tolerance


def test_the_next_job_reads_the_run_whatever_its_method_and_number_of_ranks(pools, tmp_path):
    first, *others = (
        pools(ranks)
        .run(
            model_tasks.exact_run, config("workload=tiny_gpt2", "workload.batch_size=4", *more), str(tmp_path), 1 << 14
        )
        .value
        for ranks, more in ((2, ["method=block_shock"]), (2, ["method=dense_tp_row"]), (1, ["hardware.world_size=1"]))
    )
    assert first["built"] == 1
    (path,) = (tmp_path / "blockshock").glob("*")  # and no temporary file
    name = f"reference model=tiny_gpt2 batch_size=4 seq_len=16 dropout=0.0 dtype=float64 steps={STEPS}"
    assert first["said"][0] == f"{name}: computing"
    for other in others:
        assert other["built"] == 0
        assert other["said"] == [f"{name}: read from {path}"]
        assert all(torch.equal(*pair) for pair in zip(first["curves"], other["curves"], strict=True))


@pytest.mark.parametrize(
    "change",
    ["experiment.seed=1", "phase.steps=3", "phase.lr=0.01", "phase.optimizer=sgd", "workload.batch_size=3",
     "workload.seq_len=5", "workload=tiny_bert", "model.dtype=fp32"],
)  # fmt: skip
def test_another_run_is_computed(pools, tmp_path, change):
    for more in ([], [change]):
        given = config("workload=tiny_gpt2", "phase.steps=2", *more)
        assert pools(1).run(model_tasks.exact_run, given, str(tmp_path), 1 << 14).value["built"] == 1
    assert len(list((tmp_path / "blockshock").glob("*"))) == 2


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "blockshock"


KEY, SHAPES = {"model": "a", "seed": 0}, {"loss": (3,), "y": (3, 2)}


def curve(value: float = 1.0) -> dict[str, np.ndarray]:
    return {name: np.full(shape, value) for name, shape in SHAPES.items()}


def known(key: dict = KEY, value: float = 2.0) -> float:
    return float(cached_arrays("reference", key, SHAPES, lambda: curve(value))["y"][2, 1])


def cut(path):
    path.write_bytes(path.read_bytes()[:-40])


def one_bit_flipped(path):
    content = bytearray(path.read_bytes())
    content[content.index(np.ones(6).tobytes())] ^= 1
    path.write_bytes(content)


def empty(path):
    path.write_bytes(b"")


def of_another_key(path):
    assert known({"model": "b", "seed": 0}, 5.0) == 5.0
    array_path("reference", {"model": "b", "seed": 0}).replace(path)


def a_pickle(path):
    np.savez(path, loss=np.array([print], dtype=object))


def encrypted(path):
    """By a flag of the archive's first entry, as one flipped bit may have it."""
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)


def compressed_and_broken(path):
    np.savez_compressed(path, key=np.frombuffer(b"{}", dtype=np.uint8), loss=np.arange(300.0), y=np.ones((3, 2)))
    content = bytearray(path.read_bytes())
    start = content.index(b"loss.npy") + 40
    content[start : start + 60] = bytes(60)
    path.write_bytes(content)


def one_array(path):
    with path.open("wb") as file:
        np.save(file, np.ones(3))


def of_another_shape(path):
    key = np.frombuffer(json.dumps(KEY, sort_keys=True).encode(), dtype=np.uint8)
    np.savez(path, key=key, loss=np.ones(3), y=np.ones((2, 2)))


@pytest.mark.parametrize(
    "spoil",
    [
        cut,
        one_bit_flipped,
        empty,
        encrypted,
        compressed_and_broken,
        one_array,
        of_another_key,
        a_pickle,
        of_another_shape,
    ],
)
def test_a_broken_or_foreign_file_is_computed_again_and_replaced(cache, caplog, spoil):
    assert known(value=1.0) == 1.0
    assert known() == 1.0
    spoil(array_path("reference", KEY))
    caplog.clear()
    assert known(value=3.0) == 3.0
    (warning,) = (record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)
    assert "computing it again" in warning
    assert known() == 3.0


def test_a_folder_that_cant_be_written_costs_a_warning_and_no_job(monkeypatch, caplog):
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    assert known(value=3.0) == 3.0
    assert "can't be kept" in caplog.text


def test_old_files_go_and_all_on_request(cache, monkeypatch, capsys):
    monkeypatch.setattr(arrays, "KEPT", 2)
    for seed in range(4):
        known({"model": "a", "seed": seed})
    assert len(kept_arrays("reference")) == 2
    assert array_path("reference", {"model": "a", "seed": 3}) in kept_arrays("reference")
    tune.main(["--forget"])
    assert kept_arrays("reference") == []


@pytest.mark.parametrize("most", [1 << 12, 1 << 20])
def test_a_sample_estimates_norms_and_distances(most):
    """Of many small elements and few large ones, as a model's weights are."""
    drawn = torch.Generator().manual_seed(0)
    ours = [0.02 * torch.randn(300, 700, generator=drawn), torch.ones(768), 0.02 * torch.randn(90_000, generator=drawn)]
    theirs = [each + 1e-3 * torch.randn(each.shape, generator=drawn) for each in ours]
    sample = Sample([each.numel() for each in ours], most, drawn)
    of_ours, of_theirs = sample.of(ours), sample.of(theirs)
    whole = [torch.cat([each.double().flatten() for each in side]) for side in (ours, theirs)]
    error = 4 / math.sqrt(2 * most) if most < len(whole[0]) else 1e-15  # four times what a sample of that many errs
    assert float(of_ours.norm()) == pytest.approx(float(whole[0].norm()), rel=error)
    assert float((of_ours - of_theirs).norm()) == pytest.approx(float((whole[0] - whole[1]).norm()), rel=error)


def test_a_sample_of_rows_is_the_samples_part_in_them():
    y = torch.randn(40, 70, dtype=torch.float64)
    sample = Sample([y.numel()], 100, torch.Generator().manual_seed(0))
    parts = sample.of_rows(y[:13], 0) + sample.of_rows(y[13:], 13)
    assert torch.equal(parts, sample.of([y]))


def test_a_drift_record_is_the_same_whether_its_references_were_known(cli, tmp_path):
    given = [*DRIFT, "workload=tiny_gpt2", "workload.seq_len=32", "phase.steps=4", "experiment.seed=77"]
    given += ["model.dtype=bf16", "method=dense_tp_row"]
    found = []
    for name in ("first", "second"):
        done = cli(*given, f"hydra.run.dir={name}")
        assert (done.code, done.err) == (0, "")
        records = (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        found.append([json.loads(record)["drift"] for record in records])
    assert found[0] == found[1]
    assert found[0][0]["outputs_compared"] == 1 << 14  # of 32,768
    for name, known_then in (("first", 0), ("second", 2)):
        assert (tmp_path / name / "log.rank0.txt").read_text().count(": read from ") == known_then
