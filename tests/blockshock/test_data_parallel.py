"""workload.data_parallel: a batch per rank, their mean gradient, one plan within each rank's budget."""

from __future__ import annotations

import json

import pytest

from blockshock.jobs.correctness import CheckFailed
from blockshock.phases.checkpoint import _require_no_more_collectives
from blockshock.run_folder.naming import config_hash, job_label
from tests.blockshock import data_parallel_tasks
from tests.blockshock.test_models_over_ranks import config

COMPILED = ["method=recompute_compiled", "method.execution=eager", "method.memory_budget=0.85"]
STEP = ["phase=checkpoint", "workload=tiny_gpt2", "workload.dropout=0", "phase.optimizer=sgd", "phase.lr=1.0"]
QUICK = ["phase=checkpoint", "phase.timed_iters=2", "phase.warmup_iters=1", "hydra.run.dir=run"]
RANKS = ["hardware=cpu", "hardware.world_size=2"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("ddp", COMPILED),
        ("fsdp2", COMPILED),
        ("ddp", ["method=torch_compile", "method.backend=aot_eager"]),
        ("ddp_buckets", ["method=torch_compile", "method.backend=aot_eager"]),
        ("fsdp2", ["method=torch_checkpoint"]),
    ],
)
def test_a_step_moves_the_parameters_by_the_mean_gradient_of_the_ranks_own_batches(pools, kind, method):
    job = config(*STEP, *method, f"workload.data_parallel={kind}")
    found = pools(2).run(data_parallel_tasks.one_step, job).value
    assert found["moved"] > 1e-3
    assert found["apart"] <= 1e-12 * found["moved"]
    assert found["batches_differ"]
    assert found["numbers_differ"]
    assert found["collectives"] > 0
    if kind == "fsdp2":
        assert found["share_held"] < 0.6
    else:
        assert found["share_held"] == 1


def records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("execution", ["eager", "inductor"])
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_a_record_says_of_each_rank_what_it_took_and_sent_and_how_far_its_gradients_are_off(
    cli, tmp_path, kind, execution
):
    options = ["method=recompute_compiled", f"method.execution={execution}", "method.memory_budget=0.9"]
    done = cli(*RANKS, *QUICK, "workload=tiny_gpt2", *options, f"workload.data_parallel={kind}")
    assert (done.code, done.err) == (0, "")
    [record] = records(tmp_path / "run")
    assert record["plan"]["recomputed"] > 0
    assert record["ranks"]["alike"]
    assert record["ranks"]["plans_alike"]
    assert record["ranks"]["compared"] == (28 if kind == "ddp" else 0)  # each rank holds its own shards
    assert record["proof"]["identical"] or execution == "inductor"
    assert record["proof"]["trains_alike"]
    first, second = record["each_rank"]
    for own in (first, second):
        assert 0 < own["collectives"] == own["reference_collectives"]
        assert own["gradient_error"] == first["gradient_error"] <= record["proof"]["rounding_limit"]
        assert own["predicted_peak_bytes"] <= own["budget_bytes"] == record["plan"]["budget_bytes"]
        assert 0 < own["step_p50_ms"] <= record["timings_ms"]["total_step"]["max_ms"]
    assert first["predicted_peak_bytes"] == second["predicted_peak_bytes"]
    for rank in range(2):
        [line] = [line for line in done.out.splitlines() if line.startswith(f"  rank {rank}")]
        assert "MiB   budget " in line
        assert line.endswith(f" {first['collectives']} collectives, unchanged {first['collectives']}")


@pytest.mark.slow
def test_batch_norm_has_the_statistics_of_each_ranks_own_batch(cli, tmp_path):
    done = cli(
        *RANKS,
        *QUICK,
        "workload=tiny_resnet152",
        "workload.data_parallel=ddp",
        "method=torch_compile",
        "method.backend=aot_eager",
    )
    assert (done.code, done.err) == (0, "")
    [record] = records(tmp_path / "run")
    assert record["ranks"]["alike"]
    assert record["proof"]["identical"]


def test_a_step_that_repeats_a_collective_fails():
    sent = {"collectives": 3, "reference_collectives": 3}
    _require_no_more_collectives([sent, sent])
    with pytest.raises(CheckFailed, match="rank 1: the step starts 4 collectives, and the unchanged one 3"):
        _require_no_more_collectives([sent, {**sent, "collectives": 4}])


def test_without_data_parallelism_it_is_the_measurement_that_it_was():
    job = config(*STEP, *COMPILED, "workload.data_parallel=ddp")
    alone = job | {"workload": job["workload"] | {"data_parallel": "none"}}
    before = job | {"workload": {key: value for key, value in job["workload"].items() if key != "data_parallel"}}
    assert config_hash(alone) == config_hash(before) != config_hash(job)
    assert "_fp64_ddp_P2_" in job_label(job)
    assert "ddp" not in job_label(alone)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*COMPILED, "workload.data_parallel=dpp"], "allowed: none, ddp, ddp_buckets, fsdp2; did you mean 'ddp'?"),
        (
            [*COMPILED, "workload.data_parallel=ddp", "hardware.world_size=1"],
            "hardware.world_size=1: workload.data_parallel=ddp is for several ranks; set it to 2 or more, or",
        ),
        (
            [*COMPILED, "workload.data_parallel=ddp_buckets"],
            "method=recompute_compiled needs the step as one graph, not one per bucket of gradients; use ddp or fsdp2",
        ),
        (
            ["method=keep_all", "workload.data_parallel=fsdp2"],
            "workload.data_parallel=fsdp2: method=keep_all traces a step of one rank; use recompute_compiled or",
        ),
        (
            [*COMPILED, "workload.data_parallel=ddp", "method@workload.layers_by=block_shock"],
            "workload.data_parallel=ddp: block_shock splits each layer over the ranks; leave workload.data_parallel=n",
        ),
        (
            ["phase=phase3_train_step", "method=dense_tp_row", "workload.data_parallel=ddp"],
            "workload.data_parallel=ddp: dense_tp_row splits each layer over the ranks; leave",
        ),
        (
            ["phase=largest_batch", *COMPILED, "workload.data_parallel=ddp"],
            "workload.data_parallel=ddp: phase=largest_batch runs a step of one rank; use phase=checkpoint",
        ),
        (COMPILED, "dense_tp_row, or train with workload.data_parallel=ddp or fsdp2"),
    ],
)
def test_what_cannot_train_on_several_ranks_is_rejected_in_one_line(cli, tmp_path, arguments, said):
    done = cli(*RANKS, "phase=checkpoint", "workload=tiny_gpt2", *arguments)
    assert (done.code, said in done.err, done.err.count("\n")) == (2, True, 1), done.err
    assert not list(tmp_path.rglob("status.json"))
