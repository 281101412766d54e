"""What inductor is told for planned steps, seen in its code. No C++ is compiled: kernels do nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import compile_fx
from torch._inductor.async_compile import AsyncCompile
from torch.nn.functional import cross_entropy, linear

import checkpointing
from checkpointing.compiled import compiled_step
from checkpointing.compiled.execution import CompiledHalves, compile_halves, run_once_before_recording
from tests.checkpointing.compiled.training import Blocks, square


@pytest.fixture
def codes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The code of each backward that is generated."""
    found: list[str] = []

    def kept(*args: Any) -> CompiledHalves:
        halves = compile_halves(*args)
        assert halves.backward is not None
        found.append(halves.backward.source_code)
        return halves

    monkeypatch.setattr(compiled_step, "compile_halves", kept)
    monkeypatch.setattr(AsyncCompile, "cpp_pybinding", lambda *_, **__: lambda *args: None)
    return found


def waiting(code: str) -> list[str]:
    """Buffers that were kept until a matmul, which reads nothing of its result's memory, was written in their place."""
    replaced = re.findall(r"^\s*(\w+) = [^#\n]*; del (\w+)  # reuse$", code, re.MULTILINE)
    return [old for new, old in replaced if re.search(rf"out={new}\)", code)]


def step(budget: float | int) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(square, backend=checkpointing.backend(budget), dynamic=False)
    compiled(Blocks(dropout=0.0), torch.randn(64, 16)).backward()


def test_no_buffer_of_a_planned_step_waits_for_one_in_its_place(codes: Sequence[str]) -> None:
    step(1.0)
    step(0.8)
    unplanned, planned = codes[0], codes[-1]
    assert waiting(unplanned)  # as inductor does by itself
    assert not waiting(planned)
    assert "# reuse" in planned  # where a kernel reads what it writes over


def test_a_tied_embeddings_gradient_is_added_where_that_of_the_logits_is(codes: Sequence[str]) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(97, 16, dtype=torch.bfloat16)

        def forward(self, ids: Tensor) -> Tensor:
            return linear(self.embedding(ids).tanh(), self.embedding.weight)

    def loss(model: nn.Module, ids: Tensor) -> Tensor:
        return cross_entropy(model(ids).float(), ids)

    torch._dynamo.reset()
    compiled = torch.compile(loss, backend=checkpointing.backend(1.0), dynamic=False)
    compiled(Tied(), torch.arange(40))
    [code] = codes
    added = re.findall(r"checkpointing\.add_rows_\.default\((\w+), ", code)
    assert len(added) == 1
    assert re.search(rf"return \(.*\b{added[0]}\b", code)  # the gradient itself, and no copy of it
    assert "((97, 16), (16, 1), torch.float32)" not in code


def test_a_mask_that_is_recomputed_is_drawn_where_it_is_read(codes: Sequence[str]) -> None:
    """Each of its readers draws from the seed. (By itself inductor writes the numbers that two kernels read.)"""
    torch._dynamo.reset()
    block = nn.Sequential(nn.Linear(16, 48), nn.Dropout(0.1), nn.Linear(48, 32), nn.GELU(), nn.Linear(32, 16))
    model, x = nn.Sequential(block, nn.Linear(16, 16)).to(torch.bfloat16), torch.randn(64, 16, dtype=torch.bfloat16)
    backend = checkpointing.backend(1.0, recompute=["0"])
    torch.compile(square, backend=backend, dynamic=False)(model, x)
    [code] = codes
    assert "normalized_rand_cpu(" in code
    assert "((64, 48), (48, 1), torch.float32)" not in code


def test_a_cuda_graph_reads_parameters_and_buffers_in_place() -> None:
    """The static inputs that AOTAutograd names: Dynamo's notes on them are the captured graph's, and ours is a copy."""
    told: list[set[int]] = []
    torch._dynamo.reset()
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 8))

    def partition(joint: Any, joint_inputs: Any, **options: Any) -> Any:
        told.append(set(options["static_lifetime_input_indices"]))
        return min_cut_rematerialization_partition(joint, joint_inputs, **options)

    def compiler(module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
        [moving] = [index for index, value in enumerate(inputs) if value.shape == (4, 8)]
        halves = compile_halves("eager", module, inputs, partition, cuda_graphs=True)
        assert told == [set(range(len(inputs))) - {moving}]
        return halves.run

    torch.compile(model, backend=compiler, dynamic=False)(torch.randn(4, 8)).sum().backward()
    assert len(told) == 1


def test_the_code_runs_once_before_it_is_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """On inputs as aligned as it relies on, which CUDA graphs see to themselves."""
    monkeypatch.setattr(compile_fx, "cudagraphify", lambda code, static_input_idxs=(), **_: lambda inputs: "replayed")
    graphs_alone = compile_fx.cudagraphify
    given: list[Tensor] = []
    with run_once_before_recording() as recorded:
        step = compile_fx.cudagraphify(given.extend, static_input_idxs=(1,), mutated_input_idxs=())
    assert recorded == [step]
    assert compile_fx.cudagraphify is graphs_alone
    recorded[0].inputs_to_check = [0]
    inputs = [torch.arange(9.0)[1:], torch.arange(9.0)[1:]]
    step(list(inputs))
    assert [x.data_ptr() % 16 for x in given] == [0, 4]
    assert all(map(torch.equal, given, inputs))
    assert [step(list(inputs)), step(list(inputs))] == ["replayed"] * 2
    assert len(given) == 2


def test_the_pool_of_a_recorded_step_begins_with_its_first_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the forward runs in the pool for the first time, and not when it runs before."""
    ran: list[object] = []
    monkeypatch.setattr(compile_fx, "cudagraphify", lambda code, **_: lambda inputs: code(inputs))
    monkeypatch.setattr(torch, "empty", lambda size, **options: ran.append((size, options["dtype"])))
    with run_once_before_recording() as recorded:
        forward, backward = (compile_fx.cudagraphify(lambda inputs, half=half: ran.append(half)) for half in "fb")
    CompiledHalves(recorded=recorded).reserve(3 * 2**20)
    for _ in range(3):
        forward([])
        backward([])
    assert ran == [*"fb", (3 * 2**20, torch.uint8), *"fbfb"]
