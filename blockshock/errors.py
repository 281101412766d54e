"""What a user gets wrong, said in one line: what was given, what is allowed, what to do. Hydra's words: explain.py."""

import difflib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hydra.errors import CompactHydraException

REFUSED = 2  # exit status of a job whose configuration was refused


class ConfigError(ValueError):
    """A configuration that can't run. `key=value: problem`, before any rank starts."""

    def __init__(self, key: str, value: object, problem: str) -> None:
        self.key, self.value, self.problem = key, value, problem
        super().__init__(f"{key}={value}: {problem}")


class WrongValue(ConfigError):
    """A value that no machine and no size allows, such as a misspelling."""


class JobFailed(CompactHydraException):
    """A job that ran and did not end well; its folder says why. Hydra shows it in one line, in any application."""


def one_of(key: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse `value` unless it is among `allowed`."""
    names = [str(a) for a in allowed]
    if str(value) not in names:
        raise WrongValue(key, value, f"allowed: {', '.join(names)}{nearest(str(value), names)}")


def at_least(key: str, value: int | float, minimum: int | float) -> None:
    if value < minimum:
        raise WrongValue(key, value, f"must be at least {minimum}")


def writable(key: str, path: str | os.PathLike[str]) -> None:
    """Refuse an output folder that can't be made or written. Makes none: what else was given may still be refused."""
    folder = Path(path).absolute()
    try:
        there = next(p for p in (folder, *folder.parents) if p.exists() or p.is_symlink())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ConfigError(key, path, f"can't be written ({error.strerror}); choose another folder") from error


def nearest(given: str, names: Iterable[str], likeness: float = 0.5) -> str:
    """`; did you mean 'name'?`, or nothing where no name is like it. `likeness`: difflib's ratio, 1 for the same."""
    close = difflib.get_close_matches(given, list(names), n=1, cutoff=likeness)
    return f"; did you mean {close[0]!r}?" if close else ""


def whole_numbers(name: str, text: str) -> list[int]:
    """`4096,8192` as numbers; ConfigError for anything else."""
    if not all(word.isdecimal() and int(word) for word in text.split(",")):
        raise ConfigError(name, text, "must be positive whole numbers, separated by commas")
    return [int(word) for word in text.split(",")]
