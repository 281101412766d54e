"""The contracts on imports: every module alone, one direction, no circle, small folders, light libraries."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from collections import Counter
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.import_graph import PACKAGES, ROOT, arrows, imports, modules

OURS = modules()
IMPORTS = imports(OURS)
OPTIONAL = {"triton", "cupti", "cuda"}  # a GPU machine has them; pyproject's extras and torch's own wheels
WIDEST_FOLDER = 14


@pytest.fixture(scope="session")
def imported_alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str] | None]:
    file = tmp_path_factory.mktemp("imports") / "modules.json"
    others = {entry.of for entry in IMPORTS if entry.when == "import" and _top(entry.of) not in PACKAGES}
    graph = arrows([entry for entry in IMPORTS if entry.when == "import"], OURS)
    importers_first = sorted(graph, key=lambda module: len(_reached(module, graph)), reverse=True)
    ours = {module: sorted(graph[module]) for module in importers_first}
    file.write_text(json.dumps({"third_party": sorted(others), "imports": ours}))
    subprocess.run([sys.executable, "-P", ROOT / "tests" / "import_alone.py", file], check=True)
    return json.loads(file.read_text())


@pytest.mark.parametrize("module", OURS)
def test_every_module_can_be_the_first_one_imported(
    module: str, imported_alone: dict[str, dict[str, str] | None]
) -> None:
    problem = imported_alone[module]
    if problem and _top(problem["missing"] or "") in OPTIONAL:
        pytest.skip(f"needs {problem['missing']}, which is not installed")
    assert problem is None, problem["trace"]


def test_imports_run_in_one_direction() -> None:
    """hydra_plugins -> sweeps -> blockshock -> checkpointing -> profiler: in functions and for type checkers too."""
    levels = {package: level for level, package in enumerate(PACKAGES)}
    upward = [str(entry) for entry in IMPORTS if levels.get(_top(entry.of), -1) > levels[_top(entry.by)]]
    assert upward == []


def test_the_libraries_know_nothing_of_hydra() -> None:
    libraries = [entry for entry in IMPORTS if _top(entry.by) in ("profiler", "checkpointing")]
    assert [str(entry) for entry in libraries if _top(entry.of) in ("hydra", "omegaconf", "submitit")] == []


def test_the_type_checker_reads_every_test_that_needs_a_gpu() -> None:
    """A wrong name in one would be seen on a machine with a GPU only."""
    read = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["mypy"]["modules"]
    marked = {file for file in (ROOT / "tests").rglob("test_*.py") if re.search(r"\bmark\.gpus?\b", file.read_text())}
    assert set(read) == {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in marked}


def test_no_circle_of_modules() -> None:
    """Imports for the type checker do not count: they never run."""
    at_import = arrows([entry for entry in IMPORTS if entry.when == "import"], OURS)
    try:
        TopologicalSorter(at_import).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))
    late = {(entry.by, entry.of) for entry in IMPORTS if entry.when == "call" and entry.of in OURS}
    closing = {(module, target) for module, target in late if module in _reached(target, at_import)}
    assert closing == set(), "an import inside a function closes a circle"


def test_no_folder_is_too_wide_to_read() -> None:
    files = Counter(file.parent for file in OURS.values() if file.name != "__init__.py")
    wide = {str(folder.relative_to(ROOT)): count for folder, count in files.items() if count > WIDEST_FOLDER}
    assert wide == {}, f"at most {WIDEST_FOLDER} files in a folder: give it rooms by subject"


PLOTS = {"matplotlib", "seaborn", "pandas", "transformers"}


@pytest.mark.parametrize(
    ("package", "heavy"),
    [
        ("profiler", PLOTS),
        ("checkpointing", PLOTS),
        ("blockshock", {"torch", "hydra"} | PLOTS),
        ("sweeps", {"torch", "hydra"} | PLOTS),
    ],
    ids=PACKAGES[:4],
)
def test_a_package_is_light_to_import(package: str, heavy: set[str]) -> None:
    code = f"import {package}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert heavy & set(done.stdout.split()) == set()


def _top(module: str) -> str:
    return module.split(".")[0]


def _reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    """Every module that importing `start` imports."""
    seen: set[str] = set()
    pending = [start]
    while pending:
        module = pending.pop()
        if module not in seen:
            seen.add(module)
            pending += graph[module]
    return seen
