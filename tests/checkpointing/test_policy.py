"""A plan as a policy of torch.utils.checkpoint: what is saved, what runs again, and the same step bitwise."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

import checkpointing
from checkpointing import apply_activation_checkpointing, read_policy
from checkpointing.errors import CheckpointingError, DecisionsFileError
from checkpointing.policy import SelectivePolicy
from profiler.models import build
from tests.checkpointing.compiled.training import Blocks, square
from tests.checkpointing.loops.loop import batches, loss_of, model_of
from tests.profiler.eager_steps import LiveBytes, assert_equal

pytestmark = pytest.mark.slow

Step = tuple[nn.Module, Callable[..., Tensor], Sequence[Any]]
ROWS = 64
OF_FORWARD = ("addmm", "gelu", "silu")  # names that no operator of a backward has


class Pyramid(nn.Module):
    """Each value has a size of its own, and the backward reads every one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, width + 8), activation())
            for width, activation in zip(range(16, 80, 8), [nn.GELU, nn.SiLU] * 4, strict=True)
        )
        self.last = nn.Linear(80, 3)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return self.last(x)


def tiny(name: str) -> Step:
    task = build(name, batch_size=4, seq_len=32)
    return task.model, task.loss_fn, task.batch


def planned(step: Step, budget: float = 0.85, **options: Any) -> checkpointing.CompiledPlan:
    torch._dynamo.reset()
    model, loss_fn, batch = step
    by = checkpointing.backend(budget, execution="eager", **options)
    torch.compile(loss_fn, backend=by, dynamic=False)(copy.deepcopy(model), *batch).backward()
    [plan] = by.plans
    return plan


def assert_same_step(step: Step, policy: SelectivePolicy, wrap: Callable[[nn.Module], None] | None = None) -> None:
    """Loss, gradients, buffers and the generator after a step with the policy are those of a plain step."""
    model, loss_fn, batch = step
    results = []
    for with_policy in (True, False):
        mine = copy.deepcopy(model)
        torch.manual_seed(5)
        if with_policy and wrap is not None:
            wrap(mine)
            loss = loss_fn(mine, *batch)
        elif with_policy:
            loss = checkpoint(loss_fn, mine, *batch, use_reentrant=False, context_fn=policy.contexts(mine))
        else:
            loss = loss_fn(mine, *batch)
        loss.backward()
        gradients = {name: p.grad for name, p in mine.named_parameters() if p.grad is not None}
        results.append((loss, gradients, dict(mine.named_buffers()), torch.get_rng_state()))
    (loss, gradients, buffers, state), (true_loss, true_gradients, true_buffers, true_state) = results
    assert torch.equal(loss, true_loss)
    assert_equal(gradients, true_gradients, "")
    assert_equal(buffers, true_buffers, "")
    assert torch.equal(state, true_state)


