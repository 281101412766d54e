"""Hooks, averages, evaluation, the smaller last batch, and what one step of a loop may do besides."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.optim import SGD, AdamW
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from checkpointing import plan_of, plans_of
from checkpointing.compiled.decisions import within
from checkpointing.errors import GraphBreakError
from tests.checkpointing.loops.loop import (
    Classifier,
    Deep,
    assert_trains_as_unplanned,
    backend,
    batches,
    loss_of,
    model_of,
    plain_loop,
    train,
)  # fmt: skip
from tests.profiler.eager_steps import assert_equal

pytestmark = pytest.mark.slow


def test_an_exponential_average_of_the_weights() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        losses = train(model, by, after_step=lambda: average.update_parameters(model))
        return losses + [parameter.detach().norm() for parameter in average.parameters()]

    assert_trains_as_unplanned(loop, model_of())


def test_gradient_hooks_of_parameters_and_of_a_value_inside_of_the_step() -> None:
    def halved_inside(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        assert isinstance(model, Classifier)
        hidden = model.encoder(x)
        hidden.register_hook(lambda gradient: gradient * 0.5)
        return cross_entropy(model.head(hidden), labels)

    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        seen: list[Tensor] = []
        for parameter in model.parameters():
            parameter.register_hook(lambda gradient: gradient * 0.5)
            parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad.norm()))  # type: ignore[union-attr]
        return train(model, by, halved_inside) + seen

    assert_trains_as_unplanned(loop, model_of())


def test_forward_hooks_of_modules_are_part_of_the_step() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        assert isinstance(model, Classifier)
        model.encoder.register_forward_hook(lambda module, inputs, output: output * 2)
        model.head[0].register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
        return train(model, by)

    assert_trains_as_unplanned(loop, model_of())


def test_a_backward_hook_of_an_inner_module_is_a_graph_break_that_is_said() -> None:
    model = model_of(Deep)
    assert isinstance(model, Classifier)
    model.encoder.layers[1].register_full_backward_hook(lambda module, inner, outer: None)
    with pytest.raises(GraphBreakError, match="several graphs"):
        train(model, backend())


def test_a_backward_hook_of_the_whole_model_stays_outside_and_is_called() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        seen: list[Tensor] = []
        model.register_full_backward_hook(lambda module, inner, outer: seen.append(inner[0].norm()))
        compiled = torch.compile(model, backend=by, dynamic=False)
        [(x, labels)] = batches(1)
        loss = cross_entropy(compiled(x.requires_grad_()), labels)
        loss.backward()
        SGD(model.parameters(), lr=0.1).step()
        assert len(seen) == 1
        return [loss.detach(), *seen]

    assert_trains_as_unplanned(loop, model_of())


def test_evaluation_before_and_between_epochs() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(loss_of, backend=by, dynamic=False)
        optimizer = AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(2):
            model.eval()
            with torch.no_grad():
                losses += [compiled(model, *batch) for batch in batches(2, rows=64)]
            with torch.inference_mode():
                losses += [compiled(model, *batch).clone() for batch in batches(1, rows=32)]
            model.train()
            for batch in batches(2):
                optimizer.zero_grad()
                loss = compiled(model, *batch)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        return losses

    assert len(plans_of(assert_trains_as_unplanned(loop, model_of()))) == 1


def test_the_smaller_last_batch_of_each_epoch_has_a_plan_that_is_kept() -> None:
    epoch = [*batches(2), *batches(1, rows=100)]
    model = assert_trains_as_unplanned(lambda model, by: train(model, by, data=epoch * 3), model_of())
    assert len(plans_of(model)) == 2


def shapes_said(caplog: pytest.LogCaptureFixture, count: int) -> tuple[int, list[str]]:
    """Plans of a loop over so many shapes, and what is said of Dynamo's limit."""
    torch._dynamo.reset()
    model = model_of()
    with caplog.at_level(logging.WARNING, logger="checkpointing"):
        train(model, backend(), data=[batches(1, rows=64 + number)[0] for number in range(count)])
    return len(plans_of(model)), [r.message for r in caplog.records if "without a budget" in r.message]


