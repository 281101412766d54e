"""Who takes part: entries of `phase.contenders`, which of them can run here, and errors that name the contender."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from blockshock.collectives.parts import Parts
from blockshock.errors import ConfigError, WrongValue
from blockshock.jobs.correctness import CheckFailed
from blockshock.ranks.outcome import last_line

Step = Callable[[], Any]


@dataclass
class Contender:
    """An entry of `phase.contenders`. A part adds the options by which its contenders differ."""

    optional: bool = False  # if it can't run, leave it out with a line in the log; else that is an error


@dataclass
class Entry:
    """What takes its turns, and what its record says beside its times."""

    contender: str  # its key in phase.contenders, or a name of the part's own
    method: str
    step: Step
    variant: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    parts: Parts | None = None  # are timed as well, in turns of their own


class ContenderFailed(RuntimeError):
    """A contender that raised while it was built or timed; the message says which, and what it raised."""


@contextmanager
def naming(contender: str) -> Iterator[None]:
    """Let an error inside name the contender: a job has one line to say why it failed."""
    try:
        yield
    except Exception as error:  # whatever a kernel, a library or a user's own method raises
        raise blame(contender, error) from error


def blame(contender: str, error: Exception) -> Exception:
    """`error` with the contender's name in it, of a type from which it is told how the job ended."""
    if isinstance(error, CheckFailed):
        return CheckFailed(f"{contender}: {error}")
    if isinstance(error, ConfigError):
        return named(contender, error)
    if isinstance(error, MemoryError):
        return MemoryError(f"{contender}: {error}")
    return ContenderFailed(f"{contender}: {last_line(error)}")


def named(contender: str, error: ConfigError) -> ConfigError:
    """The same error with the key that a user would set: `phase.contenders.mine.method.kernel`."""
    if error.key.split(".")[0] in ("method", "mask", "kernel", "collective"):
        return ConfigError(f"phase.contenders.{contender}.{error.key}", error.value, error.problem)
    return ConfigError(error.key, error.value, f"{error.problem} (contender {contender})")


C = TypeVar("C", bound=Contender)


@dataclass
class Admitted(Generic[C]):
    """The contenders that can run in a job, and why the optional ones among the others are left out."""

    contenders: dict[str, C] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)


def admit(contenders: dict[str, C], check: Callable[[str, C], str]) -> Admitted[C]:
    """Those to which `check` doesn't object; it returns the name by which records tell a contender from others.

    ConfigError where a contender can't run and isn't optional, where two have one name, and where none is left.
    """
    found: Admitted[C] = Admitted()
    names: dict[str, str] = {}
    for key, contender in contenders.items():
        try:
            name = check(key, contender)
        except ConfigError as error:
            if not contender.optional or isinstance(error, WrongValue):
                raise named(key, error) from error
            found.left_out[key] = str(error)
            continue
        if name in names:
            problem = f"is measured as {name}, and so is {names[name]}; leave one out by ~phase.contenders.{key}"
            raise ConfigError("phase.contenders", key, problem)
        names[name] = key
        found.contenders[key] = contender
    if not found.contenders:
        why = "; ".join(f"{key}: {reason}" for key, reason in found.left_out.items())
        raise ConfigError(
            "phase.contenders", f"[{','.join(contenders)}]", f"none can run here: {why or 'none is given'}"
        )
    return found
