"""Whatever way the step reaches a tensor of the user's, it trains as in eager, or the trace says why it cannot.

Each model or loss below keeps something where a tracer could overlook it. The judge is three eager steps of a twin.
"""

import functools
import gc
import random
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.checkpoint import checkpoint

from profiler import BatchMismatchError, StaleStepError, TracedStep, TraceError, trace_train_step
from tests.profiler.eager_steps import eager_step, state_by_name

Loss = Callable[..., Tensor]
Made = tuple[nn.Module, Loss, Any]  # model, loss, and whatever else must end in the same state


def square(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().mean()


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


class Layer(nn.Module):
    """A linear layer whose forward is given, with attributes of its own."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **attributes: Any) -> None:
        super().__init__()
        self.l = nn.Linear(6, 6)
        self.run = forward
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def sgd(model: nn.Module) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def batches() -> list[tuple[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [(torch.randn(16, 6, generator=generator),) for _ in range(3)]


def trace(model: nn.Module, loss_fn: Loss = square, batch: Any = None) -> TracedStep:
    return trace_train_step(model, loss_fn, sgd(model), batch or batches()[0])


def tensors_of(kept: Any) -> list[Tensor]:
    return list(kept.state_dict().values()) if isinstance(kept, nn.Module) else list(kept() if callable(kept) else [])


def assert_equal_to_eager(make: Callable[[], Made]) -> None:
    ends = []
    for traced in (False, True):
        torch.manual_seed(0)
        model, loss_fn, kept = make()
        optimizer = sgd(model)
        run: Any = functools.partial(_eager, model, loss_fn, optimizer)
        if traced:
            before = [tensor.clone() for tensor in [*model.state_dict().values(), *tensors_of(kept)]]
            run = trace_train_step(model, loss_fn, optimizer, batches()[0])
            after = [*model.state_dict().values(), *tensors_of(kept)]
            assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)), "the trace changed something"
        torch.manual_seed(1)
        losses = [run(*batch) for batch in batches()]
        states = [*model.state_dict().values(), *state_by_name(model, optimizer).values(), *tensors_of(kept)]
        ends.append([*losses, *states])
    for eager, traced_value in zip(*ends, strict=True):
        assert torch.equal(eager, traced_value)


def _eager(model: nn.Module, loss_fn: Loss, optimizer: Any, *batch: Any) -> Tensor:
    return eager_step(model, loss_fn, optimizer, batch)


def weights_in_a_partial() -> Made:
    model = net()
    return model, functools.partial(lambda ws, m, x: square(m, x) + sum(w.norm() for w in ws), [*model.parameters()]), 0


def weights_in_the_models_own_list() -> Made:
    model = Layer(lambda self, x: F.linear(x, self.ws[0]))
    model.ws = [model.l.weight]  # type: ignore[assignment]
    return model, square, None


def weights_known_by_identity() -> Made:
    model = net()
    decayed = {id(p) for p in model.parameters() if p.dim() > 1}
    return model, lambda m, x: square(m, x) + sum(p.abs().sum() for p in m.parameters() if id(p) in decayed), None


def a_view_of_a_weights_data() -> Made:
    model = net()
    data = model[0].weight.data
    return model, lambda m, x: square(m, x) * data.norm(), None


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.t()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient @ weight, gradient.t() @ x


def a_weight_handed_to_an_autograd_function() -> Made:
    model = net()
    weight = model[0].weight
    return model, lambda m, x: square(m, x) + Product.apply(x, weight).square().mean(), None


def gradients_inside_the_loss() -> Made:
    model = net()
    saved = list(model.parameters())

    def penalized(m: nn.Module, x: Tensor) -> Tensor:
        loss = square(m, x)
        return loss + sum(g.square().sum() for g in torch.autograd.grad(loss, saved, create_graph=True))

    return model, penalized, None


def a_checkpoint_whose_weights_are_in_a_closure() -> Made:
    model = net()
    weight = model[0].weight
    return model, lambda m, x: checkpoint(lambda t: (t @ weight.t()).tanh(), x, use_reentrant=False).mean(), None


def checkpointed_attention_without_dropout() -> Made:
    def forward(self: Any, x: Tensor) -> Tensor:
        return checkpoint(lambda t: _attention(self.l(t)), x, use_reentrant=False)

    return Layer(forward), square, None


def _attention(x: Tensor) -> Tensor:
    heads = x.view(2, 2, 4, 6)
    return F.scaled_dot_product_attention(heads, heads, heads)


def a_frozen_critic_with_statistics() -> Made:
    critic = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).requires_grad_(False)
    return net(), lambda m, x: critic(m(x)).mean(), critic


def a_teacher_that_follows() -> Made:
    teacher, model = net().requires_grad_(False), net()

    def distilled(m: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            for old, new in zip(teacher.parameters(), m.parameters(), strict=True):
                old.lerp_(new, 0.1)
            target = teacher(x)
        return (m(x) - target - 1).square().mean()

    return model, distilled, teacher


def buffers_handed_on() -> Made:
    def forward(self: Any, x: Tensor) -> Tensor:
        out = self.l(x) * self.prev + self.cur
        self.prev, self.cur = self.cur, x.detach().mean(0)
        return out

    model = Layer(forward)
    model.register_buffer("cur", torch.zeros(6))
    model.register_buffer("prev", torch.ones(6))
    return model, square, None


def a_queue_in_a_list() -> Made:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.queue.append(self.l(x).detach().mean(0))
        return self.l(x) - self.queue.pop(0)

    model = Layer(forward, queue=[torch.zeros(6), torch.ones(6)])
    return model, square, None


def a_plain_attribute_replaced() -> Made:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return self.l(x - self.average)

    model = Layer(forward, average=torch.zeros(6))
    return model, square, lambda: [model.average]


def a_variable_of_a_closure() -> Made:
    last = torch.zeros(())

    def loss_fn(m: nn.Module, x: Tensor) -> Tensor:
        nonlocal last
        loss = square(m, x) + last
        last = loss.detach() * 0.1
        return loss

    return net(), loss_fn, lambda: [last]


def data_assigned() -> Made:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.l.weight.data = self.l.weight.data.clamp(-0.1, 0.1)
        return torch.sigmoid(self.l(x))

    return Layer(forward), square, None


def spectral_norm_that_aliases_its_weight() -> Made:
    return nn.Sequential(nn.utils.spectral_norm(nn.Linear(6, 8)), nn.Linear(8, 3)), square, None


def a_generator_of_the_models_own() -> Made:
    generator = torch.Generator().manual_seed(3)
    model = Layer(lambda self, x: self.l(x) * torch.rand(6, generator=self.generator), generator=generator)
    return model, square, lambda: [generator.get_state()]


def integers_between_two_numbers() -> Made:
    return Layer(lambda self, x: self.l(x) * torch.empty_like(x).random_(0, 5)), square, None


def an_auxiliary_loss_left_on_the_model() -> Made:
    def forward(self: Any, x: Tensor) -> Tensor:
        out = self.l(x)
        self.auxiliary = out.abs().mean()
        return out

    return Layer(forward, auxiliary=None), lambda m, x: square(m, x) + m.auxiliary, None


def a_counter_without_effect() -> Made:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        return self.l(x)

    return Layer(forward, calls=0), square, None


@functools.lru_cache
def positions(count: int) -> Tensor:
    return torch.linspace(0, 1, count)[:, None]


def a_cached_function() -> Made:
    positions.cache_clear()
    return net(), lambda m, x: square(m, x + positions(len(x))), None


def a_cache_in_a_dict() -> Made:
    def forward(self: Any, x: Tensor) -> Tensor:
        if len(x) not in self.cache:
            self.cache[len(x)] = torch.linspace(0, 1, len(x))[:, None]
        return self.l(x + self.cache[len(x)])

    return Layer(forward, cache={}), square, None


def a_loss_that_is_printed() -> Made:
    def loss_fn(m: nn.Module, x: Tensor) -> Tensor:
        loss = square(m, x)
        assert f"{loss:.3f} {loss.item():.3f} {loss}"
        return loss

    return net(), loss_fn, None


EQUAL = [
    weights_in_a_partial,
    weights_in_the_models_own_list,
    weights_known_by_identity,
    a_view_of_a_weights_data,
    a_weight_handed_to_an_autograd_function,
    gradients_inside_the_loss,
    a_checkpoint_whose_weights_are_in_a_closure,
    checkpointed_attention_without_dropout,
    a_frozen_critic_with_statistics,
    a_teacher_that_follows,
    buffers_handed_on,
    a_queue_in_a_list,
    a_plain_attribute_replaced,
    a_variable_of_a_closure,
    data_assigned,
    spectral_norm_that_aliases_its_weight,
    a_generator_of_the_models_own,
    integers_between_two_numbers,
    an_auxiliary_loss_left_on_the_model,
    a_counter_without_effect,
    a_cached_function,
    a_cache_in_a_dict,
    a_loss_that_is_printed,
]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", EQUAL, ids=lambda make: make.__name__)
def test_the_step_trains_as_in_eager(make: Callable[[], Made]) -> None:
    assert_equal_to_eager(make)


def test_clipping_over_a_saved_list_clips() -> None:
    def make() -> tuple[nn.Module, torch.optim.SGD]:
        torch.manual_seed(0)
        model = nn.Linear(6, 6)
        saved = list(model.parameters())
        optimizer = torch.optim.SGD(saved, lr=1.0)
        optimizer.register_step_pre_hook(lambda *_: (nn.utils.clip_grad_norm_(saved, 0.01), None)[1])
        return model, optimizer

    (model, optimizer), (twin, twin_optimizer) = make(), make()
    trace_train_step(model, square, optimizer, batches()[0])(*batches()[0])
    eager_step(twin, square, twin_optimizer, batches()[0])
    assert torch.equal(model.weight, twin.weight)


def a_critic_that_learns() -> tuple[nn.Module, Loss, str]:
    critic = nn.Linear(3, 1)
    return net(), lambda m, x: critic(m(x)).mean(), r"critic\.weight .*\(1, 3\).*freeze it with requires_grad_\(False\)"


def a_transposed_weight_computed_before() -> tuple[nn.Module, Loss, str]:
    model = net()
    transposed = model[0].weight.t()
    return model, lambda m, x: (x @ transposed).mean(), "computed before the step and needs a gradient"


def a_buffer_that_the_step_makes() -> tuple[nn.Module, Loss, str]:
    def forward(self: Any, x: Tensor) -> Tensor:
        mean = self.l(x).detach().mean(0)
        self.mean = mean if self.mean is None else 0.9 * self.mean + 0.1 * mean
        return self.l(x) - self.mean

    return Layer(forward, mean=None), square, "depends on mean.*run one eager step"


def a_counter_that_scales() -> tuple[nn.Module, Loss, str]:
    def forward(self: Any, x: Tensor) -> Tensor:
        self.calls += 1
        return self.l(x) / self.calls

    return Layer(forward, calls=0), square, "depends on calls, which the step itself changes.*buffer"


def drawing(draw: Callable[[], float]) -> Callable[[], tuple[nn.Module, Loss, str]]:
    return lambda: (net(), lambda m, x: square(m, x) * draw(), "random.*pass it in the batch as a tensor")


OWN = numpy.random.default_rng(0)

REFUSED: dict[str, Callable[[], tuple[nn.Module, Loss, str]]] = {
    "a critic that learns": a_critic_that_learns,
    "a transposed weight": a_transposed_weight_computed_before,
    "a buffer that the step makes": a_buffer_that_the_step_makes,
    "a counter that scales": a_counter_that_scales,
    "random": drawing(random.random),
    "a rare branch": drawing(lambda: 0.0 if random.random() < 0.05 else 1.0),
    "numpy": drawing(lambda: float(numpy.random.beta(1, 1))),
    "a generator of numpy's": drawing(lambda: float(OWN.uniform())),
    "a seed": lambda: (net(), lambda m, x: square(m, x) + 0 * (torch.manual_seed(1) is None), "seeds"),
    "control flow": lambda: (
        net(),
        lambda m, x: torch.cond(x.sum() > 0, torch.sin, torch.cos, (m(x),)).mean(),
        r"torch\.where",
    ),
    "sparse inside": lambda: (net(), lambda m, x: torch.sparse.mm(torch.eye(16).to_sparse(), m(x)).mean(), "dense"),
    "a distribution that checks its values": lambda: (
        net(),
        lambda m, x: torch.distributions.Categorical(logits=m(x), validate_args=True).entropy().mean(),
        "validate_args=False",
    ),
    "scripted": lambda: (torch.jit.script(net()), square, "is scripted"),
    "lazy": lambda: (nn.Sequential(nn.LazyLinear(3)), square, "one forward of the model first"),
    "frozen inside": lambda: (net(), lambda m, x: square(m.requires_grad_(False), x * 1), "trainable"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", REFUSED)
def test_what_one_graph_cannot_hold_is_named_and_nothing_is_left_behind(what: str) -> None:
    model, loss_fn, message = REFUSED[what]()
    before = [dict(module.__dict__) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    states = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state(), OWN.bit_generator.state
    with pytest.raises(TraceError, match=message):
        trace(model, loss_fn)
    after = [dict(module.__dict__) for module in model.modules() if not isinstance(module, torch.jit.ScriptModule)]
    assert before == after
    assert random.getstate() == states[0]
    assert numpy.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])
    assert OWN.bit_generator.state == states[3]


def test_draws_without_effect_are_only_warned_of() -> None:
    with pytest.warns(UserWarning, match="same for other numbers"):
        trace(net(), lambda m, x: square(m, x) + 0 * (random.random() < 0))


def test_a_cache_from_before_a_freeze_holds_no_fake_tensor() -> None:
    """The garbage collector does not give what was there before `gc.freeze()`."""
    model, loss_fn, _ = a_cached_function()
    gc.freeze()
    assert all(known is not positions for known in gc.get_objects())
    trace(model, loss_fn)
    assert not isinstance(positions(16), FakeTensor)


def test_the_models_caches_hold_no_fake_tensor_and_a_second_trace_trains() -> None:
    model, loss_fn, _ = a_cache_in_a_dict()
    trace(model, loss_fn)
    assert model.cache == {}
    assert not isinstance(model(batches()[0][0]), FakeTensor)
    again = trace(model, loss_fn)
    before = model.l.weight.detach().clone()
    again(*batches()[0])
    assert not torch.equal(before, model.l.weight)
    assert not isinstance(positions(16), FakeTensor)


def distributed(kind: str) -> Iterator[nn.Module]:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        if kind == "DDP":
            yield nn.parallel.DistributedDataParallel(net())
        else:
            from torch.distributed.fsdp import fully_shard

            yield fully_shard(net(), mesh=torch.distributed.init_device_mesh("cpu", (1,)))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["DDP", "FSDP"])
def test_a_wrapper_that_communicates_in_hooks_is_refused_wherever_it_is_called(kind: str) -> None:
    for wrapper in distributed(kind):
        with pytest.raises(TraceError, match="hooks that a graph does not call"):
            trace(wrapper)
        if kind == "DDP":
            with pytest.raises(TraceError, match="hooks that a graph does not call"):
                trace(wrapper.module, functools.partial(lambda outer, _, x: square(outer, x), wrapper))


CHANGES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a submodule's mode": (lambda m: m[1].eval(), "module 1 was traced in train mode"),
    "a frozen layer": (lambda m: m[0].requires_grad_(False), "requires_grad of parameter 0.weight"),
    "assigned parameters": (
        lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}, assign=True),
        "parameter 0.weight is another object",
    ),
    "a gradient hook": (lambda m: m[0].weight.register_hook(lambda g: 2 * g), "0.weight has a gradient hook"),
    "a forward hook": (lambda m: m[2].register_forward_hook(lambda *_: None), "hook of module 2"),
    "another head": (lambda m: m.__setitem__(3, nn.Linear(8, 3)), "submodules of"),
    "one more layer": (lambda m: m.append(nn.Linear(3, 3)), "submodules of"),
    "another dtype": (lambda m: m.double(), "torch.float32.*float64"),
    "another dropout": (lambda m: setattr(m[2], "p", 0.9), r"2\.p was 0\.5"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_step_that_no_longer_fits_the_model_is_stale(what: str) -> None:
    change, message = CHANGES[what]
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    step = trace(model)
    step(*batches()[0])
    change(model)
    with pytest.raises(StaleStepError, match=message):
        step(*batches()[0])


def test_a_number_that_the_step_does_not_read_may_change() -> None:
    model = Layer(lambda self, x: self.l(x), epoch=0)
    step = trace(model)
    model.epoch = 1  # type: ignore[assignment]
    step(*batches()[0])


@dataclass
class Sample:
    x: Tensor
    label: str = "a"


@pytest.mark.parametrize(
    ("hold", "read"),
    [(lambda x: Sample(x), lambda b: b.x), (lambda x: UserDict(x=x, rest=[x]), lambda b: b["rest"][0])],
    ids=["dataclass", "mapping"],
)
def test_tensors_in_a_dataclass_or_mapping_are_inputs(hold: Any, read: Any) -> None:
    def make() -> Made:
        return net(), lambda m, x: square(m, read(x)), None

    torch.manual_seed(0)
    model, loss_fn, _ = make()
    step = trace(model, loss_fn, (hold(batches()[0][0]),))
    found = [step(hold(x)) for (x,) in batches()]
    torch.manual_seed(0)
    twin, loss_fn, _ = make()
    optimizer = sgd(twin)
    assert found == [eager_step(twin, loss_fn, optimizer, (hold(x),)) for (x,) in batches()]
    with pytest.raises(BatchMismatchError, match="structure"):
        step((batches()[0][0],))


def masked(model: nn.Module, x: Tensor, mask: Tensor) -> Tensor:
    """Skips the mask if it is all ones, as attention does."""
    positions = torch.arange(16)
    assert (positions.diff() == 1).all(), "a condition on constants"
    if mask.all():
        return model(x).square().mean()
    return (model(x) * mask[:, None]).square().mean()


@pytest.mark.parametrize("full", [True, False])
def test_a_condition_on_the_batch_takes_eagers_branch_and_is_asked_again_of_every_batch(full: bool) -> None:
    (x,) = batches()[0]
    ones = torch.ones(16)
    padded = ones.clone()
    padded[3:] = 0
    mask, other = (ones, padded) if full else (padded, ones)
    torch.manual_seed(0)
    model = net()
    step = trace(model, masked, (x, mask))
    multiplied = any("mul" in str(node.target) and node.meta["region"] == "loss" for node in step.nodes)
    assert multiplied is not full
    with pytest.raises(BatchMismatchError, match=f"decided {full} when the step was traced and {not full}"):
        step(x, other)
    torch.manual_seed(0)
    twin = net()
    assert step(x, mask) == eager_step(twin, masked, sgd(twin), (x, mask))


def test_hugging_faces_stock_attention_is_traced_on_eagers_path() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_layer=1, n_head=2, n_embd=16, vocab_size=50, n_positions=16, use_cache=False)

    def make() -> Made:
        return transformers.GPT2Model(config), lambda m, x: m(x.mul(9).abs().long())[0].square().mean(), None

    assert_equal_to_eager(make)


def test_experts_in_fp32_are_told_of_the_implementation_that_can_be_traced() -> None:
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MixtralConfig(**sizes, num_key_value_heads=2, num_local_experts=2, vocab_size=50)
    model = transformers.MixtralModel(config)
    ids = torch.arange(8)[None]
    with pytest.raises(TraceError, match=r'set_experts_implementation\("batched_mm"\)'):
        trace(model, lambda m, ids: m(ids)[0].mean(), (ids,))
    model.set_experts_implementation("batched_mm")
    assert trace(model, lambda m, ids: m(ids)[0].mean(), (ids,))(ids).isfinite()


class Opaque:
    def __init__(self) -> None:
        self.x = torch.ones(4, 6)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (numpy.ones((4, 6)), r"batch\[1\] is a NumPy ndarray.*torch\.as_tensor"),
        (Opaque(), r"batch\[1\] is a Opaque.*neither a tensor nor a plain constant"),
        ({"a": [lambda: 0]}, r"batch\[1\]\['a'\]\[0\] is a function"),
        (torch.eye(4).to_sparse(), r"tensor 1 of the batch is of layout torch\.sparse_coo.*to_dense"),
        (torch.eye(4).to_sparse_csr(), "torch.sparse_csr"),
    ],
    ids=["numpy", "object", "function", "coo", "csr"],
)
def test_a_leaf_that_would_stay_as_it_was_is_refused(leaf: Any, message: str) -> None:
    with pytest.raises(TraceError, match=message):
        trace(net(), lambda m, x, _: square(m, x), (batches()[0][0], leaf))


@pytest.mark.parametrize(("traced", "given"), [(1, True), (1, 1.0), (True, 1), (0.0, -0.0)])
def test_equal_constants_of_another_type_or_sign_are_other_constants(traced: Any, given: Any) -> None:
    step = trace(net(), lambda m, x, c: square(m, x) * c, (batches()[0][0], traced))
    with pytest.raises(BatchMismatchError, match="constant"):
        step(batches()[0][0], given)


def test_a_tensor_of_no_dimensions_in_the_batch_is_a_number_that_changes() -> None:
    step = trace_train_step(
        (model := net()), lambda m, x, c: square(m, x) * c, torch.optim.SGD(model.parameters(), lr=0.0),
        (batches()[0][0], torch.tensor(1.0)),
    )  # fmt: skip
    first, second = (step(batches()[0][0], torch.tensor(c)) for c in (1.0, 2.0))
    assert second == 2 * first
