"""A plan as a file: compiled by without measuring or planning, and rejected where it is of another step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

import checkpointing
from checkpointing import plan_of, plans_of
from checkpointing.compiled.costs.costs import Costs
from checkpointing.compiled.decisions import within
from checkpointing.errors import BudgetError, CheckpointingError, DecisionsFileError, IllegalPlanError
from tests.checkpointing.loops.loop import (
    assert_trains_as_unplanned,
    backend,
    batches,
    in_processes,
    loss_of,
    model_of,
    train,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Path]:
    """A trained model, and the file of its plan."""
    model = model_of()
    torch._dynamo.reset()
    train(model, backend())
    return model, plan_of(model).to_json(tmp_path_factory.mktemp("plans") / "new" / "plan.json")


def compiled_once(path: Any, model: nn.Module, rows: int = 256) -> None:
    torch._dynamo.reset()
    train(model, checkpointing.backend(plan=path), data=batches(1, rows))


def forbid_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("measured or planned")

    monkeypatch.setattr(Costs, "measure", forbidden)
    monkeypatch.setattr(within, "SOLVERS", {"optimal": forbidden})


def test_a_step_is_compiled_by_the_file_without_measuring_or_planning(
    planned: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = planned
    forbid_planning(monkeypatch)
    by_file = assert_trains_as_unplanned(train, model_of(), checkpointing.backend(plan=path))
    first, again = plan_of(model), plan_of(by_file)
    assert again.to_json(path.parent / "again.json").read_text() == path.read_text()
    assert not again.is_empty
    assert again.summary().splitlines()[:2] == first.summary().splitlines()[:2]
    assert again.predicted_added_s == first.predicted_added_s
    assert again.table().equals(first.table())
    assert again.measuring_s == 0.0


def load_in_another_process(_: int, path: Path) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        forbid_planning(monkeypatch)
        model = model_of()
        compiled_once(path, model)
    plan_of(model).to_json(path.with_name("other-process.json"))


def test_another_process_compiles_by_the_file(planned: tuple[nn.Module, Path], forking_server: None) -> None:
    in_processes(load_in_another_process, (planned[1],))
    assert planned[1].with_name("other-process.json").read_text() == planned[1].read_text()


def test_a_loop_of_two_shapes_has_two_files(planned: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    torch._dynamo.reset()
    data = [*batches(1), *batches(1, rows=100)]
    smaller = model_of()
    train(smaller, backend(), data=data[1:])
    paths = [planned[1], plan_of(smaller).to_json(planned[1].with_name("100.json"))]
    torch._dynamo.reset()
    smaller_budget, larger_budget = (plan_of(model).budget_bytes for model in (smaller, planned[0]))
    assert smaller_budget < larger_budget
    with pytest.raises(
        DecisionsFileError, match=rf"100\.json has budget_bytes={smaller_budget}, and .*: one loop has one"
    ):
        checkpointing.backend(plan=paths)
    content = json.loads(paths[1].read_text())
    content["options"]["budget_bytes"] = larger_budget
    paths[1].write_text(json.dumps(content))
    forbid_planning(monkeypatch)
    model = model_of()
    train(model, checkpointing.backend(plan=paths), data=data * 2)
    assert len(plans_of(model)) == 2


def test_other_shapes_are_named(planned: tuple[nn.Module, Path]) -> None:
    said = r"plan\.json is the plan of another step: input x is float32\[64, 16\], and float32\[256, 16\] in the plan"
    with pytest.raises(IllegalPlanError, match=said):
        compiled_once(planned[1], model_of(), rows=64)


def test_another_model_is_named(planned: tuple[nn.Module, Path]) -> None:
    model: Any = model_of()
    model.encoder.layers[0][1] = nn.ReLU()
    with pytest.raises(IllegalPlanError, match=r"runs aten\.relu\.default where the plan has aten\.gelu\.default"):
        compiled_once(planned[1], model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch": "2.1.0"}, "made with PyTorch 2.1.0, and this is 2"),
        ({"device": "cuda"}, "made with a device cuda, and this is cpu"),
        ({"digest": "0"}, "the operators' shapes or constants are others"),
    ],
)
def test_another_pytorch_device_or_constant_is_named(
    planned: tuple[nn.Module, Path], tmp_path: Path, change: dict[str, str], message: str
) -> None:
    content = json.loads(planned[1].read_text())
    content["graph"] |= change
    (tmp_path / "changed.json").write_text(json.dumps(content))
    with pytest.raises(IllegalPlanError, match=message):
        compiled_once(tmp_path / "changed.json", model_of())


def test_what_has_come_to_need_more_than_the_budget_is_rejected(
    planned: tuple[nn.Module, Path], tmp_path: Path
) -> None:
    model = model_of()
    torch._dynamo.reset()
    train(model, backend(), make=lambda m: [SGD(m.parameters(), lr=0.1)])  # whose state is smaller than AdamW's
    path = plan_of(model).to_json(tmp_path / "sgd.json")
    with pytest.raises(BudgetError, match="MiB more, by the plan of the file: use at least"):
        compiled_once(path, model_of())


@pytest.mark.parametrize("content", ["", "{", "[]", '{"compiled_plan": 1}', '{"compiled_plan": 0}'])
def test_other_files_are_rejected_at_once(tmp_path: Path, content: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(DecisionsFileError, match=r"plan\.json: "):
        checkpointing.backend(plan=path)
    with pytest.raises(DecisionsFileError, match=r"missing\.json: no plan"):
        checkpointing.backend(plan=tmp_path / "missing.json")
    with pytest.raises(DecisionsFileError, match="give the path"):
        checkpointing.backend(plan=[])


def test_a_plan_comes_without_other_options_and_a_budget_without_a_plan(planned: tuple[nn.Module, Path]) -> None:
    with pytest.raises(CheckpointingError, match="without other options"):
        checkpointing.backend("1GB", plan=planned[1])
    with pytest.raises(CheckpointingError, match="needs a memory_budget"):
        checkpointing.backend()


def test_by_name_with_the_plan_in_the_options(planned: tuple[nn.Module, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_planning(monkeypatch)
    monkeypatch.setenv("RECOMPUTE_MEMORY_BUDGET", "1MB")  # the file has its own
    torch._dynamo.reset()
    model = model_of()
    compiled = torch.compile(loss_of, backend="recompute", options={"plan": str(planned[1])}, dynamic=False)
    torch.optim.AdamW(model.parameters())
    compiled(model, *batches(1)[0]).backward()
    assert plan_of(model).plan.kept == plan_of(planned[0]).plan.kept
