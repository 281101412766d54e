"""A step compiled under a memory budget: the same numbers, the budget met, and clear errors where it cannot be."""

from __future__ import annotations

import itertools
import warnings
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.checkpoint import checkpoint

import checkpointing
from checkpointing import BudgetError, CheckpointingError, plan_of, plans_of
from checkpointing.compiled import execution
from checkpointing.compiled.compiled_plan import CompiledPlan
from checkpointing.compiled.compiled_step import CompiledStep
from checkpointing.compiled.memory.device_memory import FirstSteps
from checkpointing.compiled.memory.optimizer_memory import missing_optimizer_state
from checkpointing.decide import lowest_plan
from checkpointing.errors import GraphBreakError
from profiler.models import build
from tests.checkpointing.compiled.random_models import RandomModel, random_batch
from tests.checkpointing.compiled.training import TINY, Blocks, CountedHalves, Trained, square, train, train_tiny
from tests.profiler.eager_steps import assert_equal


def blocks(rows: int = 32, **options: Any) -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    return Blocks(**options), (torch.randn(rows, 16),)


def planned(memory_budget: float | str, **options: Any) -> Any:
    return checkpointing.backend(memory_budget, execution=options.pop("execution", "eager"), **options)


@cache
def unplanned(name: str) -> Trained:
    return train_tiny(name, "aot_eager")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "solver"), [*((name, "optimal") for name in TINY), ("tiny_gpt2", "greedy")])
def test_three_steps_are_bitwise_those_of_the_unplanned_step(name: str, solver: str) -> None:
    expected = unplanned(name)
    found = train_tiny(name, planned(0.97 if name == "tiny_resnet152" else 0.92, solver=solver))
    assert not plan_of(found.model).is_empty
    assert [loss.item() for loss in found.losses] == [loss.item() for loss in expected.losses]
    assert_equal(found.state, expected.state, "")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_any_small_model_trains_bitwise_as_unplanned(seed: int) -> None:
    batch = random_batch(seed)
    expected = train(RandomModel(seed), _apply, batch, "aot_eager", steps=2)
    lowest = lowest_plan(plan_of(train(RandomModel(seed), _apply, batch, planned(1.0), steps=1).model).problem)
    found = train(RandomModel(seed), _apply, batch, planned(lowest.predicted_peak_bytes), steps=2)
    assert [loss.item() for loss in found.losses] == [loss.item() for loss in expected.losses]
    assert_equal(found.state, expected.state, "")


def _apply(model: nn.Module, x: Tensor) -> Tensor:
    return model(x)


