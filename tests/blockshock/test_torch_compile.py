"""The baselines of compiled training keep what they say, train as torch.compile alone does, and are told apart."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack, contextmanager
from functools import partial

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint

from blockshock.methods.shared.checkpointed_blocks import (
    ATTENTION,
    BLOCKS,
    MATMULS,
    SAVED,
    blocks_of,
    checkpointed,
    replaced_forward,
)
from blockshock.methods.shared.eager_step import EagerStep
from blockshock.methods.torch_checkpoint import TorchCheckpoint
from blockshock.methods.torch_compile import TorchCompile
from profiler.models import build

MODELS = {"tiny_gpt2": 0.1, "tiny_bert": 0.1, "tiny_vit": 0.1, "tiny_llama": 0.0}


class Counting(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[object] = Counter()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.calls[operator] += 1
        return operator(*args, **(kwargs or {}))


def matmuls_and_gradients(task, saved):
    """Of one step with every block checkpointed, or with none where `saved` is None."""
    torch.manual_seed(0)
    task.model.zero_grad()
    with Counting() as counting:
        with checkpointed(blocks_of(task.model) if saved is not None else [], saved or ()):
            loss = task.loss_fn(task.model, *task.batch)
        loss.backward()
    grads = [p.grad for p in task.model.parameters() if p.grad is not None]
    calls = counting.calls
    return sum(calls[op] for op in MATMULS), sum(calls[op] for op in ATTENTION), grads


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpointed_block_recomputes_every_matmul_but_those_it_saves(name):
    task = build(name, dropout=MODELS[name])
    blocks = blocks_of(task.model)
    places = BLOCKS[type(blocks[0]).__name__]
    of_all_blocks = len(blocks) * sum(map(len, places.values()))
    plain, attention, expected = matmuls_and_gradients(task, None)
    whole, _, _ = matmuls_and_gradients(task, ())
    assert of_all_blocks - len(blocks) <= whole - plain <= of_all_blocks  # no backward reads what mlp_out returns
    for saved in (("attention",), ("qkv",), ("attention", "projection", "mlp_in"), SAVED):
        matmuls, attentions, grads = matmuls_and_gradients(task, saved)
        kept = len(blocks) * sum(len(places[each]) for each in saved if each != "attention")
        assert matmuls == max(plain, whole - kept)
        assert attentions == attention * (1 if "attention" in saved else 2)
        assert all(map(torch.equal, grads, expected))


def test_some_of_the_blocks_are_spread_over_the_depth():
    model = build("tiny_resnet152").model
    everything = blocks_of(model)
    assert blocks_of(model, len(everything) + 1) == everything
    assert len(blocks_of(model, 0.5)) == len(everything) / 2
    assert len(blocks_of(model, 0.001)) == 1
    chosen = [everything.index(block) for block in blocks_of(model, 3)]
    assert chosen == sorted(set(chosen))
    assert chosen[0] == 0
    assert max(b - a for a, b in zip(chosen, [*chosen[1:], len(everything)], strict=True)) <= len(everything) // 3 + 1


@pytest.mark.parametrize(
    "options", [{"checkpoint": "blocks", "blocks": 1}, {"checkpoint": "blocks", "saved": ["attention", "qkv"]}]
)
def test_compiled_checkpointing_draws_the_dropout_masks_of_torch_compile_alone(options):
    task = build("tiny_gpt2")
    optimizer = torch.optim.AdamW(task.model.parameters())
    method = TorchCompile(name="torch_compile", backend="aot_eager", **options)
    proof = method.build_step(task, optimizer).verify(task.batch)
    assert proof.identical
    assert proof.gradient_error == 0


@pytest.mark.skipif(not hasattr(torch.nn.functional, "linear_cross_entropy"), reason="came with torch 2.13")
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_bert"])
def test_a_loss_in_chunks_is_the_loss_up_to_rounding(name):
    task = build(name, seq_len=48)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    method = TorchCompile(name="torch_compile", backend="aot_eager", loss="linear_cross_entropy")
    proof = method.build_step(task, optimizer).verify(task.batch)
    assert 0 < proof.gradient_error < 32 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["tiny_gpt2", "tiny_bert"])
def test_a_mask_drawn_anew_in_the_backward_shows_in_the_gradients(name, dtype):
    task = build(name, dtype=dtype)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)

    def redrawn(*batch):
        with checkpointed_without_its_random_state(task.model):
            return task.loss_fn(task.model, *batch)

    proof = EagerStep(task, optimizer, redrawn).verify(task.batch)
    assert not proof.trains_alike
    assert proof.gradient_error > 0.3


def unfused(task):
    """The model's loss by other kernels, which round otherwise."""

    def loss(*batch):
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return task.loss_fn(task.model, *batch)

    return loss


