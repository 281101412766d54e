"""What cannot be traced or run is refused with a sentence that names the place and says what to change."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from profiler import (
    BatchMismatchError,
    GraphProfiler,
    NotProfiledError,
    StaleStepError,
    TracedStep,
    TraceError,
    trace_train_step,
)
from tests.profiler.eager_steps import assert_same_as_eager, one_group


class Inner(nn.Module):
    def __init__(self, act: Any) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def model_with(act: Any) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), Inner(act), nn.Linear(4, 4))


def mean(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).mean()


def trace(model: nn.Module, loss_fn: Any = mean, optimizer: Any = None, batch: Any = None) -> TracedStep:
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    return trace_train_step(model, loss_fn, optimizer, (torch.randn(3, 4),) if batch is None else batch)


def branch(x: Tensor) -> Tensor:
    return x * 2 if x.sum() > 0 else x


UNTRACEABLE = {
    "a condition on a value": (branch, r"module 1: .*torch\.where"),
    "a shape that depends on data": (
        lambda x: x[x > 0].sum() * x,
        r"module 1: the operator aten\.nonzero.*torch\.where",
    ),
    "numpy": (lambda x: x * float(x.detach().numpy().sum()), r"module 1: .*numpy"),
    "a compiled part": (
        torch.compile(torch.sin, backend="eager"),
        r"module 1: .*compiled",
    ),
}


@pytest.mark.parametrize("what", UNTRACEABLE)
def test_untraceable_model_is_named_by_module(what: str) -> None:
    act, message = UNTRACEABLE[what]
    model = model_with(act)
    before = dict(model.named_parameters())
    with pytest.raises(TraceError, match=message):
        trace(model)
    assert all(p is before[name] for name, p in model.named_parameters()), "the model is as it was"


def test_checkpointed_dropout_is_refused_and_checkpoint_without_it_is_not() -> None:
    class Checkpointed(nn.Module):
        def __init__(self, p: float) -> None:
            super().__init__()
            self.linear, self.dropout = nn.Linear(4, 4), nn.Dropout(p)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = checkpoint(lambda x: self.dropout(self.linear(x).relu()), x, use_reentrant=False)
            return y

    with pytest.raises(TraceError, match=r"module 1\.dropout: .*random numbers.*checkpoint"):
        trace(nn.Sequential(nn.Linear(4, 4), Checkpointed(0.5)))
    model = nn.Sequential(nn.Linear(4, 4), Checkpointed(0.0))
    batch = (torch.randn(3, 4),)
    step = assert_same_as_eager(
        model, mean, lambda groups: torch.optim.SGD(groups, lr=0.1), [batch, batch], groups=one_group
    )
    again = [n for n in step.nodes if n.meta["region"] == "backward" and "relu" in str(n.target)]
    assert again, "the checkpointed part runs again in the backward"


def test_rnn_whose_fake_kernel_is_wrong() -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this build has no oneDNN, whose LSTM this is about")
    with pytest.raises(TraceError, match=r"mkldnn_rnn_layer.*mkldnn\.flags"):
        trace(nn.LSTM(4, 4), loss_fn=lambda model, x: model(x)[0].mean())


def test_sparse_gradient() -> None:
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Linear(4, 4))
    with pytest.raises(TraceError, match=r"0\.weight.*sparse_coo.*sparse=False"):
        trace(model, batch=(torch.tensor([1, 2]),))


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, torch.optim.RMSprop, torch.optim.Adagrad])
def test_unsupported_optimizer(kind: Any) -> None:
    model = nn.Linear(4, 4)
    with pytest.raises(TraceError, match=f"{kind.__name__}.*SGD, Adam or AdamW"):
        trace(model, optimizer=kind(model.parameters()))


def test_optimizer_with_a_parameter_of_another_model() -> None:
    model, other = nn.Linear(4, 4), nn.Linear(2, 2)
    optimizer = torch.optim.SGD([*model.parameters(), *other.parameters()], lr=0.1)
    with pytest.raises(TraceError, match=re.escape("(2, 2)") + ".*register it on the model"):
        trace(model, optimizer=optimizer)


def test_loss_that_is_no_scalar() -> None:
    with pytest.raises(TraceError, match=re.escape("shape (3, 4)") + ".*mean"):
        trace(nn.Linear(4, 4), loss_fn=lambda model, x: model(x))


def test_loss_without_a_gradient() -> None:
    with pytest.raises(TraceError, match="trainable parameter"):
        trace(nn.Linear(4, 4), loss_fn=lambda model, x: model(x).mean().detach())


def test_model_without_trainable_parameters() -> None:
    model = nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(TraceError, match="no trainable parameters"):
        trace(model.requires_grad_(False), optimizer=optimizer)


def test_hook_on_a_parameter() -> None:
    model = nn.Linear(4, 4)
    model.weight.register_hook(lambda gradient: gradient * 2)
    with pytest.raises(TraceError, match="weight has a gradient hook"):
        trace(model)


@pytest.mark.parametrize("batch", [torch.randn(3, 4), {"x": torch.randn(3, 4)}])
def test_batch_that_is_no_list_of_arguments(batch: Any) -> None:
    with pytest.raises(TraceError, match="tuple or list"):
        trace(nn.Linear(4, 4), batch=batch)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.randn(2, 4),), re.escape("(3, 4)") + ".*" + re.escape("(2, 4)")),
        ((torch.randn(3, 4, dtype=torch.float64),), "float32.*float64"),
        ((torch.randn(4, 3).t(),), "stride"),
        ((torch.randn(3, 4), 1), "structure"),
    ],
)
def test_batch_of_another_shape_is_refused_and_nothing_changes(batch: Any, message: str) -> None:
    model = nn.Linear(4, 4)
    step = trace(model)
    before = model.weight.clone()
    with pytest.raises(BatchMismatchError, match=message):
        step(*batch)
    assert torch.equal(model.weight, before)


def test_constant_of_the_batch_that_changes() -> None:
    step = trace(nn.Linear(4, 4), loss_fn=lambda model, x, k: k * model(x).mean(), batch=(torch.randn(3, 4), 2.0))
    with pytest.raises(BatchMismatchError, match=r"constant 2\.0.*constant 3\.0"):
        step(torch.randn(3, 4), 3.0)


def test_weight_decay_that_changes() -> None:
    model = nn.Linear(4, 4)
    step = trace(model)
    step.optimizer.param_groups[0]["weight_decay"] = 0.01
    with pytest.raises(StaleStepError, match=r"weight_decay of parameter group 0 was 0 .* 0\.01"):
        step(torch.randn(3, 4))


def test_optimizer_that_changes() -> None:
    model = nn.Linear(4, 4)
    step = trace(model, optimizer=torch.optim.Adam(model.parameters()))
    step.optimizer.state.clear()
    with pytest.raises(StaleStepError, match=r"OPT_STATE weight\.step is no longer there"):
        step(torch.randn(3, 4))
    step.optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
    with pytest.raises(StaleStepError, match=r"had 1 parameter groups .* has 2"):
        step(torch.randn(3, 4))


def test_mode_that_changes() -> None:
    model = nn.Linear(4, 4)
    step = trace(model)
    model.eval()
    with pytest.raises(StaleStepError, match="train mode"):
        step(torch.randn(3, 4))


def test_numbers_before_run() -> None:
    profiler = GraphProfiler(trace(nn.Linear(4, 4)))
    with pytest.raises(NotProfiledError, match="call run"):
        profiler.node_stats()
    assert sum(profiler.peak_breakdown().values()) == profiler.memory().peak_bytes  # the forecast needs no run


def test_profile_of_no_iterations() -> None:
    profiler = GraphProfiler(trace(nn.Linear(4, 4)))
    with pytest.raises(ValueError, match="profile_iters=0"):
        profiler.run(torch.randn(3, 4), profile_iters=0)
