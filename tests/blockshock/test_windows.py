"""Pruned weights as overlapping 2:4 windows: every kept weight once, and the pruned dense layer's results."""

import itertools
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockshock.errors import ConfigError
from blockshock.jobs.correctness import failure
from blockshock.masks.window import WindowMask, take_window
from tests.blockshock import pair_tasks, window_tasks
from tests.blockshock.rank_tasks import problem_of

MASKS = {"window_4of6": 6, "window_6of8": 8}
RANKS = {"window_4of6": (1, 2, 4), "window_6of8": (1, 3)}


@pytest.mark.parametrize("block", MASKS.values())
def test_every_choice_of_kept_columns_is_dealt_out_as_two_of_four_each_once(block):
    choices = list(itertools.combinations(range(block), block - 2))
    weight = torch.full((len(choices), block), 0.1)
    for row, kept in enumerate(choices):
        weight[row, list(kept)] = 1.0
    mask = WindowMask("mine", block)
    assert torch.equal(mask.keep(weight), weight == 1)
    times = torch.zeros(len(choices), block)
    for window, part in enumerate(mask.split(weight)):
        assert bool((part.view(len(choices), 4).sum(1) == 2).all())
        times[:, 2 * window : 2 * window + 4] += part
    assert torch.equal(times, (weight == 1).float())


@given(st.sampled_from(sorted(MASKS)), st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**31))
def test_pruning_keeps_the_largest_of_each_block_and_is_the_same_when_repeated(name, rows, blocks, seed):
    mask = WindowMask(name, MASKS[name])
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randint(-3, 4, (rows, blocks * mask.block), generator=generator).float()  # ties and zeros
    kept = mask.keep(weight)
    for row, own in zip(weight.view(-1, mask.block).abs().tolist(), kept.view(-1, mask.block).tolist(), strict=True):
        assert sum(own) == mask.block - 2
        inside = [value for value, is_kept in zip(row, own, strict=True) if is_kept]
        outside = [value for value, is_kept in zip(row, own, strict=True) if not is_kept]
        assert min(inside) >= max(outside)
    assert torch.equal(mask.keep(mask.prune(weight)), kept)
    windows = [take_window(weight, window, mask.block) for window in range(mask.windows)]
    assert windows[0][:, :4].tolist() == weight[:, :4].tolist()
    assert windows[-1][:, -4:].tolist() == weight[:, -4:].tolist()


@st.composite
def layers(draw):
    mask = draw(st.sampled_from(sorted(MASKS)))
    ranks = draw(st.sampled_from(RANKS[mask]))
    return ranks, {
        "mask": mask, "N": draw(st.integers(1, 24)), "K": 2 * MASKS[mask] * draw(st.integers(1, 4)),
        "B": draw(st.integers(1, 9)), "seed": draw(st.integers(0, 2**31)), "dtype": "float64",
        "options": {"kernel": draw(st.sampled_from(["auto", "masked_dense", "reference"]))},
    }  # fmt: skip


@given(layers())
@settings(max_examples=50)
def test_windows_are_the_pruned_dense_layer_in_float64(pools, layer):
    ranks, spec = layer
    outcome = pools(ranks).run(window_tasks.compare_with_pruned, spec)
    assert outcome.status == "ok", outcome.reason
    found = outcome.value
    assert max(found["errors"]) <= 1e-12
    assert found["same_weight"]
    assert found["dx_where_x_is_read"]
    assert found["outside"] == 0


@pytest.mark.parametrize(("mask", "ranks"), [("window_4of6", 2), ("window_6of8", 3)])
def test_a_rank_holds_and_multiplies_its_window_alone(pools, mask, ranks):
    block = MASKS[mask]
    spec = {"mask": mask, "N": 16, "K": 4 * block, "B": 8, "seed": 0, "dtype": "float64"}
    found = pools(ranks).run(window_tasks.compare_with_pruned, spec).value
    assert found["values"] == 16 * 4 * 2  # two of a block's columns
    assert found["flops"] == 2 * 8 * found["values"]
    metadata = found["values"] * 2 / 8
    assert found["memory"] == 8 * (8 * 4 * 4 + found["values"] + 8 * 16) + metadata  # X's window, weight, Y


@pytest.mark.parametrize(("mask", "ranks"), [("window_4of6", 1), ("window_4of6", 2), ("window_6of8", 3)])
def test_ten_adamw_steps_of_windows_equal_ten_of_the_pruned_layer(pools, mask, ranks):
    spec = {"mask": mask, "N": 32, "K": 48, "B": 12, "seed": 11, "dtype": "float64"}
    difference, moved = pools(ranks).run(window_tasks.train_beside_pruned, spec).value
    assert moved > 0.1
    assert difference <= 1e-12


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    ("mask", "ranks"), [("window_4of6", 1), ("window_4of6", 2), ("window_6of8", 1), ("window_6of8", 3)]
)
@pytest.mark.parametrize("method", ["block_shock", "dense_tp_row", "dense_tp_column"])
def test_windows_and_dense_methods_pass_the_check_on_the_same_pruned_weight(pools, method, mask, ranks, dtype):
    if ranks == 1 and method != "block_shock":
        pytest.skip("tensor parallelism needs two ranks")
    spec = {"mask": mask, "method": method, "N": 96, "K": 96, "B": 32, "seed": 1, "dtype": dtype}
    verdicts = pools(ranks).run(window_tasks.judge, spec).value
    assert failure(verdicts) is None
    assert set(verdicts) == {"Y", "dX", "dW"}