def test_the_last_shape_that_dynamo_compiles_is_said_and_the_limit_can_be_raised(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with torch._dynamo.config.patch(recompile_limit=2):
        assert shapes_said(caplog, 1) == (1, [])
        plans, [said] = shapes_said(caplog, 3)
        assert plans == 2
        assert "for 2 shapes" in said
        assert "recompile_limit" in said
    caplog.clear()
    with torch._dynamo.config.patch(recompile_limit=5):
        assert shapes_said(caplog, 3) == (3, [])


def test_an_interrupted_compilation_leaves_the_model_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        if by == "aot_eager":
            return train(model, by)
        before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        with monkeypatch.context() as patch:
            patch.setattr(within, "SOLVERS", {"optimal": interrupted})
            with pytest.raises(KeyboardInterrupt):
                train(model, by)
        assert_equal(model.state_dict(), before, "")
        assert torch.equal(torch.get_rng_state(), state)
        assert all(parameter.grad is None for parameter in model.parameters())
        assert plans_of(model) == []
        return train(model, by)

    assert not plan_of(assert_trains_as_unplanned(loop, model_of())).is_empty


def test_two_forwards_before_one_backward_are_bitwise_and_the_budget_is_said_to_count_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(loss_of, backend=by, dynamic=False)
        optimizer = SGD(model.parameters(), lr=0.1)
        losses = []
        for _ in range(2):
            loss = sum((compiled(model, *batch) for batch in batches(2)), torch.zeros(()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return losses

    with caplog.at_level(logging.WARNING):
        assert_trains_as_unplanned(loop, model_of())
    assert [r.message for r in caplog.records if "the budget counts one" in r.message] == [caplog.records[-1].message]


def test_an_ordinary_loop_is_not_said_to_run_two_forwards(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        train(model_of(), backend())
    assert not caplog.records


def test_a_backward_twice_over_the_same_graph() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(loss_of, backend=by, dynamic=False)
        loss = compiled(model, *batches(1)[0])
        loss.backward(retain_graph=True)
        loss.backward()
        SGD(model.parameters(), lr=0.1).step()
        return [loss.detach()]

    assert_trains_as_unplanned(loop, model_of())


def test_a_gradient_of_a_gradient_is_refused_by_pytorch() -> None:
    compiled = torch.compile(model_of(), backend=backend(), dynamic=False)
    x = batches(1)[0][0].requires_grad_()
    [gradient] = torch.autograd.grad(compiled(x).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="does not currently support double backward"):
        gradient.square().sum().backward()


def test_gradients_of_the_inputs() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(loss_of, backend=by, dynamic=False)
        [(x, labels)] = batches(1)
        first = compiled(model, x.requires_grad_(), labels)
        first.backward()
        assert x.grad is not None
        second = compiled(model, (x + 0.1 * x.grad.sign()).detach(), labels)
        second.backward()
        SGD(model.parameters(), lr=0.1).step()
        return [first.detach(), second.detach(), x.grad.norm()]

    assert_trains_as_unplanned(loop, model_of())


def test_weight_norm_spectral_norm_and_tied_weights() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        layers: Any = model.encoder.layers  # type: ignore[union-attr]
        weight_norm(layers[0][0])
        spectral_norm(layers[1][0])
        layers[2][0].weight = model.head[0].layers[2][0].weight  # type: ignore[index, union-attr]
        return train(model, by)

    assert_trains_as_unplanned(loop, model_of(Deep))


def test_a_model_in_bfloat16() -> None:
    data = [(x.bfloat16(), labels) for x, labels in batches(3)]
    assert_trains_as_unplanned(lambda model, by: train(model.bfloat16(), by, data=data), model_of())


def test_gradients_clipped_by_value_and_zeroed_in_place() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        optimizer = AdamW(model.parameters(), lr=1e-2)
        return train(
            model,
            by,
            make=lambda _: [],
            after_backward=lambda: nn.utils.clip_grad_value_(model.parameters(), 1e-3),
            after_step=lambda: (optimizer.step(), optimizer.zero_grad(set_to_none=False)),  # type: ignore[arg-type, func-returns-value, return-value]
        )

    assert_trains_as_unplanned(loop, model_of())


def test_a_batch_and_a_result_that_are_dicts() -> None:
    def step(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Any]:
        return {"loss": cross_entropy(model(batch["x"]), batch["labels"]), "rows": len(batch["x"])}

    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(step, backend=by, dynamic=False)
        optimizer = AdamW(model.parameters(), lr=1e-2)
        losses = []
        for x, labels in batches(3):
            optimizer.zero_grad()
            result = compiled(model, {"x": x, "labels": labels})
            result["loss"].backward()
            optimizer.step()
            losses.append(result["loss"].detach())
        return losses

    assert not plan_of(assert_trains_as_unplanned(loop, model_of())).is_empty


def test_a_number_read_inside_of_the_step_is_a_graph_break_that_names_its_line() -> None:
    def with_item(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        loss = cross_entropy(model(x), labels)
        return loss * (2.0 if loss.item() > 100 else 1.0)

    with pytest.raises(GraphBreakError, match=r"test_hooks_and_shapes\.py:\d+ .*item"):
        plain_loop(with_item)(model_of(), backend())


@pytest.mark.parametrize("context", [torch.autograd.graph.save_on_cpu, torch.autograd.detect_anomaly])
def test_under_autograds_own_contexts(context: Any) -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        with context():
            return train(model, by)

    assert_trains_as_unplanned(loop, model_of())
