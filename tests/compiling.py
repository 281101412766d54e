"""Triton kernels compiled for GPUs, where none is there: every launch compiles in place of running.

    with launches_compile(HOPPER) as compiled:
        columns_of_a_gpu_machine.take(x, places)    # the launcher as it is, with tensors of the CPU
    compiled.codes, compiled.statements             # of kernels that it had not compiled before

Triton itself makes types, constants and alignments of the arguments, as for a launch: its driver here only names a GPU.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from triton.backends.compiler import GPUTarget
from triton.compiler.code_generator import CodeGenerator
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

import blockshock.kernels
from tests.import_graph import modules

AMPERE, HOPPER = 80, 90
Statement = tuple[Path, int]  # a file and a line of it


@dataclass(frozen=True)
class Driver:
    """What Triton asks of a driver before it compiles."""

    architecture: int

    def get_current_device(self) -> int:
        return self.architecture  # Triton keeps what it has compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.architecture, 32)


@dataclass
class Compiled:
    """The launched kernels, and the statements of theirs and of what they call."""

    codes: list[Any] = field(default_factory=list)
    statements: set[Statement] = field(default_factory=set)


@contextmanager
def launches_compile(architecture: int) -> Iterator[Compiled]:
    run, visit = JITFunction.run, CodeGenerator.visit
    compiled = Compiled()

    def compile_only(kernel: Any, *arguments: Any, warmup: bool, **options: Any) -> None:
        compiled.codes.append(run(kernel, *arguments, warmup=True, **options))

    def visit_and_note(generator: Any, node: Any) -> Any:
        if isinstance(node, ast.stmt) and hasattr(node, "lineno"):  # Triton writes some of its own
            compiled.statements.add((Path(generator.file_name), generator.begin_line + node.lineno))
        return visit(generator, node)

    kernels = kernels_of_a_gpu_machine()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(driver, "_active", Driver(architecture))
        patch.setattr(JITFunction, "run", compile_only)
        patch.setattr(CodeGenerator, "visit", visit_and_note)
        for module in ("columns", "block_gemm"):
            patch.setattr(kernels[module], "starts_early", lambda device: architecture >= HOPPER)
        yield compiled


@cache
def kernels_of_a_gpu_machine() -> dict[str, ModuleType]:
    """The modules of blockshock/kernels/gpu by name, imported anew: without a GPU they are imported without kernels."""
    package = blockshock.kernels.gpu
    names = [name for name in modules() if name.startswith(f"{package.__name__}.")]
    for name in names:
        importlib.import_module(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(blockshock.kernels, "gpu", package)  # an import changes it
        for name in (package.__name__, *names):
            patch.delitem(sys.modules, name)
        again = {name.rpartition(".")[2]: importlib.import_module(name) for name in names}
    again["triton_support"].INTERPRETED = True  # after the imports: launchers then take tensors of the CPU
    return again


def statements_of_kernels() -> set[Statement]:
    """Every statement of every function of ours that a decorator named `jit` has, but for the interpreter's own."""
    trees = {file: ast.parse(file.read_text()) for file in modules().values() if "jit" in file.read_text()}
    return {
        (file, statement.lineno)
        for file, tree in trees.items()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and any(map(_is_jit, function.decorator_list))
        for statement in _statements(function.body)
    }


def _is_jit(decorator: ast.expr) -> bool:
    """`@triton.jit`, `@jit` and `@triton.jit(...)`."""
    return ast.unparse(decorator).partition("(")[0].rpartition(".")[2] == "jit"


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    for statement in body:
        if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
            continue  # a docstring
        yield statement
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "UPCAST":
            continue
        for inside in ("body", "orelse"):
            yield from _statements(getattr(statement, inside, []))
