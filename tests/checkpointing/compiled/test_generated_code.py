"""What inductor is told for planned steps, seen in its code. No C++ is compiled: kernels do nothing."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch._inductor.async_compile import AsyncCompile

import checkpointing
from checkpointing.compiled import compiled_step
from checkpointing.compiled.execution import CompiledHalves, compile_halves
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
