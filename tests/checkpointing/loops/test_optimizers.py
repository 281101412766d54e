"""Every optimizer of PyTorch steps after a planned backward as after the unplanned one, and its state is foreseen."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD, AdamW, Optimizer
from torch.utils import _pytree as pytree

from checkpointing import plan_of
from checkpointing.compiled.memory.optimizer_memory import missing_optimizer_state
from tests.checkpointing.loops.loop import (
    Classifier,
    Deep,
    assert_trains_as_unplanned,
    backend,
    batches,
    loss_of,
    model_of,
    train,
)  # fmt: skip

pytestmark = pytest.mark.slow

CLASSES = [c for c in vars(torch.optim).values() if inspect.isclass(c) and issubclass(c, Optimizer)]
ORDINARY = sorted({c.__name__ for c in CLASSES} - {"Optimizer", "LBFGS", "Muon", "SparseAdam"})


def bytes_of_state(optimizer: Optimizer) -> int:
    return sum(v.nbytes for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor))


@pytest.mark.parametrize("name", ORDINARY)
def test_an_optimizer_of_pytorch_steps_and_its_state_is_in_the_prediction(name: str) -> None:
    made: list[tuple[Optimizer, int]] = []

    def make(model: nn.Module) -> list[Optimizer]:
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-2)
        to_come = sum(missing_optimizer_state(list(model.parameters()), torch.device("cpu")))
        made.append((optimizer, bytes_of_state(optimizer) + to_come))
        return [optimizer]

    plan = plan_of(assert_trains_as_unplanned(lambda model, by: train(model, by, make=make), model_of()))
    assert not plan.is_empty
    assert [predicted for _, predicted in made] == [bytes_of_state(optimizer) for optimizer, _ in made]


def test_muon_for_matrices_beside_adamw_for_the_rest() -> None:
    def make(model: nn.Module) -> list[Optimizer]:
        matrices = [p for p in model.parameters() if p.ndim == 2]
        rest = [p for p in model.parameters() if p.ndim != 2]
        return [torch.optim.Muon(matrices, lr=1e-2), AdamW(rest, lr=1e-2)]

    assert_trains_as_unplanned(lambda model, by: train(model, by, make=make), model_of())


def test_lbfgs_calls_the_planned_step_in_its_closure() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(loss_of, backend=by, dynamic=False)
        optimizer = torch.optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = compiled(model, *batches(1)[0])
            loss.backward()
            return loss

        return [optimizer.step(closure).detach() for _ in range(2)]

    assert not plan_of(assert_trains_as_unplanned(loop, model_of())).is_empty


def test_sparse_adam_refuses_dense_gradients_itself() -> None:
    with pytest.raises(RuntimeError, match="SparseAdam does not support dense gradients"):
        train(model_of(), backend(), make=lambda model: [torch.optim.SparseAdam(list(model.parameters()))])


@pytest.mark.parametrize(
    ("package", "options"),
    [("bitsandbytes", {"min_8bit_size": 256}), ("torchao", {"block_size": 64})],
)
def test_an_optimizer_with_states_of_eight_bits(package: str, options: dict[str, int]) -> None:
    optim = pytest.importorskip(f"{package}.optim")
    made: list[tuple[Optimizer, int]] = []

    def make(model: nn.Module) -> list[Optimizer]:
        optimizer = optim.AdamW8bit(model.parameters(), lr=1e-2, **options)
        made.append((optimizer, sum(missing_optimizer_state(list(model.parameters()), torch.device("cpu")))))
        return [optimizer]

    plan = plan_of(assert_trains_as_unplanned(lambda model, by: train(model, by, make=make), model_of()))
    assert not plan.is_empty
    for optimizer, predicted in made:
        tensors = [v for state in optimizer.state.values() for v in pytree.tree_leaves(state) if isinstance(v, Tensor)]
        assert predicted == sum(t.nbytes for t in tensors)


class Replacing(SGD):
    """Gives the model new parameters, and not new values of the old ones, in each step."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), lr=0.1)
        self.model = model

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step(closure)
        new = {id(p): nn.Parameter(p.detach().clone()) for p in self.model.parameters()}
        for module in self.model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                setattr(module, name, new[id(parameter)])
        self.param_groups[0]["params"] = list(self.model.parameters())


class Assigning(SGD):
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for parameter in self.param_groups[0]["params"]:
            parameter.data = parameter.data - 0.1 * parameter.grad


@pytest.mark.parametrize("kind", [Replacing, lambda model: Assigning(model.parameters(), lr=0.1)])
def test_an_optimizer_that_replaces_parameters_or_their_memory(kind: Any) -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(loss_of, backend=by, dynamic=False)
        optimizer = kind(model)
        losses = []
        for batch in batches(4):
            loss = compiled(model, *batch)
            loss.backward()
            optimizer.step()
            for parameter in model.parameters():
                parameter.grad = None
            losses.append(loss.detach())
        compiled(model, *batch).backward()
        return losses

    assert not plan_of(assert_trains_as_unplanned(loop, model_of())).is_empty


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16, sparse=True)
        self.classifier = Classifier()

    def forward(self, words: Tensor) -> Tensor:
        return self.classifier(self.embedding(words))


