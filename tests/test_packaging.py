"""What an installation has: every file that the packages need, from a checkout with or without symbolic links."""

from __future__ import annotations

import re
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

import blockshock
from tests.import_graph import PACKAGES, ROOT

LIBRARIES = PACKAGES[:-1]  # hydra_plugins belongs to nobody: other projects put their plugins into it


def test_a_wheel_has_every_file_of_the_packages_and_of_conf(installed_wheel: Path) -> None:
    ours = {file.relative_to(ROOT) for package in PACKAGES for file in _files(ROOT / package)}
    ours |= {Path("blockshock") / file.relative_to(ROOT) for file in _files(ROOT / "conf")}
    assert {file.relative_to(installed_wheel) for file in _files(installed_wheel)} == ours


def test_no_file_is_a_symbolic_link() -> None:
    """git writes a link as a text file where core.symlinks is off or the file system has none."""
    assert [
        path for name in (*PACKAGES, "conf", "tests") for path in (ROOT / name).rglob("*") if path.is_symlink()
    ] == []


@pytest.mark.parametrize("package", LIBRARIES)
def test_types_are_offered_to_who_uses_the_libraries(package: str) -> None:
    assert (ROOT / package / "py.typed").is_file()


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == blockshock.__version__ == version("block-shock")


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """Every committed file, from the top level."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return listed.stdout.splitlines()


def test_no_file_names_the_host_of_a_package_registry(tracked: list[str]) -> None:
    """A mirror or an offline machine has others; pip's own configuration says where packages come from."""
    hosts = re.compile(r"(pypi|pythonhosted|npmjs|anaconda|crates|download\.pytorch|huggingface)\.(org|com|io|co)\b")
    text = [ROOT / file for file in tracked if Path(file).suffix not in (".gz", ".png", ".svg")]
    assert [str(file) for file in text if file.is_file() and hosts.search(file.read_text())] == []


def test_the_top_level_is_short(tracked: list[str]) -> None:
    """Folders for what a user chooses, runs and reads; files that tools look for there."""
    folders = {*PACKAGES, "conf", "docs", "outputs", "tests", ".ci", ".github"}
    files = {"Makefile", "pyproject.toml", "constraints.txt", "LICENSE", ".gitignore", ".pre-commit-config.yaml"}
    files |= {"Dockerfile", ".dockerignore"}
    pages = {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff"}
    assert {path.split("/")[0] for path in tracked} == folders | files | pages


def test_a_citation_names_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == blockshock.__version__


def _files(folder: Path) -> list[Path]:
    skipped = {"__pycache__", ".mypy_cache"}
    found = [path for path in folder.rglob("*") if path.is_file() and not skipped & set(path.parts)]
    return [path for path in found if not any(part.endswith(".dist-info") for part in path.parts)]
