"""A whole training step with layers over two ranks: the dense step's results, one plan, no collective sent twice."""

import json

import pytest

from tests.blockshock import model_tasks
from tests.blockshock.test_models_over_ranks import config

LAYERS = ["dense_tp_row", "dense_tp_column", "masked_split_dense", "block_shock"]


def given(layers: str, method: str, *more: str, model: str = "tiny_gpt2") -> list[str]:
    of_step = "workload.dropout=0", "phase.optimizer=sgd", "phase.lr=1.0"
    return [
        "phase=checkpoint",
        f"workload={model}",
        f"method={method}",
        f"method@workload.layers_by={layers}",
        *of_step,
        *more,
    ]


CASES = [
    *((layers, "keep_all", "tiny_gpt2") for layers in LAYERS),
    ("block_shock", "recompute_greedy", "tiny_gpt2"),
    *((layers, "recompute_compiled", "tiny_gpt2") for layers in ["dtensor_row", "block_shock"]),
    ("block_shock", "keep_all", "tiny_llama"),
    ("dense_tp_row", "recompute_compiled", "tiny_vit"),
    ("masked_split_dense", "torch_checkpoint", "tiny_bert"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("layers", "method", "model"), CASES)
def test_a_step_leaves_the_parameters_that_the_dense_models_eager_step_leaves_in_float64(pools, layers, method, model):
    options = ["method.execution=eager", "method.memory_budget=0.9"] if method == "recompute_compiled" else []
    options += ["method.memory_budget=0.7"] if method == "recompute_greedy" else []
    found = pools(2).run(model_tasks.step_as_dense, config(*given(layers, method, *options, model=model))).value
    assert found["moved"] > 1e-3  # the step did something
    # transformers' RMSNorm computes in float32, whose rounding a difference in the last place of float64 may cross
    assert max(found["errors"].values()) <= (1e-7 if model == "tiny_llama" else 1e-12), found["errors"]


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["checkerboard", "random_2of4"])
def test_masks_whose_pairs_sum_each_layer_are_traced_too(pools, mask):
    found = pools(2).run(model_tasks.step_as_dense, config(*given("block_shock", "keep_all", f"mask={mask}"))).value
    assert max(found["errors"].values()) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("method", ["recompute_greedy", "recompute_optimal", "recompute_compiled"])
def test_ranks_recompute_by_one_plan_and_send_nothing_twice(cli, tmp_path, method):
    options = ["method.execution=eager"] if method == "recompute_compiled" else []
    arguments = [
        *RUN,
        "phase=checkpoint",
        "phase.timed_iters=2",
        f"method={method}",
        "method@workload.layers_by=block_shock",
    ]
    done = cli(*arguments, *options, "hydra.run.dir=run")
    assert (done.code, done.err) == (0, "")
    [record] = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record["layers"] == "block_shock"
    assert record["plan"]["recomputed"] > 0
    assert record["ranks"] == {
        "alike": True, "compared": 20, "differing": [], "plans_alike": True, "proof_failed_on": []
    }  # fmt: skip
    assert record["proof"]["identical"]
    if method != "recompute_compiled":
        decisions = (tmp_path / "run" / "ac_decisions_bs4.csv").read_text()
        again = [line.split(",")[0] for line in decisions.splitlines() if "RECOMPUTE" in line]
        assert again
        assert not [name for name in again if name.startswith(("all_reduce", "wait_tensor", "reduce_scatter"))]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "method", "options"),
    [
        ("block_shock", "recompute_compiled", ["method.execution=inductor", "method.memory_budget=0.98"]),
        ("dense_tp_row", "torch_compile", ["method.backend=inductor"]),
    ],
)
def test_fused_kernels_over_ranks_leave_the_dense_models_parameters_by_one_plan(pools, layers, method, options):
    job = config(*given(layers, method, *options, "workload.layers=mlp+attention", model="tiny_vit"))
    one_layer = method == "torch_compile"  # one that is planned would need more than it predicted, and compile again
    task = model_tasks.step_of_one_layer_as_dense if one_layer else model_tasks.step_as_dense
    found = pools(2).run(task, job).value
    assert found["moved"] > 1e-3
    assert max(found["errors"].values()) <= 1e-12, found["errors"]
    assert found["ranks"]["alike"]
    if method == "recompute_compiled":
        assert found["ranks"]["plans_alike"]
        assert found["recomputed"] > 0


