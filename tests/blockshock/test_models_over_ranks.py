"""A model whose MLPs are a method's pairs is the dense model: logits, gradients, steps; what can't be is rejected."""

import json
import math
from itertools import combinations

import pytest
import torch
from hydra import compose, initialize_config_dir

from blockshock.cli.main import CONF
from blockshock.cli.resolvers import register
from blockshock.config import load_job, plain
from blockshock.jobs.correctness import failure
from blockshock.methods.pairs.sites import find_mlps
from blockshock.run_folder.naming import config_hash
from profiler.models import build
from tests.blockshock import model_tasks

MODELS = ["tiny_gpt2", "tiny_bert", "tiny_llama", "tiny_vit"]
METHODS = ["dense_tp_row", "dense_tp_column", "dtensor_row", "masked_split_dense", "block_shock"]
COMMON = ("phase=phase0_correctness", "hardware=cpu", "hardware.world_size=2", "model.dtype=fp64", "workload.dropout=0")


def config(*overrides: str) -> dict:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return load_job(plain(compose("config", overrides=[*COMMON, *overrides]))).config


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_logits_and_every_gradient_are_the_dense_models_in_float64(pools, model, method):
    found = pools(2).run(model_tasks.compare_with_dense, config(f"workload={model}", f"method={method}")).value
    assert found["same"]
    for name, error in zip(["logits", *found["names"]], found["errors"], strict=True):
        # transformers' RMSNorm computes in float32, whose rounding a difference in the last place of float64 may cross
        assert error <= (1e-7 if model == "tiny_llama" else 1e-12), name


def test_the_same_weights_come_out_each_time_whatever_became_of_those_before():
    job = load_job(config("workload=tiny_gpt2"))
    problem = job.workload.problem(job, torch.device("cpu"))
    trained = problem.weights()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(1)
    drawn = build("tiny_gpt2", 1, dtype=problem.dtype, seed=job.experiment.seed, dropout=0.0).model
    for made in (problem.weights(), problem.dense(problem.dtype)):
        assert all(torch.equal(*pair) for pair in zip(made.parameters(), drawn.parameters(), strict=True))


@pytest.mark.parametrize("mask", ["checkerboard", "random_2of4"])
def test_masks_that_need_all_of_the_hidden_layer_work_in_models_too(pools, mask):
    found = pools(2).run(model_tasks.compare_with_dense, config("workload=tiny_gpt2", f"mask={mask}")).value
    assert found["same"]
    assert max(found["errors"]) <= 1e-12


def test_one_rank_holds_both_halves(pools):
    given = config("workload=tiny_bert", "hardware.world_size=1")
    assert max(pools(1).run(model_tasks.compare_with_dense, given).value["errors"]) <= 1e-12


@pytest.mark.parametrize("method", ["dense_tp_row", "block_shock"])
@pytest.mark.parametrize("model", MODELS)
def test_a_mistake_would_be_seen_in_bf16_and_there_is_none(pools, model, method):
    given = config(f"workload={model}", f"method={method}", "model.dtype=bf16")
    verdicts = pools(2).run(model_tasks.judge, given).value
    assert set(verdicts) == {"Y", "dW_mlp", "dW_rest"}
    assert failure(verdicts) is None


@pytest.mark.parametrize(("method", "tolerance"), [("dense_tp_row", 1e-12), ("block_shock", 1e-12)])
def test_the_training_loss_is_the_dense_runs_and_replicas_stay_alike(pools, method, tolerance):
    given = config("workload=tiny_gpt2", f"method={method}")
    found = pools(2).run(model_tasks.train, given, 20).value
    ours, dense = found["losses"]
    assert ours == pytest.approx(dense, rel=1e-9)
    assert found["alike"]
    assert found["replicated"] > 10
    assert dense[-1] != dense[0]
    mlp = 2 * (2 * 32 * 128) * 8  # two MLPs of two weights, float64
    assert found["bytes"][1] - found["bytes"][0] == mlp / 2 + (2 * 128 * 8) / 2  # half of them, and of the hidden bias


def test_each_model_has_an_mlp_in_every_block():
    for name in MODELS:
        sites = find_mlps(build(name).model)
        assert len(sites) == 2
        assert {site.features for site in sites} == {32}
        assert {site.between.hidden for site in sites} == {128 if name == "tiny_gpt2" else 64}
    assert find_mlps(build("tiny_resnet152").model) == []


def test_a_models_mask_counts_where_the_method_builds_its_layers():
    ours = [config_hash(config("workload=tiny_gpt2", f"mask={mask}")) for mask in ("checkerboard", "random_2of4")]
    assert ours[0] != ours[1]
    step = config("phase=checkpoint", "method=keep_all", "workload=tiny_gpt2", "hardware.world_size=1")
    assert step["workload"]["layers"] is None
    before = {**step, "workload": {key: value for key, value in step["workload"].items() if key != "layers"}}
    assert config_hash(before) == config_hash(step)


