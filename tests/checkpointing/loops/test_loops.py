"""A planned step in loops as people write them: each trains bitwise as it does with the unplanned step."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

import checkpointing
from checkpointing import CheckpointingError, plan_of
from checkpointing.errors import GraphBreakError
from profiler.models import build
from tests.checkpointing.compiled.training import TINY
from tests.checkpointing.loops.loop import (
    Classifier,
    Deep,
    assert_trains_as_unplanned,
    backend,
    batches,
    gradients,
    loss_of,
    model_of,
    plain_loop,
)

pytestmark = pytest.mark.slow

log = logging.getLogger("a user's")


def test_gradients_accumulate_over_micro_batches() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(loss_of, backend=by, dynamic=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for index, micro in enumerate(batches(6)):
            loss = compiled(model, *micro) / 2
            loss.backward()
            losses.append(loss.detach())
            if index % 2:
                optimizer.step()
                optimizer.zero_grad()
        return losses

    assert not plan_of(assert_trains_as_unplanned(loop, model_of())).is_empty


def test_gradients_that_accumulate_over_all_steps_are_added_in_place() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(loss_of, backend=by, dynamic=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        losses = []
        for batch in batches(3):
            loss = compiled(model, *batch)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    assert_trains_as_unplanned(loop, model_of())


def test_autocast_to_bfloat16_inside_of_the_step() -> None:
    def autocast_loss(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(model(x), labels)

    model = assert_trains_as_unplanned(plain_loop(autocast_loss), model_of(), planned=backend(solver="greedy"))
    plan = plan_of(model)
    assert not plan.is_empty
    assert any("_to_copy" in target for target in plan.problem.targets)  # casts are there to be planned


def test_autocast_to_bfloat16_around_the_step() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return plain_loop(loss_of)(model, by)

    assert not plan_of(assert_trains_as_unplanned(loop, model_of(), planned=backend(solver="greedy"))).is_empty


def test_learning_rate_and_momentum_schedules_move_between_steps() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(loss_of, backend=by, dynamic=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2, momentum=0.9)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=6)
        losses = []
        for batch in batches(5):
            loss = compiled(model, *batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
        return losses

    assert_trains_as_unplanned(loop, model_of())


def test_a_frozen_parameter_stays_and_gets_no_gradient() -> None:
    model = model_of(Deep)
    assert isinstance(model, Classifier)
    for parameter in [*model.encoder.layers[0].parameters(), model.head[1].weight]:
        parameter.requires_grad_(False)
    trained = assert_trains_as_unplanned(plain_loop(loss_of), model)
    assert not plan_of(trained).is_empty
    assert "head.1.weight" not in gradients(trained)
    assert torch.equal(trained.state_dict()["head.1.weight"], model.state_dict()["head.1.weight"])


def test_a_parameter_frozen_between_steps_changes_the_plan_and_not_the_numbers() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        losses = plain_loop(loss_of)(model, by)
        for parameter in model.encoder.layers[0].parameters():  # type: ignore[index, union-attr]
            parameter.requires_grad_(False)
        return losses + plain_loop(loss_of)(model, by)

    trained = assert_trains_as_unplanned(loop, model_of(Deep))
    assert len(checkpointing.plans_of(trained)) == 2


def test_a_model_whose_logits_leave_the_compiled_part() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(model, backend=by, dynamic=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for x, labels in batches(3):
            logits = compiled(x)
            loss = cross_entropy(logits.float(), labels, label_smoothing=0.1) + 1e-3 * logits.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    plan = plan_of(assert_trains_as_unplanned(loop, model_of()))
    assert not plan.is_empty
    assert set(plan.table().module.str.split(".").str[0]) <= {"encoder", "head", ""}


@pytest.mark.parametrize("name", TINY)
def test_a_models_logits_leave_the_compiled_part(name: str) -> None:
    task = build(name, batch_size=4, seq_len=32)
    inputs, labels = task.batch

    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(model, backend=by, dynamic=False)
        logits = compiled(inputs).logits
        loss = cross_entropy(logits.flatten(0, -2), labels.flatten())
        loss.backward()
        torch.optim.SGD(model.parameters(), lr=1e-2).step()
        return [loss.detach()]

    trained = assert_trains_as_unplanned(loop, task.model, backend(0.97))
    assert plan_of(trained).predicted_peak_bytes <= plan_of(trained).budget_bytes


def test_two_parts_have_budgets_of_their_own_in_one_step() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        first, second = by if isinstance(by, tuple) else (by, by)
        encoder = torch.compile(model.encoder, backend=first, dynamic=False)
        head = torch.compile(model.head, backend=second, dynamic=False)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for x, labels in batches(3):
            loss = cross_entropy(head(encoder(x)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    trained = assert_trains_as_unplanned(loop, model_of(Deep), (backend(0.85), backend(0.9)))
    assert isinstance(trained, Classifier)
    plans = [plan_of(trained.encoder), plan_of(trained.head)]
    assert [round(plan.budget_bytes / plan.unplanned_peak_bytes, 3) for plan in plans] == [0.85, 0.9]
    for plan in plans:
        assert not plan.is_empty
        assert plan.predicted_peak_bytes <= plan.budget_bytes


def test_two_optimizers_over_one_planned_step() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(loss_of, backend=by, dynamic=False)
        optimizers = [
            torch.optim.AdamW(model.encoder.parameters(), lr=1e-2),  # type: ignore[union-attr]
            torch.optim.SGD(model.head.parameters(), lr=1e-1, momentum=0.9),  # type: ignore[union-attr]
        ]
        losses = []
        for batch in batches(3):
            loss = compiled(model, *batch)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
        return losses

    assert_trains_as_unplanned(loop, model_of())


class Chain(nn.Sequential):
    """Its forward is torch.nn's own."""


@pytest.mark.parametrize("model", [nn.Sequential(Classifier()), Chain(Classifier())], ids=["container", "subclass"])
def test_a_container_of_pytorch_is_not_compiled_in_place_and_fit_says_so(model: nn.Module) -> None:
    with pytest.raises(CheckpointingError, match=r"in place.*use torch\.compile\(model, backend="):
        checkpointing.fit(model, 0.85, execution="eager")
    compiled = torch.compile(model, backend=backend(), dynamic=False)
    compiled(batches(1)[0][0]).sum().backward()
    assert not plan_of(model).is_empty


class Logging(Classifier):
    def forward(self, x: Tensor) -> Tensor:
        hidden = self.encoder(x)
        log.warning("half-way")
        return self.head(hidden)


def test_a_log_inside_of_the_step_is_a_graph_break_that_is_said_and_can_be_ignored() -> None:
    with pytest.raises(GraphBreakError, match="several graphs"):
        plain_loop(loss_of)(model_of(Logging), backend())
    with torch._dynamo.config.patch(ignore_logging_functions={logging.Logger.warning}):
        assert_trains_as_unplanned(plain_loop(loss_of), model_of(Logging))
