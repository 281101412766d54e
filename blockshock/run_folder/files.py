"""Files that appear whole or not at all, and reading them back with every fault named in one line."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, UnionType
from typing import Any


class Unreadable(ValueError):
    """A file that does not hold what was written there: `status.json: not JSON (...)`."""


def printable(text: str) -> str:
    """`text` in one line without control characters, which would reach a terminal: they are written as `\\x1b`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def read_object(path: Path, kinds: Mapping[str, type | UnionType] = MappingProxyType({})) -> dict[str, Any]:
    """The JSON object in `path`, whose values for the keys of `kinds` are of these kinds (None: may be missing).

    Raises Unreadable, and FileNotFoundError where there is no such file.
    """
    return parse_object(path.name, read_text(path), kinds)


def read_text(path: Path) -> str:
    """Raises Unreadable, and FileNotFoundError where there is no such file."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise Unreadable(f"{path.name}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise Unreadable(f"{path.name}: not text") from error


def parse_object(name: str, text: str, kinds: Mapping[str, type | UnionType] = MappingProxyType({})) -> dict[str, Any]:
    """The JSON object that `text`, from the file `name`, is; see read_object."""
    try:
        found = json.loads(text)
    except json.JSONDecodeError as error:
        raise Unreadable(f"{name}: {'not JSON (' + str(error) + ')' if text.strip() else 'empty'}") from error
    if not isinstance(found, dict):
        raise Unreadable(f"{name}: not a JSON object")
    wrong = [key for key, kind in kinds.items() if not isinstance(found.get(key), kind)]
    if wrong:
        raise Unreadable(f"{name}: {wrong[0]} is {'of a wrong type' if wrong[0] in found else 'missing'}")
    return found


def write_atomically(path: Path, content: str | bytes) -> None:
    """Readers see the old file or the new one, never a part. Text is UTF-8 whatever the locale says."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:  # a full disk leaves no litter
        temporary.unlink(missing_ok=True)
        raise
