"""Writes docs/reference/keys.md and columns.md: `python docs/make_reference.py`, which `make docs` runs.

A key's meaning is the comment on its line, so that it is written once, where it is set. A key without one is an error.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import make_columns

from blockshock import config
from blockshock.phases.benchmark.contenders import Contender
from sweeps.launchers.launchers import LAUNCHERS
from sweeps.launchers.options import LauncherConf

REFERENCE = Path(__file__).parent / "reference"
GROUPS = ("hardware", "phase", "method", "mask", "workload", "sweep")
LINE = re.compile(r"( *)(\w+):(?: ([^#]*?))?(?: +# (.*))?$")
INTERNAL = {"_target_", "name", "defaults", "kind"}  # what a class, a file or Hydra sets
OF_PARTS = {"part", "contenders"}  # and, in conf/phase/part, a section of its own
HEAD = """# Every choice and every key

Look up what a choice or a key means, and its default. `group=choice` chooses, `key=value` sets, `blockshock --cfg job`
shows what a command line amounts to. What can't run is rejected before anything starts, with the nearest spelling.

<!-- made by `python docs/make_reference.py` from the comments in conf/ and the launchers' options: change those -->

"""


@dataclass(frozen=True)
class Key:
    name: str
    default: str
    meaning: str
    choice: str = ""  # the option that has it; empty: all


def keys() -> str:
    parts = [HEAD, "## Keys of every job\n\n", _table(_core()), "\n## Choices\n"]
    for group in GROUPS:
        parts.append(f"\n### `{group}`\n\n| {group}= | |\n|---|---|\n")
        parts.extend(f"| `{path.stem}` | {_title(path)} |\n" for path in _options(group))
    parts.append("\n### `phase/part`, of `phase=benchmark`\n\n| phase/part= | |\n|---|---|\n")
    parts.extend(f"| `{path.stem}` | {_title(path)} |\n" for path in _options("phase/part"))
    for group, further in (("phase", "phase/part"), ("method", ""), ("mask", ""), ("workload", "")):
        found = chain(_of_group(group), _of_group(further) if further else ())
        parts.append(f"\n## Keys of `{group}`\n\n{_table(_merged(found))}")
    contender = _table(_of_class(Contender, "phase.contenders.NAME"))
    parts.append(f"\nOf each contender of `phase=benchmark`:\n\n{contender}")
    parts.append(f"\n## Keys of every launcher\n\n{_table(_of_class(LauncherConf, 'hydra.launcher'))}")
    for name, launcher in LAUNCHERS.items():
        own = _of_class(launcher.options, "hydra.launcher")
        parts.append(f"\n## Keys of `hydra/launcher={name}`\n\n{_table(own)}")
    return "".join(parts)


def _options(group: str) -> list[Path]:
    return sorted((config.CONF / group).glob("*.yaml"))


def _title(path: Path) -> str:
    """The comment at the top of a YAML file, in one line."""
    lines = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("# "))
    if not lines:
        sys.exit(f"{path}: begins with no comment that says what it is")
    return _cell(" ".join(lines))


def _core() -> list[Key]:
    """`experiment`, `model` and `hardware`, with the defaults that conf/ gives them."""
    keys = []
    for path, groups in ((config.CONF / "config.yaml", ("experiment", "model")), (_options("hardware")[0], ())):
        prefix = "" if groups else "hardware"
        for line in path.read_text().splitlines():
            found = LINE.match(line)
            if not found:
                continue
            indent, name, default, comment = found.groups()
            if groups and not indent:
                prefix = name if name in groups else ""
            elif prefix and name not in INTERNAL - ({"name"} if groups else set()):
                keys.append(_key(path, f"{prefix}.{name}", default or "", comment))
    return keys


def _of_group(group: str) -> Iterator[Key]:
    """The keys of every option of a group. A file that is a whole configuration has them under the group's name."""
    top, _, inner = group.partition("/")
    for path in _options(group):
        text = path.read_text()
        indented = "# @package _global_" in text
        inside = not indented
        for line in text.splitlines():
            found = LINE.match(line)
            if found is None:
                continue
            indent, name, default, comment = found.groups()
            if indented and not indent:
                inside = name == top
            elif inside and len(indent) == 2 * indented and name not in INTERNAL | (OF_PARTS if inner else set()):
                yield _key(
                    path, f"{top}.{name}", default or "", comment, f"{inner}={path.stem}" if inner else path.stem
                )


def _key(path: Path, name: str, default: str, comment: str | None, choice: str = "") -> Key:
    if not comment:
        sys.exit(f"{path}: {name} has no comment that says what it means")
    return Key(name, default if choice else f"`{default}`", comment, choice)


def _merged(keys: Iterator[Key]) -> list[Key]:
    """One row per key and meaning; a default that few choices have names them."""
    rows: dict[tuple[str, str], dict[str, list[str]]] = {}
    for key in keys:
        rows.setdefault((key.name, key.meaning), {}).setdefault(key.default, []).append(key.choice)
    merged = []
    for (name, meaning), defaults in sorted(rows.items()):
        (common, _), *others = sorted(defaults.items(), key=lambda item: -len(item[1]))
        cell = "; ".join([f"`{common}`", *(f"`{value}` in {_codes(choices)}" for value, choices in others)])
        merged.append(Key(name, cell, meaning, _codes(choice for choices in defaults.values() for choice in choices)))
    return merged


def _codes(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _of_class(options: type, prefix: str) -> list[Key]:
    """The fields that a dataclass itself declares."""
    lines, _ = inspect.getsourcelines(options)
    declared = ast.parse("".join(lines)).body[0]
    assert isinstance(declared, ast.ClassDef)
    path = Path(inspect.getsourcefile(options) or "")
    keys = []
    for node in declared.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id not in INTERNAL:
            _, _, comment = lines[node.lineno - 1].partition("  # ")
            default = ast.unparse(node.value) if node.value else ""
            shown = {"None": "null", "True": "true", "False": "false", "field(default_factory=list)": "[]"}.get(default)
            keys.append(_key(path, f"{prefix}.{node.target.id}", shown or default.strip("'"), comment.strip()))
    return keys


def _table(keys: list[Key]) -> str:
    shared = not any(key.choice for key in keys)
    rows = ["| key | default | meaning |" + " in |" * (not shared), "|---|---|---|" + "---|" * (not shared)]
    for key in keys:
        cells = [f"`{key.name}`", key.default, _cell(key.meaning)] + [key.choice] * (not shared)
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


PAGES = {"keys.md": keys, "columns.md": make_columns.page}

if __name__ == "__main__":
    for name, text in PAGES.items():
        (REFERENCE / name).write_text(text(), encoding="utf-8")
        print(REFERENCE / name)
