"""What inductor generates and our replay does not know costs a warning, not the user's step."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import checkpointing
from checkpointing import plan_of
from checkpointing.compiled.costs import costs
from checkpointing.compiled.costs.cost_file import OperatorCost
from checkpointing.compiled.costs.operator_call import OperatorCall
from checkpointing.compiled.memory import wrapper_memory
from checkpointing.errors import CostError
from tests.checkpointing.compiled.training import Blocks, square, train

ROWS, WIDTH = 256, 16


def planned_step(execution: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = Blocks(count=2, dropout=0.0)
    train(model, square, (torch.randn(ROWS, WIDTH),), checkpointing.backend(0.9, execution=execution), steps=1)
    return model


@pytest.mark.slow
def test_code_that_cannot_be_followed_is_one_warning_and_the_planners_prediction_stands(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    known = wrapper_memory.wrapper_names

    def without_matmuls(*arguments: Any) -> dict[str, Any]:
        return {name: value for name, value in known(*arguments).items() if name != "extern_kernels"}

    monkeypatch.setattr(wrapper_memory, "wrapper_names", without_matmuls)
    with caplog.at_level(logging.WARNING):
        model = planned_step("inductor")
    [warning] = [record.message for record in caplog.records if record.name.startswith("checkpointing")]
    assert "extern_kernels" in warning
    assert "cannot be followed" in warning
    assert "the planner's own prediction" in warning
    plan = plan_of(model)
    assert not plan.is_empty
    assert plan.predicted_peak_bytes == plan.plan.predicted_peak_bytes <= plan.budget_bytes
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("operator", "level", "words"),
    [("aten.addmm", logging.WARNING, "its results are kept"), ("aten.mm", logging.INFO, "no matter of the plan")],
    ids=["of the forward", "of the backward"],
)
def test_an_operator_that_cannot_be_timed_is_said_with_what_that_changes(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    tmp_path: Path,
    operator: str,
    level: int,
    words: str,
) -> None:
    measured = costs.cost_of

    def without_one(call: OperatorCall, device: torch.device) -> OperatorCost:
        if str(call.operator).startswith(f"{operator}."):
            raise CostError(f"{call.operator} cannot be timed")
        return measured(call, device)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # no costs are known yet
    monkeypatch.setattr(costs, "cost_of", without_one)
    with caplog.at_level(logging.INFO):
        plan = plan_of(planned_step("eager"))
    [record] = [record for record in caplog.records if "cannot be timed" in record.message]
    assert record.levelno == level
    assert words in record.message
    table = plan.table()
    rows = table[table.operator.str.startswith(f"{operator}.")]
    assert set(rows.why) == ({"cannot be timed on its own"} if level == logging.WARNING else set())
    assert not plan.is_empty