GIVEN = ("hardware=cpu", "hardware.world_size=2", "workload=tiny_gpt2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "workload.dropout=null: the dense model that a method's is compared with would draw other masks"),
        (["workload=tiny_resnet152"], "workload=tiny_resnet152: has no MLP and no attention that a method could build"),
        (["workload.dropout=0", "workload.autocast=bf16"], "workload.autocast=bf16: layers have one dtype"),
        (["workload.dropout=0", "workload.layers=all"], "workload.layers=all: allowed: mlp, attention, mlp+attention"),
        (["workload.dropout=0", "hardware.world_size=3"], "hardware.world_size=3: block_shock needs 1 or an even"),
        (
            ["workload.dropout=0", "method=dense_tp_row", "hardware.world_size=3"],
            "workload=tiny_gpt2: its MLPs, of 32 and 128",
        ),
        (["workload.dropout=0", "phase=phase2_backward_input"], "its input, token ids or images, needs no gradient"),
        (["workload.dropout=0", "phase=phasex_drift"], "phase.mode=apply: a model is not applied to its own output"),
        (["phase=profile", "method=block_shock"], "method=block_shock: phase=profile is for a model's training step"),
        (
            ["phase=checkpoint", "method=dense_tp_row"],
            "method=dense_tp_row: phase=checkpoint is for a model's training",
        ),
        (["phase=checkpoint", "method=keep_all"], "hardware.world_size=2: a model's step runs on one rank"),
        (["phase=benchmark", "phase/part=law"], "workload=tiny_gpt2: phase=benchmark is for a linear layer"),
    ],
)
def test_models_that_cannot_be_are_rejected_in_one_line(cli, arguments, said):
    done = cli(*GIVEN, *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["phase=phase3_train_step", "workload=tiny_llama", "method=dtensor_row"],
        ["phase=phasex_drift", "phase.mode=train", "phase.steps=4"],
        ["phase=trace", "phase.trace_iters=1", "phase.stacks=none"],
    ],
)
def test_every_phase_of_layers_takes_a_model_over_two_ranks(cli, tmp_path, arguments):
    few = [] if "drift" in arguments[0] else ["phase.timed_iters=2"]
    done = cli(*GIVEN, "workload.dropout=0", *arguments, *few, "hydra.run.dir=run")
    assert (done.code, done.err) == (0, "")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {(record["N"], record["B"]) for record in records} == {(32, 64)}
    for record in records:
        assert all(verdict["passed"] for verdict in record.get("correctness", {}).values())
        assert record["layer"]["mlps"] == 2
    if "train_step" in arguments[0]:
        assert records[0]["training"]["loss"] == "cross_entropy"
        assert records[0]["training"]["last"] < records[0]["training"]["first"]
    if "drift" in arguments[0]:
        for record in records:
            assert record["drift"]["loss"] == pytest.approx(record["drift"]["exact_loss"], rel=1e-5)


def test_a_full_size_model_is_checked_without_memory_for_its_weights():
    found = config("workload=llama", "workload.seq_len=1024", "workload.batch_size=4", "workload.dropout=null")
    assert (found["model"]["N"], found["model"]["K"], found["model"]["B"]) == (2048, 2048, 4096)
    assert torch.get_default_device() == torch.device("cpu")


def of_seed(seed: int, method: str, ranks: int = 2) -> dict:
    given = f"experiment.seed={seed}", f"method={method}", f"hardware.world_size={ranks}"
    return config("workload=tiny_gpt2", "model.dtype=fp32", *given)


@pytest.fixture(scope="module")
def dense(pools):
    """By seed, the dense run and eight with sums in other orders: the same beside every method."""
    given = {seed: of_seed(seed, "block_shock", 1) for seed in (0, 1)}
    return {seed: pools(1).run(model_tasks.dense_losses, one, 60, 8).value for seed, one in given.items()}


@pytest.mark.slow
@pytest.mark.parametrize("method", ["dense_tp_row", "block_shock"])
def test_the_training_loss_is_as_near_to_a_dense_run_as_dense_runs_with_sums_in_other_orders(pools, dense, method):
    """Over two seeds together: of one seed, a run like the others is the farthest of all now and then."""
    ours, farthest = [], []
    for seed, runs in dense.items():
        found = pools(2).run(model_tasks.training_losses, of_seed(seed, method), 60).value
        farthest.append(max(math.dist(*two) for two in combinations(runs, 2)))
        assert 0 < farthest[-1] < 1e-4 * runs[0][0]  # the order of sums shows, and as rounding
        ours.append(math.dist(found, runs[0]))
    assert math.hypot(*ours) <= math.hypot(*farthest)
