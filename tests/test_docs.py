"""What the pages print works as printed: commands compose and pass their checks, imports and links resolve."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import itertools
import re
import subprocess
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

import checkpointing
from blockshock.cli import doctor, resolvers, tune
from blockshock.cli.main import check
from blockshock.config import CONF
from blockshock.errors import ConfigError
from sweeps.artifact import command as artifact
from sweeps.report import command as report
from tests.import_graph import PACKAGES, ROOT

DOCS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PAGES = [*DOCS, *sorted((ROOT / "outputs" / "reference").rglob("README.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")

# Every command of a block becomes a line of its words, with a tab between them; variables and loops are bash's matter.
SPY = """
PATH=/nowhere
source() { spy source "$@"; }
spy() { local IFS=$'\\t'; printf '%s\\n' "$*"; }
command_not_found_handle() { spy "$@"; }
P=2 dense=dense_tp_row  # what the text around a block lets a reader choose
"""


@dataclass(frozen=True)
class Snippet:
    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def snippets(page: Path) -> Iterator[Snippet]:
    text = page.read_text()
    for found in FENCE.finditer(text):
        yield Snippet(str(page.relative_to(ROOT)), text.count("\n", 0, found.start()) + 1, found[1], found[2])


def commands(snippet: Snippet) -> list[list[str]]:
    """The words of every command in it, as a shell would pass them."""
    done = subprocess.run(["bash", "-c", SPY + snippet.text], capture_output=True, text=True, cwd="/", check=False)
    assert done.stderr == "", f"{snippet}: {done.stderr}"
    return [line.split("\t") for line in done.stdout.splitlines()]


ALL = [snippet for page in PAGES for snippet in snippets(page)]
PYTHON = [snippet for snippet in ALL if snippet.language == "python"]
SHELL = [snippet for snippet in ALL if snippet.language in ("", "bash", "sh")]


@pytest.mark.slow
@pytest.mark.parametrize("snippet", SHELL, ids=str)
def test_printed_commands_pass_their_checks(snippet: Snippet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = commands(snippet)
    assert printed, "no command in it"
    monkeypatch.chdir(tmp_path)
    for words in printed:
        if "blockshock" in words:  # by itself, or started by torchrun or srun
            arguments = words[words.index("blockshock") + 1 :]
            if not any(word.startswith("hydra.searchpath") for word in arguments):  # what the reader has written
                _check_jobs([word for word in arguments if not word.startswith("-")])
        elif words[0] == "blockshock-report":
            report._parser().parse_args(words[1:])
        elif words[0] == "blockshock-tune":
            tune._parser().parse_args(words[1:])
        elif words[0] == "blockshock-doctor":
            doctor._parser().parse_args(words[1:])
        elif words[0] == "blockshock-artifact":
            artifact._parser().parse_args(words[1:])
        elif words[0] == "make":
            assert f"\n{words[1]}:" in (ROOT / "Makefile").read_text()


def _check_jobs(arguments: list[str]) -> None:
    """The first and the last job that these arguments ask for compose, and pass the checks of a cluster with GPUs."""
    found = _composed(*(argument for argument in arguments if argument.startswith("+") or "hydra.sweeper" in argument))
    sweeper, params = found.hydra.sweeper, found.hydra.sweeper.params or {}
    arguments = [argument for argument in arguments if "hydra.sweeper" not in argument]
    for case, which in itertools.product(sweeper.cases.values() or [{}], (0, -1)):
        own = [f"{key}={value}" for key, value in {**params, **case}.items()]
        job = [
            f"{override.get_key_element()}={list(override.sweep_string_iterator())[which]}"
            if override.is_sweep_override()
            else str(override.input_line)
            for override in OverridesParser.create().parse_overrides([*own, *arguments])
        ]
        with suppress(ConfigError) if found.hydra.launcher.skip_unsupported else nullcontext():
            _check_job(*job)


@cache  # pages show the same jobs, and first and last are one where nothing is swept over
def _check_job(*overrides: str) -> None:
    check(_composed(*overrides), elsewhere=True)


@cache
def _composed(*overrides: str) -> DictConfig:
    resolvers.register()
    resolvers.use_run_id("documented")
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", ["hardware=slurm", *overrides], return_hydra_config=True)


@pytest.mark.parametrize("snippet", PYTHON, ids=str)
def test_printed_imports_resolve(snippet: Snippet) -> None:
    for node in ast.walk(ast.parse(snippet.text)):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in PACKAGES:
            module = importlib.import_module(str(node.module))
            names = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert [name for name in names if importlib.util.find_spec(f"{node.module}.{name}") is None] == []


@pytest.mark.slow
def test_the_page_of_the_memory_budget_runs_as_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "printed"}
    for snippet in PYTHON:
        if snippet.page == "docs/memory-budget.md":
            exec(compile(snippet.text, str(snippet), "exec"), names)
    plan, printed = names["plan"], capsys.readouterr().out
    assert plan.predicted_peak_bytes <= plan.budget_bytes < plan.unplanned_peak_bytes
    assert "below the minimum of" in printed
    assert printed.endswith("passed\n")


@pytest.mark.slow
def test_the_lines_of_the_front_page_train_under_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a model, a loss and batches of a reader's; operator by operator, as inductor takes minutes on a CPU."""
    [snippet] = [snippet for snippet in PYTHON if snippet.page == "README.md"]
    monkeypatch.setattr(checkpointing, "backend", partial(checkpointing.backend, execution="eager"), raising=False)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(8, 64), torch.nn.GELU(), torch.nn.Linear(64, 1))
    names: dict[str, Any] = {
        "model": model,
        "compute_loss": lambda model, batch: (model(batch) - batch.sum(dim=1, keepdim=True)).square().mean(),
        "loader": [torch.randn(16, 8)] * 20,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=1e-2),
    }
    before = names["compute_loss"](model, names["loader"][0]).item()
    exec(compile(snippet.text, str(snippet), "exec"), names)
    assert names["loss"].item() < 0.5 * before
    assert checkpointing.plan_of(model).budget_bytes == 8_000_000_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_named_records_exist(page: Path) -> None:
    text = page.read_text()
    targets = [target for target in LINK.findall(text) if "://" not in target]
    broken = [target for target in targets if not _exists(page, target)]
    named = [path for path in re.findall(r"outputs/reference/[\w./-]*\w", text) if "NAME" not in path]
    assert broken == []
    assert [path for path in named if not (ROOT / path).exists()] == []


def _exists(page: Path, target: str) -> bool:
    """A file, and the heading in it that the part after # names."""
    path, _, anchor = target.partition("#")
    file = page.parent / path if path else page
    if not file.exists():
        return False
    headings = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE) if anchor else []
    return not anchor or anchor in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