def test_ranks_that_differ_are_told_apart(pools):
    found = pools(2).run(model_tasks.tell_apart, config(*given("dense_tp_row", "keep_all"))).value
    assert found["same"]["alike"]
    assert found["moved"]["differing"] == ["transformer.wte.weight"]
    assert found["of_a_layer"]["alike"]  # each rank's part of a layer is its own
    assert found["failed"]["proof_failed_on"] == [1]


RUN = ("hardware=cpu", "hardware.world_size=2", "workload=tiny_gpt2", "workload.dropout=0")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "module"),
    [
        (["method=block_shock"], "mlp"),
        (["method=keep_all", "method@workload.layers_by=block_shock"], "transformer.h.0.mlp.c_fc.pair"),
    ],
)
def test_a_trace_says_which_modules_communication_is_exposed(cli, tmp_path, method, module):
    import pandas as pd

    few = ["phase.trace_iters=2", "phase.stacks=none", "phase.timed_iters=2"]
    done = cli(*RUN, "phase=trace", *method, *few, "hydra.run.dir=run")
    assert (done.code, done.err) == (0, "")
    [record] = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    found = record["trace"]["exposed_communication_ms_of"]
    assert any(module in name for name in found)
    assert all(ms > 0 for ms in found.values())
    for rank in (0, 1):
        modules = pd.read_csv(tmp_path / "run" / f"modules.rank{rank}.csv")
        steps = pd.read_csv(tmp_path / "run" / f"steps.rank{rank}.csv").set_index("step")
        own = modules.groupby("step")["exposed_communication_self_ns"].sum()
        assert (own == steps["exposed_communication_ns"]).all()  # modules add up to the step
        assert (modules["exposed_communication_self_ns"] <= modules["communication_self_ns"]).all()


@pytest.mark.slow
def test_a_profile_over_ranks_is_signed_off_on_every_rank(cli, tmp_path):
    done = cli(
        *RUN, "phase=profile", "phase.timed_iters=2", "method@workload.layers_by=dense_tp_row", "hydra.run.dir=run"
    )
    assert (done.code, done.err) == (0, "")
    [record] = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert record["profile"]["matches_eager"]["differing"] == []
    assert all(check["passed"] for check in record["profile"]["sign_off"])
    assert record["ranks"]["alike"]
    nodes = (tmp_path / "run" / "profiler_stats_node_stats.csv").read_text()
    assert "_c10d_functional.all_reduce" in nodes


@pytest.mark.slow
def test_models_that_no_method_of_layers_builds_are_traced_as_well(cli):
    few = ["phase.trace_iters=1", "phase.stacks=none", "phase.timed_iters=1", "hydra.run.dir=run"]
    done = cli("hardware=cpu", "phase=trace", "method=keep_all", "workload=tiny_resnet152", *few)
    assert (done.code, done.err) == (0, "")


STEP = ["phase=checkpoint", "method=keep_all"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*STEP, "method@workload.layers_by=keep_all"], "method@workload.layers_by=keep_all: builds no layers; use"),
        (
            [*STEP, "method@workload.layers_by=dtensor_row"],
            "method@workload.layers_by=dtensor_row: method=keep_all can't trace a DTensor; use dense_tp_row, or",
        ),
        (
            [*STEP, "method@workload.layers_by=block_shock", "workload.layers_by.kernel=triton"],
            "workload.layers_by.kernel=triton: is no operator of a graph; use auto or gather",
        ),
        (
            [*STEP, "method@workload.layers_by=block_shock", "workload.layers_by.weights=masked"],
            "workload.layers_by.weights=masked: are compressed between steps; use packed",
        ),
        (
            [*STEP, "method@workload.layers_by=dense_tp_row", "workload.layers_by.overlap_chunks=2"],
            "workload.layers_by.overlap_chunks=2: chunks",
        ),
        (
            [*STEP, "method@workload.layers_by=block_shock", "mask=window_4of6"],
            "mask=window_4of6: a model's weights are not pruned",
        ),
        (
            ["phase=phase3_train_step", "method@workload.layers_by=block_shock"],
            "method@workload.layers_by=block_shock: method=block_shock builds the layers itself; leave it out",
        ),
        (
            ["phase=largest_batch", "method=recompute_compiled", "method@workload.layers_by=dense_tp_row"],
            "method@workload.layers_by=dense_tp_row: phase=largest_batch is for one rank",
        ),
        (STEP, "a model's step runs on one rank; set it to 1, or let a method build its layers over ranks"),
    ],
)
def test_steps_over_ranks_that_cannot_be_are_rejected_in_one_line(cli, arguments, said):
    done = cli(*RUN, *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