class Ran(TorchDispatchMode):
    """Counts (operator, bytes of its first result) of what really runs."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[tuple[str, int]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        first = result[0] if isinstance(result, tuple | list) else result
        if isinstance(first, Tensor):
            self.count[func.overloadpacket.__name__, first.untyped_storage().nbytes()] += 1
        return result


@pytest.mark.parametrize(
    ("rules", "on_request"),
    [({}, set()), ({"keep": ["layers.2"], "recompute": ["layers.5.0"]}, {("addmm", 4 * ROWS * 64)})],
)
def test_exactly_what_the_plan_keeps_is_saved_and_exactly_what_it_recomputes_runs_again(
    rules: Any, on_request: set[tuple[str, int]]
) -> None:
    torch.manual_seed(0)
    model = Pyramid()
    x = torch.randn(ROWS, 16)
    plan = planned((model, square, [x]), 0.88, **rules)
    table = plan.table()
    forward = table[table.operator.str.split(".").str[1].isin(OF_FORWARD)]
    expected = {
        (o.split(".")[1], size) for o, size in forward[forward.decision == "recompute"][["operator", "bytes"]].values
    }
    kept = {(o.split(".")[1], size) for o, size in forward[forward.decision == "keep"][["operator", "bytes"]].values}
    assert expected
    assert kept
    assert not plan.to_policy().table().why.any()

    with Ran() as first, LiveBytes([*model.parameters(), x]) as alive:
        context = plan.to_policy().contexts(model)
        loss = checkpoint(square, model, x, use_reentrant=False, context_fn=context)
        after = torch.zeros(1)  # what the last operator has read is gone by then
    static = sum(t.nbytes for t in [*model.parameters(), x])
    assert alive.counts[-1] - static == table[table.decision == "keep"].bytes.sum() + loss.nbytes + after.nbytes
    with Ran() as again:
        loss.backward()
    ran_again = {key for key in again.count if key[0] in OF_FORWARD}
    assert ran_again == expected | on_request
    assert all(again.count[key] == 1 for key in ran_again)
    assert kept <= first.count.keys()


@pytest.mark.parametrize("name", ["classifier", "tiny_bert", "tiny_gpt2", "tiny_vit"])
def test_the_step_is_bitwise_the_plain_one_with_dropout_and_batch_norm(name: str) -> None:
    step = (model_of(), loss_of, batches(1)[0]) if name == "classifier" else tiny(name)
    policy = planned(step).to_policy()
    assert {o.saved for o in policy.operators} == {True, False}
    assert_same_step(step, policy)


@pytest.mark.parametrize("name", ["classifier", "tiny_gpt2", "tiny_resnet152"])
def test_a_plan_of_the_whole_step_library_is_a_policy_too(name: str) -> None:
    model, loss_fn, batch = step = (model_of(), loss_of, batches(1)[0]) if name == "classifier" else tiny(name)
    mine = copy.deepcopy(model)
    optimizer = torch.optim.SGD(mine.parameters(), lr=0.1)
    whole = apply_activation_checkpointing(mine, loss_fn, optimizer, batch, memory_budget=0.85, solver="greedy")
    policy = whole.plan.to_policy()
    assert {o.saved for o in policy.operators} == {True, False}
    assert_same_step(step, policy)


def test_blocks_of_transformers_are_regions_of_their_own() -> None:
    step = tiny("tiny_gpt2")
    policy = planned(step).to_policy()

    def by_block(model: Any) -> None:
        model.gradient_checkpointing_enable({"use_reentrant": False, "context_fn": policy.contexts(model)})

    assert_same_step(step, policy, by_block)


def test_an_operator_that_only_saved_ones_read_runs_again_as_pytorch_has_it() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 32), nn.Tanh())
    x = torch.randn(ROWS, 16)
    policy = planned((model, square, [x]), 1.0, keep=["aten.tanh"]).to_policy()
    assert [o.operator for o in policy.operators if o.saved and o.module] == ["aten.tanh", "aten.tanh"]
    loss = checkpoint(square, model, x, use_reentrant=False, context_fn=policy.contexts(model))
    with Ran() as again:
        loss.backward()
    assert {key[0] for key in again.count} >= {"addmm"}
    assert "tanh" not in {key[0] for key in again.count}


def test_the_policy_is_read_from_its_file(tmp_path: Path) -> None:
    policy = planned((Blocks(), square, [torch.randn(ROWS, 16)])).to_policy()
    assert read_policy(policy.to_json(tmp_path / "new" / "policy.json")) == policy
    (tmp_path / "other.json").write_text('{"kept": []}')
    with pytest.raises(DecisionsFileError, match=r"other\.json: no policy that to_json wrote"):
        read_policy(tmp_path / "other.json")


def test_a_region_that_cuts_a_module_is_rejected() -> None:
    class Cut(Blocks):
        context: Any = None

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = x + block[3](checkpoint(block[:3], x, use_reentrant=False, context_fn=self.context))  # type: ignore[index]
            return checkpoint(lambda x: x + self.blocks[0](x), x, use_reentrant=False, context_fn=self.context)

    torch.manual_seed(0)
    model = Cut(dropout=0.0)
    policy = planned((Blocks(dropout=0.0), square, [torch.randn(ROWS, 16)]), keep=["aten.add"]).to_policy()
    model.context = policy.contexts(model)
    with pytest.raises(CheckpointingError, match=r"runs aten\.add 1 times .* the planned step 4 times"):
        model(torch.randn(ROWS, 16))


def test_a_model_without_the_plans_modules_is_rejected() -> None:
    policy = planned((Blocks(), square, [torch.randn(ROWS, 16)])).to_policy()
    with pytest.raises(CheckpointingError, match=r"another model: this one has no module 'blocks\.0\.0'"):
        policy.contexts(Pyramid())


def test_a_write_to_a_saved_value_is_rejected_when_it_happens() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.Hardtanh(inplace=True)) for _ in range(3))

        def forward(self, x: Tensor) -> Tensor:
            for layer in self.layers:
                x = layer(x)
            return x

    step = (InPlace(), square, [torch.randn(ROWS, 16)])
    policy = planned(step, 1.0, keep=["aten.addmm"]).to_policy()
    with pytest.raises(CheckpointingError, match=r"hardtanh_.* writes to a value that the plan saves.*inplace=False"):
        assert_same_step(step, policy)


def test_a_plan_of_inductors_operators_is_no_policy() -> None:
    plan = planned((Blocks(), square, [torch.randn(ROWS, 16)]))
    plan.execution = "inductor"
    with pytest.raises(CheckpointingError, match=r"plan with checkpointing\.backend"):
        plan.to_policy()
