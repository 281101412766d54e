"""The models that transformers' configurations give: every weight is drawn, once, and from the seed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn

from profiler.models import NAMES, build


@pytest.fixture
def nan_where_nothing_is_written() -> Iterator[None]:
    """`torch.empty` fills with NaN while algorithms must be deterministic."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("nan_where_nothing_is_written")
@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith("tiny_")])
def test_every_weight_and_buffer_is_drawn(name: str) -> None:
    model = build(name).model
    unwritten = [key for key, value in model.state_dict().items() if not value.isfinite().all()]
    assert not unwritten
    again = build(name).model.state_dict()
    assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())


def test_pytorchs_layers_draw_their_weights_as_before_afterwards() -> None:
    build("tiny_gpt2")
    torch.manual_seed(0)
    first = [nn.Linear(4, 4).weight, nn.Embedding(4, 4).weight, nn.Conv2d(2, 2, 2).weight]
    assert all(weight.isfinite().all() and weight.std() > 0 for weight in first)
    assert not torch.equal(nn.Linear(4, 4).weight, nn.Linear(4, 4).weight)
