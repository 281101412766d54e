"""Regions and modules are recorded while the step is traced, whatever things are called."""

import pytest
import torch
from torch import Tensor, nn

from profiler import Region, TracedStep, trace_train_step
from tests.profiler.conftest import traced


class Squash(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sigmoid()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 8)
        self.squash = Squash()
        self.down = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.squash(self.up(x)) * 3.0)


def trace(model: nn.Module, loss_fn: object) -> TracedStep:
    torch.manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return trace_train_step(model, loss_fn, optimizer, (torch.randn(3, 4),))  # type: ignore[arg-type]


def places(step: TracedStep, target: str) -> list[tuple[str, str]]:
    return [(n.meta["region"].value, n.meta["module"]) for n in step.nodes if str(n.target) == target]


def test_each_node_has_the_region_and_module_that_ran_it() -> None:
    # sigmoid runs in the model, in the loss, and (as its own derivative's input) in the backward
    step = trace(Model(), lambda model, x: model(x * 2.0).sigmoid().sum())
    assert places(step, "aten.sigmoid.default") == [("forward", "squash"), ("loss", "(loss_fn)")]
    assert places(step, "aten.sigmoid_backward.default") == [
        ("backward", "(loss_fn)"),
        ("backward", "squash"),
    ]
    assert places(step, "aten.addmm.default") == [("forward", "up"), ("forward", "down")]
    assert places(step, "aten.sum.default") == [("loss", "(loss_fn)")]
    before_model, in_model, *_ = places(step, "aten.mul.Tensor")
    assert before_model == ("forward", "(loss_fn)")
    assert in_model == ("forward", "(model)")
    assert set(places(step, "aten.mm.default")) == {("backward", "up"), ("backward", "down")}
    assert all(region == "optimizer" for region, _ in places(step, "aten.add_.Tensor"))


def test_what_runs_between_two_modules_is_forward_and_only_the_end_is_loss() -> None:
    def in_pieces(model: Model, x: Tensor) -> Tensor:
        hidden = model.up(x).tanh()  # the model's own forward is never called
        return model.down(hidden).exp().mean()

    step = trace(Model(), in_pieces)
    assert places(step, "aten.tanh.default") == [("forward", "(loss_fn)")]
    assert places(step, "aten.exp.default") == [("loss", "(loss_fn)")]


def test_regions_are_in_order_and_complete(tiny: str) -> None:
    _, step = traced(tiny)
    order = list(Region)
    positions = [order.index(node.meta["region"]) for node in step.nodes]
    assert positions == sorted(positions)
    assert {node.meta["region"] for node in step.nodes} == set(Region)


def test_backward_of_a_module_carries_its_path(tiny: str) -> None:
    _, step = traced(tiny)
    forward = {n.meta["module"] for n in step.nodes if n.meta["region"] in (Region.FORWARD, Region.LOSS)}
    backward = {n.meta["module"] for n in step.nodes if n.meta["region"] is Region.BACKWARD}
    owners = {item.module for item in step.lifted if item.kind == "PARAM"}  # gradients accumulate at parameters
    assert backward <= forward | owners
    with_parameters = {m for m in owners if m in forward}
    assert len(with_parameters & backward) >= 0.9 * len(with_parameters)


def test_a_gradient_belongs_to_its_parameters_module() -> None:
    step = trace(Model(), lambda model, x: model(x).sum())
    assert {name: node.meta["module"] for name, node in step.gradients.items()} == {
        "up.weight": "up",
        "up.bias": "up",
        "down.weight": "down",
        "down.bias": "down",
    }


@pytest.mark.parametrize("kind", ["PARAM", "BUFFER", "OPT_STATE"])
def test_placeholders_are_named_after_what_they_are(kind: str) -> None:
    _, step = traced("tiny_bert")
    sources = {n.meta["source"] for n in step.nodes if n.op == "placeholder" and n.meta["node_type"] == kind}
    assert sources == {item.name for item in step.lifted if item.kind == kind}
    assert sources or kind == "BUFFER"