def test_an_embedding_with_sparse_gradients_trains_by_sparse_adam() -> None:
    draw = torch.Generator().manual_seed(1)
    data = [(torch.randint(50, (256,), generator=draw), torch.randint(5, (256,), generator=draw)) for _ in range(3)]

    def make(model: nn.Module) -> list[Optimizer]:
        assert isinstance(model, Words)
        return [torch.optim.SparseAdam(list(model.embedding.parameters())), AdamW(model.classifier.parameters())]

    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        losses = train(model, by, data=data, make=make)
        model.embedding.weight.grad = model.embedding.weight.grad.to_dense()  # type: ignore[union-attr]
        return losses

    assert_trains_as_unplanned(loop, model_of(Words))


def test_groups_have_their_own_learning_rates_and_one_is_added_between_steps() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        assert isinstance(model, Classifier)
        model.encoder.requires_grad_(False)
        optimizer = AdamW([{"params": model.head.parameters(), "lr": 1e-2, "weight_decay": 0.0}], lr=1e-3)
        losses = train(model, by, make=lambda _: [optimizer])
        model.encoder.requires_grad_(True)
        optimizer.add_param_group({"params": list(model.encoder.parameters()), "lr": 1e-3})
        return losses + train(model, by, make=lambda _: [optimizer])

    assert_trains_as_unplanned(loop, model_of(Deep))


def test_an_optimizer_per_parameter_steps_within_the_backward() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        optimizers = {parameter: AdamW([parameter], lr=1e-2) for parameter in model.parameters()}

        def step(parameter: Tensor) -> None:
            optimizers[parameter].step()  # type: ignore[index]
            optimizers[parameter].zero_grad()  # type: ignore[index]

        for parameter in model.parameters():
            parameter.register_post_accumulate_grad_hook(step)
        return train(model, by, make=lambda _: [])

    assert not plan_of(assert_trains_as_unplanned(loop, model_of())).is_empty


def test_a_compiled_optimizer_step() -> None:
    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(loss_of, backend=by, dynamic=False)
        optimizer = AdamW(model.parameters(), lr=1e-2)
        step = torch.compile(optimizer.step, backend="aot_eager")
        losses = []
        for batch in batches(3):
            optimizer.zero_grad()
            loss = compiled(model, *batch)
            loss.backward()
            step()
            losses.append(loss.detach())
        return losses

    assert_trains_as_unplanned(loop, model_of())


def test_a_scaler_that_skips_steps_in_float16() -> None:
    def in_float16(model: nn.Module, x: Tensor, labels: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.float16):
            return cross_entropy(model(x), labels)

    def loop(model: nn.Module, by: Any) -> list[Tensor]:
        compiled = torch.compile(in_float16, backend=by, dynamic=False)
        optimizer = SGD(model.parameters(), lr=1e-2, momentum=0.9)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
        losses, scales = [], []
        for batch in batches(12):
            optimizer.zero_grad()
            loss = compiled(model, *batch)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
            losses.append(loss.detach())
            scales.append(torch.tensor(scaler.get_scale()))
        assert [scale.item() for scale in scales[:2]] == [2.0**21, 2.0**20]  # two steps at least were skipped
        assert scales[-1] == scales[-2]  # and the last was not
        return losses + scales

    assert_trains_as_unplanned(loop, model_of(), planned=backend(solver="greedy"))


class Wrapper(Optimizer):
    """As Accelerate's: state and groups are those of the optimizer inside."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    state = property(lambda self: self.inner.state, lambda self, value: setattr(self.inner, "state", value))
    param_groups = property(
        lambda self: self.inner.param_groups, lambda self, value: setattr(self.inner, "param_groups", value)
    )

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)


class Twice(Optimizer):
    """As SAM: an optimizer of its own that steps another, whose groups it shares."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__([p for group in inner.param_groups for p in group["params"]], {})
        self.inner = inner
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.inner.step()
        self.inner.step()


@pytest.mark.parametrize("around", [Wrapper, Twice])
def test_an_optimizer_around_another_is_left_as_it_is_and_the_state_is_counted_once(around: Any) -> None:
    model = model_of()
    inner = AdamW(model.parameters())
    outer = around(inner)
    groups, state = copy.copy(inner.param_groups), inner.state
    predicted = missing_optimizer_state(list(model.parameters()), torch.device("cpu"))
    assert all(now is before for now, before in zip(inner.param_groups, groups, strict=True))
    assert inner.state is state
    assert not state
    loss_of(model, *batches(1)[0]).backward()
    outer.step()
    assert sum(predicted) == bytes_of_state(inner)


@pytest.mark.parametrize("around", [Wrapper, Twice])
def test_an_optimizer_around_another_trains_as_unplanned(around: Any) -> None:
    assert_trains_as_unplanned(
        lambda model, by: train(model, by, make=lambda m: [around(AdamW(m.parameters(), lr=1e-2))]), model_of()
    )
