"""What an installation has: every file that the packages need, from a checkout with or without symbolic links."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

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


def _files(folder: Path) -> list[Path]:
    skipped = {"__pycache__", ".mypy_cache"}
    found = [path for path in folder.rglob("*") if path.is_file() and not skipped & set(path.parts)]
    return [path for path in found if not any(part.endswith(".dist-info") for part in path.parts)]
