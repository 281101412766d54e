"""Triton compiles our kernels for GPUs, where none is there: what its interpreter runs it may fail to compile.

With another Triton, such as the oldest that is supported:

    pip install --target FOLDER --no-deps triton==3.6.0
    PYTHONPATH=FOLDER pytest tests/checkpointing/compiled/test_kernels_compile.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction, mangle_type

from checkpointing.compiled.embedding import kernel as embedding
from checkpointing.compiled.loss.row_kernel import kernel as row_kernel
from checkpointing.compiled.loss.row_kernel.kernel import Gradient

AMPERE, HOPPER = 80, 90


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """The launches' kernels, by name and architecture: each launch compiles in place of running."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    done = []

    def compile_only(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        given = dict(zip(kernel.arg_names, arguments, strict=False))
        given |= {name: options.pop(name) for name in kernel.arg_names if name in options}
        fixed = {p.name for p in kernel.params if p.is_constexpr} | {name for name, v in given.items() if v is None}
        types = {name: "constexpr" if name in fixed else mangle_type(value) for name, value in given.items()}
        values = {(kernel.arg_names.index(name),): given[name] for name in fixed}
        for architecture in (AMPERE, HOPPER):
            source = ASTSource(kernel, types, constexprs=values)
            code = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["cubin"]
            assert code
            done.append((kernel.__name__, architecture))

    monkeypatch.setattr(JITFunction, "run", compile_only)
    return done


@pytest.mark.parametrize(("dtype", "width"), [(torch.bfloat16, 5), (torch.bfloat16, 768), (torch.float64, 768)])
def test_the_sums_of_an_embedding(compiled: list[tuple[str, int]], dtype: torch.dtype, width: int) -> None:
    ids = torch.zeros(100, dtype=torch.long)
    exact = torch.promote_types(dtype, torch.float32)
    embedding.launch(torch.zeros(7, width, dtype=dtype), ids, ids, torch.zeros(100, width), exact)
    assert compiled == [(name, sm) for name in ("_pieces", "_across") for sm in (AMPERE, HOPPER)]


@pytest.mark.parametrize(
    ("dtype", "width", "everything"),
    [
        (torch.bfloat16, 128, False),  # in one tile
        (torch.bfloat16, 50264, True),  # in several
        (torch.bfloat16, 50257, False),  # rows that don't begin at a vector
        (torch.float32, 50257, True),
    ],
)
def test_the_gradient_of_a_loss(
    compiled: list[tuple[str, int]], dtype: torch.dtype, width: int, everything: bool
) -> None:
    rows = 2
    more: list[Tensor] = [torch.ones(rows)] * 2 if everything else []
    gradient = Gradient(torch.ones(rows), torch.ones(rows), *more)
    classes = torch.ones(width) if everything else None
    row_kernel.launch(
        torch.zeros(rows, width, dtype=dtype), width, torch.zeros(rows, dtype=torch.long), gradient, classes, everything
    )
    assert compiled == [("_rows", AMPERE), ("_rows", HOPPER)]
