"""Masks are complementary 2:4 masks, and the validator knows when they are not."""

import pytest
import torch
from hydra.utils import instantiate
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from blockshock.cli.main import CONF
from blockshock.errors import ConfigError
from blockshock.masks import halves, violation
from blockshock.masks.pattern import PatternMask

NAMES = sorted(path.stem for path in (CONF / "mask").glob("*.yaml") if not path.stem.startswith("window"))


def load(name: str):
    return instantiate(OmegaConf.load(CONF / "mask" / f"{name}.yaml"))


def make(name: str, rows: int, columns: int, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator)
    return weight, *halves(load(name), weight, generator)


def test_the_designed_masks_exist():
    assert set(NAMES) >= {
        "complement_1100_0011", "complement_1010_0101", "complement_1001_0110",
        "random_2of4", "magnitude_2of4", "checkerboard",
    }  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@given(rows=st.integers(1, 8), columns=st.integers(1, 16), seed=st.integers(0, 999))
def test_each_weight_is_in_exactly_one_half_and_each_group_of_four_keeps_two(name, rows, columns, seed):
    _, first, second = make(name, 4 * rows, 4 * columns, seed)
    assert torch.equal(first, ~second)
    for half in (first, second):
        for row in half.tolist():
            assert all(sum(row[i : i + 4]) == 2 for i in range(0, len(row), 4))


def test_checkerboard_is_2_of_4_along_columns_too():
    _, first, second = make("checkerboard", 16, 32)
    for half in (first, second):
        for column in half.t().tolist():
            assert all(sum(column[i : i + 4]) == 2 for i in range(0, len(column), 4))


def test_magnitude_keeps_the_two_largest_of_four():
    weight, first, _ = make("magnitude_2of4", 8, 16)
    smallest_kept = weight.abs().view(-1, 4)[first.view(-1, 4)].view(-1, 2).amin(1)
    largest_dropped = weight.abs().view(-1, 4)[~first.view(-1, 4)].view(-1, 2).amax(1)
    assert bool((smallest_kept >= largest_dropped).all())


def test_magnitude_keeps_two_of_four_equal_weights():
    first, _ = halves(load("magnitude_2of4"), torch.ones(4, 8), torch.Generator())
    assert first.sum() == 16


def test_the_large_half_of_gaussian_weights_carries_87_percent_of_the_energy():
    weight, first, _ = make("magnitude_2of4", 1024, 1024)
    assert float(weight[first].square().sum() / weight.square().sum()) == pytest.approx(0.867, abs=0.003)


def test_random_masks_use_all_six_patterns_about_equally():
    _, first, _ = make("random_2of4", 256, 1024)
    _, counts = first.view(-1, 4).unique(dim=0, return_counts=True)
    assert len(counts) == 6
    assert float(counts.max() / counts.min()) < 1.1


def test_the_validator_names_what_is_wrong():
    good = torch.tensor([[1, 1, 0, 0]] * 4, dtype=torch.bool)
    assert violation(good, ~good) is None
    assert "complementary" in violation(good, good)
    three = torch.tensor([[1, 1, 1, 0]] * 4, dtype=torch.bool)
    assert "along rows" in violation(three, ~three)
    assert "along columns" in violation(good, ~good, column_wise=True)
    uneven = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1]], dtype=torch.bool)
    assert "repeat" in violation(uneven, ~uneven, period=1)


@pytest.mark.parametrize("pattern", ["110", "1110", "1100/11", "12300"])
def test_a_pattern_that_is_not_2_of_4_is_refused(pattern):
    with pytest.raises(ConfigError, match="two ones each"):
        PatternMask("mine", pattern)
