"""The traced step leaves parameters, buffers, optimizer state and loss bit for bit as eager steps do."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW

from profiler import trace_train_step
from profiler.models import NAMES, build
from tests.profiler.eager_steps import assert_same_as_eager, eager_step, one_group

OPTIMIZERS = {
    "sgd": lambda groups: SGD(groups, lr=0.05),
    "sgd momentum": lambda groups: SGD(groups, lr=0.05, momentum=0.9),
    "sgd nesterov decay": lambda groups: SGD(groups, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd dampening": lambda groups: SGD(groups, lr=0.05, momentum=0.9, dampening=0.5),
    "sgd foreach": lambda groups: SGD(groups, lr=0.05, momentum=0.9, weight_decay=0.01, foreach=True),
    "sgd fused": lambda groups: SGD(groups, lr=0.05, momentum=0.9, fused=True),
    "sgd maximize": lambda groups: SGD(groups, lr=0.05, maximize=True),
    "adam": lambda groups: Adam(groups, lr=0.01),
    "adam amsgrad decay": lambda groups: Adam(groups, lr=0.01, amsgrad=True, weight_decay=0.01),
    "adam foreach": lambda groups: Adam(groups, lr=0.01, foreach=True),
    "adam foreach amsgrad": lambda groups: Adam(groups, lr=0.01, foreach=True, amsgrad=True),
    "adam fused": lambda groups: Adam(groups, lr=0.01, fused=True, amsgrad=True),
    "adamw": lambda groups: AdamW(groups, lr=0.01),
    "adamw foreach": lambda groups: AdamW(groups, lr=0.01, foreach=True),
    "adamw fused": lambda groups: AdamW(groups, lr=0.01, fused=True),
    "adamw tensor lr": lambda groups: AdamW(groups, lr=torch.tensor(0.01), fused=True),
}


class Small(nn.Module):
    """Batch norm, dropout, a layer that is used twice and one that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.dropout = nn.Dropout(0.4)
        self.twice = nn.Linear(8, 8)
        self.unused = nn.Linear(2, 2)
        self.last = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.relu(self.norm(self.first(x))))
        return self.last(torch.relu(self.twice(torch.relu(self.twice(x)))))


def mean_square(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.mse_loss(model(x), y)


def small(steps: int = 3) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(3)
    return Small(), [(torch.randn(5, 6), torch.randn(5, 3)) for _ in range(steps)]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(name: str) -> None:
    model, batches = small()
    assert_same_as_eager(model, mean_square, OPTIMIZERS[name], batches)


@pytest.mark.parametrize("name", ["sgd dampening", "adam", "adamw foreach", "adamw fused"])
def test_an_optimizer_that_has_already_run(name: str) -> None:
    model, batches = small()
    assert_same_as_eager(model, mean_square, OPTIMIZERS[name], batches, eager_steps_before=2)


TINY = [name for name in NAMES if name.startswith("tiny_")]


@pytest.mark.parametrize(
    ("name", "dropout"), [(name, p) for name in TINY for p in (0.0, 0.2) if not (p and "resnet" in name)]
)
def test_tiny_models_with_the_same_dropout_masks(name: str, dropout: float) -> None:
    problem = build(name, dropout=dropout)
    assert_same_as_eager(problem.model, problem.loss_fn, OPTIMIZERS["adamw"], [problem.batch] * 3)


def test_two_parameter_groups() -> None:
    def groups(model: nn.Module) -> list[dict[str, Any]]:
        assert isinstance(model, Small)
        last = list(model.last.parameters())
        rest = [p for p in model.parameters() if all(p is not q for q in last)]
        return [{"params": rest, "weight_decay": 0.1}, {"params": last, "lr": 0.003}]

    model, batches = small()
    assert_same_as_eager(model, mean_square, OPTIMIZERS["adamw"], batches, groups=groups)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 8)
        self.body = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.body(self.embedding(ids))))


def token_loss(model: nn.Module, ids: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten())


def test_tied_weights_are_one_parameter() -> None:
    torch.manual_seed(0)
    ids = torch.randint(11, (3, 7))
    step = assert_same_as_eager(Tied(), token_loss, OPTIMIZERS["adam"], [(ids,)] * 3)
    assert [item.name for item in step.lifted if item.kind == "PARAM"] == [
        "embedding.weight",
        "body.weight",
        "body.bias",
    ]


@pytest.mark.parametrize("cache", [True, False])
def test_autocast_of_a_weight_that_is_used_twice(cache: bool) -> None:
    def autocast_loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            y_hat = model(x)
        return nn.functional.mse_loss(y_hat.float(), y)

    model, batches = small()
    step = assert_same_as_eager(model, autocast_loss, OPTIMIZERS["adam"], batches)
    casts = [node for node in step.nodes if str(node.target) == "aten._to_copy.default"]
    assert casts
    with torch.autocast("cpu", torch.bfloat16):  # casts are in the graph, and are not made again around it
        assert step(*batches[0]).dtype is torch.float32


def test_batch_of_any_nesting() -> None:
    def nested_loss(model: nn.Module, inputs: dict[str, Any], scale: float) -> Tensor:
        (x, y), rest = inputs["pair"], inputs["rest"]
        return scale * mean_square(model, x, y) + rest[0]["z"].sum()

    model, pairs = small()
    batches = [({"pair": pair, "rest": [{"z": torch.ones(2)}]}, 0.5) for pair in pairs]
    assert_same_as_eager(model, nested_loss, OPTIMIZERS["sgd"], batches)


def test_same_tensor_twice_in_the_batch() -> None:
    def both(model: nn.Module, x: Tensor, again: Tensor) -> Tensor:
        return model(x).square().mean() + again.mean()

    model, pairs = small()
    assert_same_as_eager(model, both, OPTIMIZERS["sgd"], [(x, x) for x, _ in pairs])


class Reassigning(nn.Module):
    """A buffer that is replaced, a tensor that is neither buffer nor parameter, a counter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.register_buffer("average", torch.zeros(6))
        self.scale = torch.tensor(1.5)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return self.linear(x - self.average) * self.scale


def test_buffer_that_the_model_replaces() -> None:
    _, batches = small()
    model = Reassigning()
    assert_same_as_eager(model, mean_square, OPTIMIZERS["sgd"], batches)
    assert model.calls == 0, "tracing leaves no trace of its own in the model"


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(6, 4, batch_first=True)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.unsqueeze(1))[0][:, -1])


def test_recurrent_layer() -> None:
    _, batches = small()
    with torch.backends.mkldnn.flags(enabled=False):
        assert_same_as_eager(Recurrent(), mean_square, OPTIMIZERS["adam"], batches)


def test_step_after_loading_a_checkpoint_uses_the_loaded_state() -> None:
    model, batches = small()
    optimizer = OPTIMIZERS["adam"](one_group(model))
    step = trace_train_step(model, mean_square, optimizer, batches[0])
    step(*batches[0])
    old = [state["step"] for state in optimizer.state.values()]
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))  # every state is another tensor now
    step(*batches[1])
    assert {counter.item() for counter in old} == {1.0}
    counters = {state["step"].item() for state in optimizer.state.values()}
    assert counters == {2.0}


def test_gradients_of_the_model_are_left_alone() -> None:
    model, batches = small()
    optimizer = OPTIMIZERS["sgd"](one_group(model))
    eager_step(model, mean_square, optimizer, batches[0])
    before = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    step = trace_train_step(model, mean_square, optimizer, batches[0])
    step(*batches[1])
    after = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], gradient) for name, gradient in after.items())