@pytest.mark.parametrize(("mask", "ranks"), [("window_4of6", 2), ("window_6of8", 3), ("window_4of6", 1)])
def test_an_mlps_pair_of_windows_is_the_pruned_mlp(pools, mask, ranks):
    spec = {
        "method": "block_shock",
        "mask": mask,
        "N": 16,
        "K": 48,
        "hidden": 96,
        "B": 8,
        "seed": 2,
        "dtype": "float64",
    }
    verdicts = pools(ranks).run(pair_tasks.judge, spec).value
    assert failure(verdicts) is None
    assert set(verdicts) == {"Y", "dX", "dW_up", "dW_down"}


@pytest.mark.parametrize("mask", MASKS)
def test_the_energy_kept_is_that_of_all_but_the_two_smallest(mask):
    spec = {"mask": mask, "N": 256, "K": 960, "B": 1, "seed": 3, "dtype": "float64"}
    found = problem_of(spec).energy_kept()
    full = problem_of(spec | {"mask": "random_2of4"}).weight()  # the same stream
    squares = np.sort(full.numpy().reshape(-1, MASKS[mask]) ** 2, axis=1)
    assert found == pytest.approx(squares[:, 2:].sum() / squares.sum(), rel=1e-12)
    assert problem_of(spec | {"mask": "random_2of4"}).energy_kept() is None


def test_other_blocks_are_rejected():
    with pytest.raises(ConfigError, match=r"6 \(two windows\) or 8"):
        WindowMask("mine", 12)


GIVEN = ("hardware=cpu", "mask=window_4of6", "model.N=32", "model.K=48", "model.B=8", "hardware.world_size=2")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["model.K=64"], "model.K=64: mask=window_4of6 on 2 ranks needs a multiple of 6, such as 60"),
        (["hardware.world_size=3"], "hardware.world_size=3: mask=window_4of6 has 2 windows, one per rank"),
        (["mask=window_6of8"], "hardware.world_size=2: mask=window_6of8 has 3 windows, one per rank"),
        (["method=masked_split_dense"], "mask=window_4of6: prunes, and masked_split_dense needs complementary halves"),
        (["method.weights=masked"], "method.weights=masked: windows are packed"),
        (["method.kernel=gather"], "method.kernel=gather: needs a mask made of dense blocks"),
        (["mask.block=12"], "mask.block=12: columns of a block: 6 (two windows) or 8 (three)"),
        (
            ["phase=phasex_drift", "phase.mode=train"],
            "phase.mode=train: dense methods let what mask=window_4of6",
        ),
        (
            ["workload=mlp_block", "workload.hidden=100"],
            "workload.hidden=100: mask=window_4of6 on 2 ranks",
        ),
        (["workload=mlp_block", "workload.pairing=reduce_scatter"], "needs a mask whose rows keep the same columns"),
        (["workload=tiny_llama"], "mask=window_4of6: a model's weights are not pruned"),
        (["phase=benchmark", "phase/part=law"], "mask=window_4of6: prunes, and part law needs complementary halves"),
        (["method=dense_tp_row", "model.K=49"], "model.K=49"),
    ],
)
def test_windows_that_cannot_be_are_rejected_in_one_line(cli, arguments, said):
    done = cli(*GIVEN, *arguments)
    assert done.code == 2
    assert said in done.err
    assert done.err.count("\n") == 1


def test_the_phase_diagrams_preset_has_the_windows_beside_halves_and_dense_methods(cli):
    done = cli("-m", "+sweep=phase_diagram", "hardware=cpu", "hydra.launcher.dry_run=true")
    assert done.code == 0, done.err
    assert (done.out + done.err).count("phase_diagram/benchmark_forward") == 2


@pytest.mark.slow
def test_in_the_phase_diagram_only_what_is_pruned_says_so(cli, tmp_path):
    few = ["model.N=48", "model.B=8", "model.dtype=fp32", "phase.rounds=1", "phase.timed_iters=2"]
    done = cli("-m", "+sweep=phase_diagram", "hardware=cpu", *few, "hydra.launcher.report=false")
    assert done.code == 0, done.err
    (metrics,) = (tmp_path / "outputs").rglob("metrics.jsonl")
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    pruned = {row["method"] + row["variant"]: row.get("energy_kept") for row in rows}
    assert 0.9 < pruned["block_shock4of6"] < 1
    assert pruned["block_shock4of6"] == pruned["dense_tp_row"]  # of the same weight
    assert pruned["block_shock1100"] is None


@pytest.mark.slow
@pytest.mark.parametrize("method", ["block_shock", "dense_tp_row"])
def test_a_training_step_records_the_energy_that_pruning_kept(cli, tmp_path, method):
    done = cli(*GIVEN, "phase=phase3_train_step", f"method={method}", "phase.timed_iters=2", "hydra.run.dir=run")
    assert (done.code, done.err) == (0, "")
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert 0.9 < record["energy_kept"] < 1
    assert all(verdict["passed"] for verdict in record["correctness"].values())
