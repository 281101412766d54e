"""A model whose attention projections are a method's pairs is the dense model; heads that ranks can't share are
rejected."""

from itertools import cycle

import pytest

from blockshock.jobs.correctness import failure
from tests.blockshock import model_tasks
from tests.blockshock.test_models_over_ranks import GIVEN, METHODS, MODELS, config

BOTH = "workload.layers=mlp+attention"


def limit(model: str) -> float:
    # transformers' RMSNorm computes in float32, whose rounding a difference in the last place of float64 may cross
    return 1e-7 if model == "tiny_llama" else 1e-12


@pytest.mark.parametrize(("model", "method"), zip(cycle(MODELS), METHODS))  # with MLPs, too: every pair, below
def test_logits_and_every_gradient_are_the_dense_models_in_float64(pools, model, method):
    given = config(f"workload={model}", f"method={method}", "workload.layers=attention")
    found = pools(2).run(model_tasks.compare_with_dense, given).value
    assert found["same"]
    for name, error in zip(["logits", *found["names"]], found["errors"], strict=True):
        assert error <= limit(model), name


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("model", MODELS)
def test_three_steps_with_mlps_and_attention_over_ranks_are_the_dense_models(pools, model, method):
    found = pools(2).run(model_tasks.three_steps, config(f"workload={model}", f"method={method}", BOTH)).value
    assert found["moved"] > 0.1  # the steps did something
    assert max(found["errors"]) <= limit(model)


@pytest.mark.parametrize("mask", ["checkerboard", "random_2of4"])
@pytest.mark.parametrize("model", ["tiny_gpt2", "tiny_llama"])
def test_masks_that_need_all_heads_on_every_rank_work_too(pools, model, mask):
    found = pools(2).run(model_tasks.three_steps, config(f"workload={model}", f"mask={mask}", BOTH)).value
    assert max(found["errors"]) <= limit(model)


@pytest.mark.parametrize("method", ["dense_tp_row", "block_shock"])
def test_four_ranks_have_a_head_each(pools, method):
    given = config("workload=tiny_vit", "hardware.world_size=4", f"method={method}", BOTH)
    assert max(pools(4).run(model_tasks.three_steps, given).value["errors"]) <= limit("tiny_vit")


def test_one_rank_holds_both_halves(pools):
    given = config("workload=tiny_bert", "hardware.world_size=1", BOTH)
    assert max(pools(1).run(model_tasks.compare_with_dense, given).value["errors"]) <= limit("tiny_bert")


@pytest.mark.parametrize("method", ["dense_tp_row", "block_shock"])
def test_the_phases_own_check_judges_the_projections_apart(pools, method):
    given = config("workload=tiny_llama", f"method={method}", "model.dtype=bf16", BOTH)
    verdicts = pools(2).run(model_tasks.judge, given).value
    assert set(verdicts) == {"Y", "dW_mlp", "dW_attention", "dW_rest"}
    assert failure(verdicts) is None


# docs/method.md: what one pair sends in each pass. Two blocks, with an MLP and attention each: four pairs.
ONE, TWO = {"all_reduce": 4}, {"all_reduce": 8}
HALVES = {"forward": {"reduce_scatter": 4, "all_reduce": 4}, "backward": {"all_gather": 8}}
SENT = {
    ("dense_tp_row", "complement_1100_0011"): {"forward": ONE, "backward": ONE},
    ("dense_tp_column", "complement_1100_0011"): {"forward": ONE, "backward": ONE},
    ("dtensor_row", "complement_1100_0011"): {"forward": ONE, "backward": ONE},
    ("dtensor_column", "complement_1100_0011"): {"forward": ONE, "backward": ONE},
    ("masked_split_dense", "complement_1100_0011"): HALVES,
    ("block_shock", "complement_1010_0101"): HALVES,
    ("block_shock", "checkerboard"): {"forward": TWO, "backward": TWO},
    ("masked_split_dense", "random_2of4"): {"forward": TWO, "backward": TWO},
}


@pytest.mark.parametrize(("method", "mask"), SENT)
def test_a_trace_has_the_collectives_that_the_derivation_and_the_record_say(pools, method, mask):
    given = config("workload=tiny_llama", f"method={method}", f"mask={mask}", BOTH)
    found = pools(2).run(model_tasks.traced_collectives, given).value
    assert found["seen"] == SENT[method, mask]
    assert found["said"] == found["seen"]


def test_halves_on_one_rank_send_nothing(pools):
    given = config("workload=tiny_llama", "hardware.world_size=1", BOTH)
    found = pools(1).run(model_tasks.traced_collectives, given).value
    assert found["seen"] == found["said"] == {"forward": {}, "backward": {}}


def test_shards_of_halves_on_four_ranks_are_counted_as_well(pools):
    given = config("workload=tiny_vit", "hardware.world_size=4", "mask=random_2of4", "method.shard=outputs", BOTH)
    found = pools(4).run(model_tasks.traced_collectives, given).value
    assert found["said"] == found["seen"]
    assert found["seen"]["forward"] == {"all_reduce": 8, "all_gather": 8}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "method", "model"),
    [("block_shock", "keep_all", "tiny_llama"), ("dense_tp_row", "recompute_compiled", "tiny_gpt2")],
)
def test_a_whole_step_with_attention_over_ranks_is_the_dense_models(pools, layers, method, model):
    options = ["method.execution=eager", "method.memory_budget=0.9"] if method == "recompute_compiled" else []
    by = f"method@workload.layers_by={layers}"
    given = ["phase=checkpoint", f"workload={model}", f"method={method}", by, BOTH, *options]
    found = pools(2).run(model_tasks.step_as_dense, config(*given, "phase.optimizer=sgd", "phase.lr=1.0")).value
    assert found["moved"] > 1e-3
    assert max(found["errors"].values()) <= limit(model), found["errors"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["method=dense_tp_row", "hardware.world_size=4", "workload=tiny_llama"],
            "attention has 4 heads in 2 groups, which 4 ranks can't share; use workload.layers=mlp, or "
            "hardware.world_size=2",
        ),
        (
            ["method=dense_tp_column", "hardware.world_size=8", "workload=gpt2"],
            "attention has 12 heads, which 8 ranks can't share; use workload.layers=mlp, or hardware.world_size=2 or 3",
        ),
        (
            ["hardware.world_size=8", "workload=tiny_vit"],
            "workload.layers=mlp+attention: attention has 4 heads, which 8 ranks can't share",
        ),
        (["workload.layers=atention"], "allowed: mlp, attention, mlp+attention; did you mean 'attention'?"),
        (["phase=profile", "method=keep_all"], "workload.layers=mlp+attention: method=keep_all is for the whole step"),
    ],
)
def test_attention_that_ranks_cannot_share_is_rejected_in_one_line(cli, arguments, said):
    done = cli(*GIVEN, "workload.dropout=0", BOTH, *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1