@pytest.mark.slow
def test_six_budgets_are_met_and_a_lower_one_never_counts_more(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = CountedHalves(monkeypatch)
    model, batch = blocks(rows=256, count=6)
    need = plan_of(train(model, square, batch, planned(1.0), steps=1).model).unplanned_peak_bytes
    counts = []
    for fraction in [1.0 - 0.05 * step for step in range(6)]:
        model, batch = blocks(rows=256, count=6)
        budget = int(need * fraction)
        trained = train(model, square, batch, planned(budget), steps=1)
        counts.append(counted.peak(trained, batch))
        plan = plan_of(model)
        assert counts[-1] <= budget
        assert counts[-1] <= plan.predicted_peak_bytes <= budget
    assert all(lower <= higher for higher, lower in itertools.pairwise(counts))
    assert counts[-1] < 0.8 * counts[0]


class Normed(nn.Module):
    """Blocks of linear, batch norm and GELU: the statistics move once in a step."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.Sequential(
            *(nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.GELU()) for _ in range(3))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(x)


def _gpt2() -> tuple[nn.Module, Any, tuple[Tensor, ...]]:
    task = build("tiny_gpt2", batch_size=4, seq_len=32, dropout=0.0)
    del task.model.get_submodule("transformer.h")[1:]  # type: ignore[index]
    return task.model, task.loss_fn, task.batch


def _normed() -> tuple[nn.Module, Any, tuple[Tensor, ...]]:
    return Normed(), square, (torch.randn(512, 32, generator=torch.Generator().manual_seed(1)),)


@pytest.mark.slow
@pytest.mark.parametrize("make", [_gpt2, _normed])
def test_through_inductor_results_are_as_near_to_float64_as_unplanned(make: Any) -> None:
    exact, loss_fn, batch = make()
    exact.double()
    loss_fn(exact, *(t.double() if t.is_floating_point() else t for t in batch)).backward()
    errors = {}
    for case, backend in {"unplanned": "inductor", "planned": planned(0.93, execution="inductor")}.items():
        model, loss_fn, batch = make()
        torch._dynamo.reset()
        torch.compile(loss_fn, backend=backend, dynamic=False)(model, *batch).backward()
        errors[case] = [
            _distance(_gradients(model), _gradients(exact)),
            _distance(_statistics(model), _statistics(exact)),
        ]
    assert not plan_of(model).is_empty
    assert all(
        mine <= 1.2 * torchs + 1e-12 for mine, torchs in zip(errors["planned"], errors["unplanned"], strict=True)
    )


def _gradients(model: nn.Module) -> list[Tensor]:
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def _statistics(model: nn.Module) -> list[Tensor]:
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]


def _distance(found: list[Tensor], true: list[Tensor]) -> float:
    difference = sum(float((a.double() - b.double()).norm() ** 2) for a, b in zip(found, true, strict=True))
    return (difference / max(sum(float(b.double().norm() ** 2) for b in true), 1e-300)) ** 0.5


def test_predicting_the_optimizers_state_calls_no_hook_of_the_user() -> None:
    model = Blocks()
    optimizer = torch.optim.AdamW(model.parameters())
    called = []
    handles = [optimizer.register_step_pre_hook(lambda *_: called.append("own"))]
    handles.append(register_optimizer_step_pre_hook(lambda *_: called.append("global")))
    try:
        assert sum(missing_optimizer_state(list(model.parameters()), torch.device("cpu"))) > 0
    finally:
        for handle in handles:
            handle.remove()
    assert not called
    assert not optimizer.state


def test_a_budget_above_the_need_changes_nothing() -> None:
    model, batch = blocks()
    train(model, square, batch, planned("1GB"))
    plan = plan_of(model)
    assert plan.is_empty
    assert plan.predicted_peak_bytes == plan.unplanned_peak_bytes
    assert "nothing is recomputed" in plan.summary()


def test_code_that_recomputes_and_takes_less_than_planned_does_not_let_an_unplanned_step_pass_as_fitting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = blocks()
    need = plan_of(train(model, square, batch, planned(1.0), steps=1).model).unplanned_peak_bytes

    def smaller_if_planned(step: CompiledStep, halves: Any, plan: CompiledPlan) -> int:
        return plan.plan.predicted_peak_bytes - (0 if plan.is_empty else need // 5)

    monkeypatch.setattr(CompiledStep, "_predicted", smaller_if_planned)
    model, batch = blocks()
    train(model, square, batch, planned(int(0.9 * need)), steps=1)
    plan = plan_of(model)
    assert not plan.is_empty
    assert plan.predicted_peak_bytes <= plan.budget_bytes < plan.unplanned_peak_bytes == need


def test_a_budget_below_the_floor_is_rejected_with_one_that_works_and_what_sets_it() -> None:
    model, batch = blocks(width=256, count=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    batch = (torch.randn(256, 256),)
    with pytest.raises(
        BudgetError, match=r"below the minimum of .* set by aten\.\S+ in blocks\.\d.*use at least"
    ) as error:
        train(model, square, batch, planned("1MB"))
    assert "\n" not in str(error.value)
    assert_equal(model.state_dict(), before, "")
    lowest = str(error.value).split('use at least "')[1].split('"')[0]
    train(model, square, batch, planned(lowest))
    assert plan_of(model).predicted_peak_bytes <= plan_of(model).budget_bytes


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"memory_budget": 0}, "must be positive"),
        ({"memory_budget": float("nan")}, "must be positive"),
        ({"memory_budget": "8 apples"}, "cannot be read"),
        ({"memory_budget": True}, "must be positive"),
        ({"memory_budget": "8GB", "execution": "jit"}, "choose one of inductor, eager"),
        ({"memory_budget": "8GB", "solver": "none"}, "choose one of optimal, greedy"),
        ({"memory_budget": "8GB", "keep": "mm"}, "give a list of patterns"),
    ],
)
def test_what_cannot_be_read_is_rejected_before_anything_compiles(options: dict[str, Any], said: str) -> None:
    with pytest.raises(CheckpointingError, match=said) as error:
        checkpointing.backend(**options)
    assert "\n" not in str(error.value)


def test_an_older_torch_is_rejected_by_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.9.1"))
    with pytest.raises(CheckpointingError, match=r"needs torch 2\.11 or later; this is 2\.9\.1"):
        checkpointing.backend("8GB")


@pytest.mark.parametrize("option", ["keep", "recompute"])
def test_a_pattern_that_matches_nothing_is_rejected_with_names_that_would(option: str) -> None:
    model, batch = blocks()
    with pytest.raises(CheckpointingError, match=r"matches no module and no operator .* blocks\.0"):
        train(model, square, batch, planned(0.9, **{option: ["transformer.h.0"]}))


def test_values_kept_on_request_are_kept_and_those_to_recompute_are_recomputed() -> None:
    model, batch = blocks(dropout=0.0)
    train(model, square, batch, planned(1.0, recompute=["blocks.1.1", "aten.clone"], keep=["blocks.0"]))
    table = plan_of(model).table()
    assert set(table[table.module.str.startswith("blocks.0")].decision) == {"keep"}
    assert not (table.module == "blocks.1.1").any()
    expected, _ = blocks(dropout=0.0)
    train(expected, square, batch, "aot_eager")
    assert_equal(model.state_dict(), expected.state_dict(), "")


@pytest.mark.parametrize("model", [Blocks(), nn.Sequential(Blocks())], ids=["own class", "container"])
def test_patterns_and_tables_name_the_modules_of_a_compiled_model_as_the_model_does(model: nn.Module) -> None:
    torch._dynamo.reset()
    first = next(name for name, _ in model.named_modules() if name.endswith("blocks.1"))
    compiled = torch.compile(model, backend=planned(1.0, keep=[first]), dynamic=False)
    compiled(torch.randn(32, 16)).sum().backward()
    assert set(plan_of(model).table().module) - {""} <= {name for name, _ in model.named_modules()}


def test_modules_of_another_variable_have_its_name_in_front() -> None:
    torch._dynamo.reset()
    encoder, decoder = Blocks(count=1), Blocks(count=1)

    def both(encoder: nn.Module, decoder: nn.Module, x: Tensor) -> Tensor:
        return decoder(encoder(x)).sum()

    compiled = torch.compile(both, backend=planned(1.0, keep=["decoder.blocks.0"]), dynamic=False)
    compiled(encoder, decoder, torch.randn(32, 16)).backward()
    table = plan_of(decoder).table()
    assert set(table.module.str.split(".").str[0]) >= {"encoder", "decoder"}
    assert "is kept on request" in set(table[table.module.str.startswith("decoder.blocks.0")].why)


def test_what_is_to_be_recomputed_runs_in_the_backward_also_where_the_budget_suffices(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    halves: list[fx.GraphModule] = []
    interpreted = execution._interpreted
    monkeypatch.setattr(
        execution, "_interpreted", lambda half, inputs: halves.append(half) or interpreted(half, inputs)
    )
    model, batch = blocks()
    train(model, square, batch, planned("1GB", recompute=["blocks.1.0"]), steps=1)
    assert not plan_of(model).is_empty
    products = [len(half.graph.find_nodes(op="call_function", target=torch.ops.aten.addmm.default)) for half in halves]
    assert products == [8, 1]


class Checkpointed(Blocks):
    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = x + checkpoint(block, x, use_reentrant=False)
        return x


def test_the_models_own_checkpoints_are_respected() -> None:
    torch.manual_seed(0)
    model, batch = Checkpointed(), (torch.randn(32, 16),)
    found = train(model, square, batch, planned(1.0))
    table = plan_of(model).table()
    assert not table.module.str.startswith("blocks.1.").any()
    torch.manual_seed(0)
    expected = train(Checkpointed(), square, batch, "aot_eager")
    assert_equal(found.state, expected.state, "")


def test_each_shape_has_a_plan_of_its_own() -> None:
    model, batch = blocks()
    train(model, square, batch, planned(1.0), steps=1)
    need = plan_of(model).unplanned_peak_bytes
    model, batch = blocks()
    trained = train(model, square, batch, planned(int(0.9 * need)), steps=1)
    trained.loss_fn(model, batch[0][:8]).backward()
    first, second = plans_of(model)
    assert plan_of(model) is second
    assert second.is_empty
    assert not first.is_empty


def test_a_forward_whose_result_was_dropped_is_no_first_half_of_a_step() -> None:
    model, batch = blocks(dropout=0.0)
    trained = train(model, square, batch, planned("1GB"), steps=1)
    trained.loss_fn(model, *batch)  # evaluated, with gradients enabled and never asked for
    trained.loss_fn(model, batch[0][:8]).backward()
    assert len(plans_of(model)) == 2


def test_evaluation_between_steps_needs_no_plan() -> None:
    model, batch = blocks(dropout=0.0)
    trained = train(model, square, batch, planned(0.9), steps=1)
    with torch.no_grad():
        loss = trained.loss_fn(model, *batch)
    assert torch.allclose(loss, square(model, *batch))
    assert len(plans_of(model)) == 1


def test_a_graph_break_is_an_error_that_shows_the_break() -> None:
    def broken(model: nn.Module, x: Tensor) -> Tensor:
        hidden = model(x)
        torch._dynamo.graph_break()
        return hidden.square().mean()

    model, batch = blocks()
    with pytest.raises(GraphBreakError, match=r"several graphs at .*test_backend\.py:\d+"):
        train(model, broken, batch, planned(0.9))


def test_a_step_whose_functions_are_compiled_one_by_one_is_an_error_too() -> None:
    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = Blocks()

        def forward(self, x: Tensor) -> Tensor:
            try:  # Dynamo leaves this function alone, and compiles each one that it calls
                for _ in range(2):
                    x = self.blocks(x)
                    torch._dynamo.graph_break()
            finally:
                x = x + 1
            return x

    batch = (torch.randn(32, 16),)
    with pytest.raises(GraphBreakError, match="several graphs"):
        train(Broken(), square, batch, planned(0.95))


def test_a_symbolic_shape_is_rejected_with_the_remedy() -> None:
    model, batch = blocks()
    torch._dynamo.reset()
    compiled = torch.compile(square, backend=planned(0.9), dynamic=True)
    with pytest.raises(CheckpointingError, match="dynamic=False"):
        compiled(model, *batch)


def test_the_backend_goes_by_name_with_options_or_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = blocks()
    torch._dynamo.reset()
    options = {"memory_budget": 0.9, "execution": "eager"}
    torch.compile(square, backend="recompute", options=options, dynamic=False)(model, *batch).backward()
    assert not plan_of(model).is_empty
    monkeypatch.setenv("RECOMPUTE_MEMORY_BUDGET", "0.9")
    monkeypatch.setenv("RECOMPUTE_EXECUTION", "eager")
    other, _ = blocks()
    torch._dynamo.reset()
    torch.compile(square, backend="recompute", dynamic=False)(other, *batch).backward()
    assert plan_of(other).table().equals(plan_of(model).table())


def test_by_name_without_a_budget_the_error_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECOMPUTE_MEMORY_BUDGET", raising=False)
    model, batch = blocks()
    torch._dynamo.reset()
    with pytest.raises(CheckpointingError, match="RECOMPUTE_MEMORY_BUDGET"):
        torch.compile(square, backend="recompute", dynamic=False)(model, *batch)


def test_plan_of_a_model_that_was_not_compiled_says_so() -> None:
    with pytest.raises(CheckpointingError, match="run one step first"):
        plan_of(Blocks())


def test_planning_warns_of_nothing() -> None:
    model, batch = blocks()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(model, square, batch, planned(0.9), steps=1)


class Overrun:
    """An allocator that reports more than the budget in the given steps, counted from each compilation."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, excess: int, times: int) -> None:
        self.left = times

        def before_call(first_steps: FirstSteps) -> None:
            first_steps.calls += 1
            if first_steps.calls == 2 and self.left > 0:
                self.left -= 1
                step = first_steps.report.__self__  # type: ignore[attr-defined]
                first_steps.report(step.plan.budget_bytes + excess)

        monkeypatch.setattr(FirstSteps, "before_call", before_call)


@pytest.mark.slow
def test_a_step_that_takes_more_than_predicted_is_planned_for_less_and_trains_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    expected, batch = blocks(count=8)
    train(expected, square, batch, "aot_eager", steps=5)
    model, _ = blocks(count=8)
    need = plan_of(train(model, square, batch, planned(1.0), steps=1).model).unplanned_peak_bytes
    model, _ = blocks(count=8)
    Overrun(monkeypatch, excess=4096, times=1)
    by = planned(int(0.95 * need))
    train(model, square, batch, by, steps=5)
    first, second = plans_of(model)
    assert [plan is other for plan, other in zip(by.plans, (first, second), strict=True)] == [True, True]
    assert second.recompilations == 1
    assert second.plan.predicted_peak_bytes <= first.budget_bytes - 4096
    assert_equal(model.state_dict(), expected.state_dict(), "")


def test_a_step_that_takes_more_fits_a_fraction_of_an_unplanned_peak_that_is_as_much_higher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, batch = blocks(count=8)
    Overrun(monkeypatch, excess=1024, times=9)
    by = planned(1.0)
    train(model, square, batch, by, steps=3)
    [plan] = by.plans  # it is not compiled again
    assert plan.is_empty
    assert plan.budget_bytes == plan.unplanned_peak_bytes == plan.measured_peak_bytes


@pytest.mark.slow
def test_a_step_that_always_takes_more_is_rejected_with_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = blocks(count=8)
    need = plan_of(train(model, square, batch, planned(1.0), steps=1).model).unplanned_peak_bytes
    model, _ = blocks(count=8)
    Overrun(monkeypatch, excess=1024, times=9)
    with pytest.raises(BudgetError, match=r"the step takes .* more, planned 3 times: use at least"):
        train(model, square, batch, planned(int(0.97 * need)), steps=9)


@pytest.mark.parametrize(
    ("mode", "execution", "said"),
    [
        ("reduce-overhead", "inductor", 'mode="reduce-overhead": CUDA graphs need execution="inductor" and a GPU'),
        ("reduce-overhead", "eager", 'mode="reduce-overhead": CUDA graphs need execution="inductor" and a GPU'),
        ("max-autotune", "inductor", "mode='max-autotune': choose one of default, reduce-overhead"),
    ],
)
def test_a_mode_that_a_plan_cannot_keep_is_rejected_and_the_model_is_as_it_was(
    mode: str, execution: str, said: str
) -> None:
    model, batch = blocks()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    checkpointing.fit(model, 1.0, mode=mode, execution=execution)
    with pytest.raises(CheckpointingError) as error:
        square(model, *batch)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert_equal(model.state_dict(), before, "")