def test_other_kernels_for_the_same_arithmetic_train_alike():
    task = build("tiny_bert", dtype=torch.bfloat16, dropout=0.0)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    proof = EagerStep(task, optimizer, unfused(task)).verify(task.batch)
    assert not proof.passed
    assert proof.trains_alike


def test_however_many_steps_were_timed_the_same_step_is_verified():
    """After many steps on one batch gradients are near zero, and other roundings would look like other masks."""
    errors = []
    for steps in (0, 30):
        task = build("tiny_bert", dtype=torch.bfloat16, dropout=0.0)
        optimizer = torch.optim.AdamW(task.model.parameters(), lr=0.01)
        step = EagerStep(task, optimizer, unfused(task))
        for _ in range(steps):
            step(*task.batch)
        errors.append(step.verify(task.batch).gradient_error)
    assert errors[0] == errors[1] > 0


def test_running_statistics_that_move_twice_show_in_the_buffers():
    task = build("tiny_resnet152", batch_size=4)
    optimizer = torch.optim.SGD(task.model.parameters(), lr=0.1)
    step = TorchCheckpoint(name="torch_checkpoint").build_step(task, optimizer)
    for _ in range(30):
        step(*task.batch)  # a further update of the same batch's statistics changes them little
    proof = step.verify(task.batch)
    assert proof.gradient_error == 0
    assert proof.buffer_error > 0.5
    assert not proof.trains_alike


@contextmanager
def checkpointed_without_its_random_state(model):
    """What a compiler does that forgets the generator's state: the block's second forward draws other masks."""
    with ExitStack() as stack:
        for block in blocks_of(model):
            forward = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
            stack.enter_context(replaced_forward(block, forward))
        yield


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["method.saved=[qkv]"], "add method.checkpoint=blocks"),
        (["method.checkpoint=blocks", "method.saved=[qvk]"], "qkv"),
        (["method.checkpoint=blocks", "method.blocks=0"], "method.blocks=0"),
        (["method.checkpoint=blocks", "method.blocks=1.5"], "a whole number of blocks, or a share below 1"),
        (["method.loss=linear_cross_entropy", "workload.autocast=bf16"], "use workload.autocast=null"),
        (["workload.autocast=fp8"], "workload.autocast"),
        (["method.backend=aot_eager", "method.loss=auto_chunker"], "method.backend=inductor"),
        (["method.mode=reduce-overhead"], "on a CPU use method.mode=default"),
        (["method.memory_budget=1.5"], "between 0 and 1"),
        (["method.loss=ligr"], "linear_cross_entropy"),
        (["method.loss=liger"], "pip install liger-kernel"),
    ],
)
def test_options_that_cannot_be_are_rejected(cli, arguments, expected):
    done = cli("hardware=cpu", "phase=checkpoint", "method=torch_compile", "workload=tiny_gpt2", *arguments)
    assert (done.code, expected in done.err) == (2, True), done.err


@pytest.mark.parametrize(
    "options", [{}, {"checkpoint": "blocks"}, {"checkpoint": "blocks", "saved": ["attention", "qkv"]}]
)
def test_a_baseline_is_compiled_once_and_not_in_every_step(options):
    task = build("tiny_gpt2", batch_size=4, seq_len=32)
    method = TorchCompile(name="torch_compile", backend="aot_eager", **options)
    step = method.build_step(task, torch.optim.SGD(task.model.parameters(), lr=0.1))
    torch._dynamo.utils.counters.clear()
    for _ in range(4):
        step.loss(*task.batch).backward()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
