"""Which module imports which, read from the source text with `ast`: nothing is imported to find out."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("profiler", "checkpointing", "blockshock", "sweeps", "hydra_plugins")  # each may import those before it


@dataclass(frozen=True)
class Import:
    by: str  # the module whose text holds the statement
    of: str  # the module it imports: of ours, as deep as a module goes; of others, as written
    when: str  # "import": as the module is imported; "call": inside a function; "types": for the type checker only
    line: int

    def __str__(self) -> str:
        return f"{self.by}, line {self.line}, imports {self.of}"


def modules() -> dict[str, Path]:
    """Every module of the five packages and its file."""
    files = [file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}


def imports(ours: dict[str, Path]) -> list[Import]:
    """Every import statement of these modules, one entry for each name that it brings in."""
    return [found for module, file in ours.items() for found in _imports_of(module, file, ours)]


def _imports_of(module: str, file: Path, ours: dict[str, Path]) -> Iterator[Import]:
    def walk(node: ast.AST, when: str) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(module, alias.name, when, child.lineno) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                if child.module is None or child.level:
                    raise ValueError(f"{file}:{child.lineno}: a relative import; write the whole name")
                for alias in child.names:
                    inside = f"{child.module}.{alias.name}"
                    yield Import(module, inside if inside in ours else child.module, when, child.lineno)
            elif isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
                yield from walk(child, "types")
            elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from walk(child, "call")
            elif not isinstance(child, ast.expr):  # an expression, most of the text, holds no statement
                yield from walk(child, when)

    return walk(ast.parse(file.read_text()), "import")


def arrows(found: list[Import], ours: dict[str, Path]) -> dict[str, set[str]]:
    """module -> what of ours must be complete before it: what it imports, and every package on the way there.

    A package that the module itself is inside of has started its own import already; it counts only where named.
    """
    graph: dict[str, set[str]] = {module: set() for module in ours}
    for entry in found:
        parts = entry.of.split(".")
        for depth in range(1, len(parts) + 1):
            target = ".".join(parts[:depth])
            on_the_way = depth < len(parts)
            if target in ours and target != entry.by and not (on_the_way and entry.by.startswith(target + ".")):
                graph[entry.by].add(target)
    return graph
