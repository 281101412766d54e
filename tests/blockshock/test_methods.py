"""Every method computes the dense layer: forward, dX, dW and training, at every world size."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from blockshock.jobs.correctness import MARGIN
from blockshock.methods import ring_roundings
from tests.blockshock import rank_tasks

MASKS = [
    "complement_1100_0011", "complement_1010_0101", "complement_1001_0110",
    "checkerboard", "random_2of4", "magnitude_2of4",
]  # fmt: skip


@st.composite
def problems(draw, ranks=(1, 2, 4)):
    world_size = draw(st.sampled_from(ranks))
    method = draw(st.sampled_from(["block_shock", "masked_split_dense"]))
    shard = draw(st.sampled_from(["inputs", "outputs"]))
    options = {"shard": shard}
    if method == "block_shock":
        options |= {
            "kernel": draw(st.sampled_from(["auto", "masked_dense", "reference"])),
            "weights": draw(st.sampled_from(["packed", "masked"])),
        }
    return world_size, {
        "method": method,
        "options": options,
        "mask": draw(st.sampled_from(MASKS)),
        "N": (8 if shard == "outputs" else 4) * draw(st.integers(1, 6)),
        "K": (8 if shard == "inputs" else 4) * draw(st.integers(1, 6)),
        "B": draw(st.integers(1, 17)),
        "seed": draw(st.integers(0, 2**31)),
        "dtype": "float64",
    }


@given(problems())
@settings(max_examples=120)
def test_block_shock_equals_the_dense_layer_in_float64(pools, problem):
    world_size, spec = problem
    outcome = pools(world_size).run(rank_tasks.compare_with_dense, spec)
    assert outcome.status == "ok", outcome.reason
    errors, same_weight = outcome.value
    assert same_weight
    assert max(errors) <= 1e-12


@given(problems(ranks=(1, 2)), st.sampled_from(["bfloat16", "float16", "float32"]))
@settings(max_examples=40)
def test_in_low_precision_the_error_is_a_few_roundings(pools, problem, dtype):
    world_size, spec = problem
    spec |= {"dtype": dtype, "N": 64, "K": 64, "B": 16}
    outcome = pools(world_size).run(rank_tasks.compare_with_dense, spec)
    assert outcome.status == "ok", outcome.reason
    # eps is one unit in the last place; a rounded result is off by at most half, two roundings of partials add to one
    assert max(outcome.value[0]) <= 2 * torch.finfo(getattr(torch, dtype)).eps


@pytest.mark.parametrize("world_size", [2, 3, 4])
@pytest.mark.parametrize("method", ["dense_tp_row", "dense_tp_column", "dtensor_row", "dtensor_column"])
def test_tensor_parallelism_equals_the_dense_layer_in_float64(pools, method, world_size):
    spec = {"method": method, "mask": MASKS[0], "N": 48, "K": 24, "B": 5, "seed": 3, "dtype": "float64"}
    outcome = pools(world_size).run(rank_tasks.compare_with_dense, spec)
    assert outcome.status == "ok", outcome.reason
    assert max(outcome.value[0]) <= 1e-12
    assert outcome.value[1]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("mask", ["complement_1010_0101", "checkerboard", "random_2of4", "magnitude_2of4"])
@pytest.mark.parametrize(("weights", "shard"), [("packed", "inputs"), ("packed", "outputs"), ("masked", "inputs")])
def test_ten_adamw_steps_with_halves_equal_ten_of_a_dense_layer(pools, mask, weights, shard, world_size):
    spec = {
        "method": "block_shock", "options": {"weights": weights, "shard": shard}, "mask": mask,
        "N": 32, "K": 48, "B": 12, "seed": 11, "dtype": "float64",
        "optimizer": "AdamW", "settings": {"lr": 1e-2, "weight_decay": 0.1},
    }  # fmt: skip
    outcome = pools(world_size).run(rank_tasks.train_beside_dense, spec)
    assert outcome.status == "ok", outcome.reason
    difference, moved = outcome.value
    assert moved > 0.1  # the steps did something
    assert difference <= 1e-12


@pytest.mark.parametrize("settings_", [{"lr": 0.05}, {"lr": 0.05, "momentum": 0.9, "nesterov": True}])
def test_sgd_steps_with_halves_equal_those_of_a_dense_layer(pools, settings_):
    spec = {
        "method": "block_shock", "mask": "random_2of4", "N": 32, "K": 48, "B": 12, "seed": 5, "dtype": "float64",
        "optimizer": "SGD", "settings": settings_,
    }  # fmt: skip
    difference, _ = pools(2).run(rank_tasks.train_beside_dense, spec).value
    assert difference <= 1e-12


def test_masked_weights_that_are_never_compressed_again_fall_behind(pools):
    spec = {
        "method": "block_shock", "options": {"weights": "masked", "compress_every": 0}, "mask": "random_2of4",
        "N": 32, "K": 48, "B": 12, "seed": 11, "dtype": "float64",
        "optimizer": "AdamW", "settings": {"lr": 1e-2},
    }  # fmt: skip
    difference, _ = pools(2).run(rank_tasks.train_beside_dense, spec).value
    assert difference > 1e-4


def test_ring_roundings_are_those_of_a_simulated_ring():
    """Rounded partial products, added one after another with a rounding each, against one rounded product.

    The formula takes every rounding for one of a number from the continuum. Sums of rounded numbers lie on a grid,
    where ties, the largest errors, are frequent: that adds a few percent, which the margin of the check must cover.
    """
    generator = torch.Generator().manual_seed(0)
    for ranks in (2, 4, 8):
        partials = torch.randn(ranks, 400_000, generator=generator, dtype=torch.float64) / ranks**0.5
        exact = partials.sum(0)
        once = (exact.bfloat16().double() - exact).norm()
        rounded = partials.bfloat16().double()
        assert float((rounded - partials).norm() / once) == pytest.approx(1, rel=0.01)  # the formula's first term
        total = rounded[0].bfloat16()
        for partial in rounded[1:]:
            total = (total.double() + partial).bfloat16()
        measured = float((total.double() - exact).norm() / once)
        assert ring_roundings(ranks) < measured < 1.06 * ring_roundings(ranks) < MARGIN * ring_roundings(ranks)
    assert ring_roundings(2) == pytest.approx(math.sqrt(2))
    assert ring_roundings(1) == 1.0
