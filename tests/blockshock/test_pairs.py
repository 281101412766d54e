"""The pair of layers of an MLP is the dense MLP, however it is split, and sends what docs/method.md says."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockshock.jobs.correctness import check, failure
from blockshock.methods.pairs.layers import LayersPair
from blockshock.methods.pairs.mlp import ACTIVATIONS, DenseMlp, Mlp, MlpProblem
from tests.blockshock import pair_tasks
from tests.blockshock.rank_tasks import problem_of

DENSE = ["dense_tp_row", "dense_tp_column", "dtensor_row", "dtensor_column"]
HALVES = ["block_shock", "masked_split_dense"]
MASKS = ["complement_1100_0011", "complement_1010_0101", "complement_1001_0110", "checkerboard", "random_2of4"]
SPEC = {"mask": MASKS[0], "N": 32, "K": 16, "B": 6, "hidden": 48, "seed": 4, "dtype": "float64"}


@st.composite
def pairs(draw):
    ranks = draw(st.sampled_from([1, 2, 4]))
    method = draw(st.sampled_from(["dense_single", *HALVES] if ranks == 1 else [*DENSE, *HALVES]))
    mask = draw(st.sampled_from(MASKS))
    pairings = ["auto", "layers"] + (["reduce_scatter"] if method in HALVES and ranks > 1 and mask in MASKS[:3] else [])
    options = {}
    if method in HALVES:
        options["shard"] = draw(st.sampled_from(["inputs"] if "reduce_scatter" in pairings else ["inputs", "outputs"]))
    if method == "block_shock":
        options |= {"weights": draw(st.sampled_from(["packed", "masked"]))}
    size = st.integers(1, 3)
    return ranks, {
        "method": method, "options": options, "mask": mask, "pairing": draw(st.sampled_from(pairings)),
        "N": 8 * draw(size), "K": 8 * draw(size), "hidden": 16 * draw(size), "B": draw(st.integers(1, 9)),
        "activation": draw(st.sampled_from(sorted(ACTIVATIONS))), "gated": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**31)), "dtype": "float64",
    }  # fmt: skip


@given(pairs())
@settings(max_examples=40)
def test_every_pairing_is_the_dense_mlp_in_float64(pools, pair):
    ranks, spec = pair
    outcome = pools(ranks).run(pair_tasks.compare_with_dense, spec)
    assert outcome.status == "ok", outcome.reason
    errors, same_weights, _ = outcome.value
    assert same_weights
    assert max(errors) <= 1e-12


@pytest.mark.parametrize(
    ("method", "mask", "pairing"),
    [
        *((method, MASKS[0], "column_row") for method in DENSE),
        *((method, mask, "reduce_scatter") for method in HALVES for mask in MASKS[:3]),
        *((method, mask, "layers") for method in HALVES for mask in MASKS[3:]),
    ],
)
def test_auto_takes_the_pairing_that_sends_least(pools, method, mask, pairing):
    outcome = pools(2).run(pair_tasks.compare_with_dense, SPEC | {"method": method, "mask": mask})
    assert outcome.status == "ok", outcome.reason
    assert outcome.value[2] == pairing


TRAINED = [
    *((2, "dense_tp_row", "auto", {}), (2, "dense_tp_row", "layers", {}), (2, "dtensor_column", "auto", {})),
    *((2, "masked_split_dense", "auto", {}), (2, "block_shock", "auto", {}), (4, "block_shock", "auto", {})),
    *((2, "block_shock", "layers", {}), (2, "block_shock", "auto", {"weights": "masked"})),
]


@pytest.mark.parametrize(("ranks", "method", "pairing", "options"), TRAINED)
def test_ten_adamw_steps_of_a_pair_equal_ten_of_the_dense_mlp(pools, ranks, method, pairing, options):
    spec = SPEC | {"method": method, "pairing": pairing, "options": options, "gated": True, "activation": "silu"}
    difference, moved = pools(ranks).run(pair_tasks.train_beside_dense, spec).value
    assert moved > 0.1  # the steps did something
    assert difference <= 1e-12


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.parametrize(
    ("method", "pairing"), [("dense_tp_row", "auto"), ("block_shock", "auto"), ("block_shock", "layers")]
)
def test_in_low_precision_the_error_is_what_the_sums_over_ranks_explain(pools, method, pairing, dtype):
    spec = SPEC | {"N": 64, "K": 64, "hidden": 128, "B": 64, "dtype": dtype, "method": method, "pairing": pairing}
    verdicts = pools(2).run(pair_tasks.judge, spec).value
    assert set(verdicts) == {"Y", "dX", "dW_up", "dW_down"}
    assert failure(verdicts) is None
    assert [verdict["roundings"] for verdict in verdicts.values()] == pytest.approx([2**0.5] * 4)


B, N, K, F = 6, 32, 16, 48
REDUCE, GATHER, SCATTER = "all_reduce", "gather", "reduce_scatter"
# docs/method.md: what each pairing sends, in elements of the whole (summed or gathered) matrix
SENT = {
    ("dense_tp_row", "auto"): ([(REDUCE, B * N)], [(REDUCE, B * K)]),
    ("dense_tp_row", "layers"): ([(REDUCE, B * F), (REDUCE, B * N)], [(REDUCE, B * F), (REDUCE, B * K)]),
    ("dense_tp_column", "layers"): ([(GATHER, B * F), (GATHER, B * N)], [(REDUCE, B * F), (REDUCE, B * K)]),
    ("block_shock", "auto"): ([(SCATTER, B * F), (REDUCE, B * N)], [(GATHER, B * F), (GATHER, B * K)]),
    ("block_shock", "layers"): ([(REDUCE, B * F), (REDUCE, B * N)], [(REDUCE, B * F), (REDUCE, B * K)]),
}
ON_THE_LINK = {REDUCE: 2, GATHER: 1, SCATTER: 1}  # (P-1)/P of the matrix, once or twice: every rank sends that


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("method", "pairing"), SENT)
def test_a_pair_sends_what_the_derivation_says(pools, method, pairing, gated):
    found = pools(2).run(pair_tasks.collectives, SPEC | {"method": method, "pairing": pairing, "gated": gated}).value
    expected = SENT[method, pairing]
    for side, matrices in zip(("forward", "backward"), expected, strict=True):
        # a gate doubles what is sent before φ, and what comes back to there
        doubled = [
            (name, size * 2)
            if gated and size == B * F and _before_the_activation(side, place, method, pairing)
            else (name, size)
            for place, (name, size) in enumerate(matrices)
        ]
        assert found["passes"][side] == doubled
        if pairing == "auto":
            link = sum(ON_THE_LINK[name] * size for name, size in doubled) / 2 * 8  # P = 2, float64
            assert found["link"]["forward" if side == "forward" else "backward_input"] == link


def _before_the_activation(side, place, method, pairing):
    """Whether a B x F matrix is the first layer's (2F wide where gated), not the second's input."""
    return side == "forward" or pairing == "auto"


@pytest.mark.parametrize("method", ["dtensor_row", "dtensor_column"])
def test_pytorchs_own_pair_has_one_collective_each_way(pools, method):
    assert pools(2).run(pair_tasks.collectives, SPEC | {"method": method}).value["counts"] == [1, 1]


@pytest.mark.parametrize("method", ["dense_tp_row", "block_shock", "masked_split_dense"])
def test_two_ranks_share_the_dense_work_equally(pools, method):
    flops = pools(2).run(pair_tasks.collectives, SPEC | {"method": method}).value["flops"]
    assert flops == dict.fromkeys(("forward", "backward_input", "backward_weight"), B * K * F + B * F * N)


def test_row_and_column_parallel_methods_have_the_same_pair(pools):
    specs = [SPEC | {"method": method} for method in ("dense_tp_row", "dense_tp_column")]
    assert pools(2).run(pair_tasks.same_bits, specs).value


@given(st.integers(1, 4), st.integers(1, 5), st.booleans())
def test_hidden_rows_are_dealt_out_and_joined_again(parts, each, gated):
    mlp = Mlp(parts * each, gated=gated)
    first = torch.arange(mlp.rows * 3).view(mlp.rows, 3)
    shares = [mlp.rows_of(first, part, parts) for part in range(parts)]
    assert torch.equal(mlp.join_rows(shares), first)
    x = torch.randn(5, mlp.rows)
    columns = [mlp.rows_of(x.t(), part, parts).t() for part in range(parts)]
    torch.testing.assert_close(torch.cat([mlp.activate(share) for share in columns], dim=1), mlp.activate(x))


class ActivatesTwice(LayersPair):
    def first(self, x):
        return torch.relu(super().first(x))


class ForgetsADownWeight(LayersPair):
    def forward(self, x):
        return (
            self.activate(self.first(x)) @ torch.cat([self.down.weight[:, 1:], self.down.weight[:, :1] * 0], dim=1).t()
        )


class WrongUpGradient(LayersPair):
    def forward(self, x):
        self.up.weight.register_hook(lambda grad: grad * 1.01)
        return super().forward(x)


@pytest.mark.parametrize(
    ("wrong", "quantity"), [(ActivatesTwice, "Y"), (ForgetsADownWeight, "dW_down"), (WrongUpGradient, "dW_up")]
)
def test_a_small_mistake_in_a_pair_is_found(wrong, quantity):
    layer = problem_of(SPEC | {"dtype": "bfloat16", "N": 64, "K": 64, "B": 32})
    problem = MlpProblem(**vars(layer), mlp=Mlp(128), pairing=wrong)
    pair = problem.build(pair_tasks.method_yaml("dense_single"), problem.weights())
    verdicts = check(problem, pair)
    assert not verdicts[quantity]["passed"]


def test_weights_leave_the_output_of_order_one():
    layer = problem_of(SPEC | {"N": 128, "K": 128, "B": 64})
    for gated in (False, True):
        mlp = Mlp(512, gated=gated)
        problem = MlpProblem(**vars(layer), mlp=mlp, pairing=LayersPair)
        y = DenseMlp(mlp, problem.weights())(problem.inputs()).detach()
        assert 0.3 < float(y.square().mean().sqrt()) < 3


ON_TWO = ("workload=mlp_block", "hardware=cpu", "hardware.world_size=2", "model.N=32", "model.B=8")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["workload.hidden=50"], "workload.hidden=50: block_shock on 2 ranks needs a multiple of 4 (the MLP's first"),
        (["method=dense_tp_row", "workload.hidden=51"], "workload.hidden=51: dense_tp_row on 2 ranks needs a multiple"),
        (["workload.pairing=column_row"], "workload.pairing=column_row: is dense tensor parallelism's"),
        (["workload.pairing=reduce_scatter", "mask=checkerboard"], "needs a mask whose rows keep the same columns"),
        (["workload.pairing=reduce_scatter", "method=dense_tp_row"], "is for complementary halves; use layers"),
        (["workload.pairing=both"], "workload.pairing=both: allowed: auto, column_row, reduce_scatter, layers"),
        (["workload.activation=tanh"], "workload.activation=tanh: allowed: gelu, gelu_tanh, relu, silu"),
        (["method=dense_single"], "hardware.world_size=2: dense_single runs on one rank"),
        (["phase=profile"], "workload=mlp_block: phase=profile is for a model's training step"),
        (["phase=benchmark", "phase/part=law"], "workload=mlp_block: phase=benchmark is for a linear layer"),
        (["model.K=30"], "model.K=30: block_shock on 2 ranks needs a multiple of 4"),
    ],
)
def test_pairs_that_cannot_be_are_rejected_in_one_line(cli, arguments, said):
    done = cli(*ON_TWO, *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["phase=phase1_forward", "method=dense_tp_row"],
        ["phase=phase2_backward_input", "method=masked_split_dense"],
        ["phase=phase3_train_step", "mask=random_2of4"],
        ["phase=phasex_drift", "phase.mode=train", "phase.steps=5", "phase.optimizer=sgd"],
        ["phase=trace", "phase.trace_iters=1", "phase.stacks=none"],
        ["phase=benchmark", "phase/part=train", "phase.rounds=1"],
    ],
)
def test_every_phase_takes_a_pair_over_two_ranks(cli, tmp_path, arguments):
    few = [] if "drift" in arguments[0] else ["phase.timed_iters=2"]
    done = cli(*ON_TWO, *arguments, *few, "hydra.run.dir=run")
    assert (done.code, done.err) == (0, "")
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert {record["workload"] for record in records} == {"mlp_block"}
    for record in records:
        assert all(verdict["passed"] for verdict in record.get("correctness", {}).values())
    if "train_step" in arguments[0]:
        assert records[0]["training"]["last"] < records[0]["training"]["first"]
        assert records[0]["layer"]["pairing"] == "layers"  # of a random mask


def test_the_preset_compares_turns_parts_drift_and_pairings(cli):
    done = cli("-m", "+sweep=mlp_block", "hardware=cpu", "hydra.launcher.dry_run=true")
    assert done.code == 0, done.err
    listed = done.out + done.err
    assert listed.count("mlp_block/benchmark_train") == 2
    assert listed.count("mlp_block/phasex_drift") == 6
