"""What a user gets wrong, said in one line: what was given, what is allowed, what to do."""

import difflib
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

REFUSED = 2  # exit status of a job whose configuration was refused


class ConfigError(ValueError):
    """A configuration that can't run. `key=value: problem`, before any rank starts."""

    def __init__(self, key: str, value: object, problem: str) -> None:
        self.key, self.value, self.problem = key, value, problem
        super().__init__(f"{key}={value}: {problem}")


def one_of(key: str, value: object, allowed: Iterable[object]) -> None:
    """Refuse `value` unless it is among `allowed`."""
    names = [str(a) for a in allowed]
    if str(value) not in names:
        raise ConfigError(key, value, f"allowed: {', '.join(names)}{_nearest(str(value), names)}")


def at_least(key: str, value: int | float, minimum: int | float) -> None:
    if value < minimum:
        raise ConfigError(key, value, f"must be at least {minimum}")


def writable(key: str, path: str | os.PathLike[str]) -> None:
    """Refuse an output folder that can't be made or written. Makes none: what else was given may still be refused."""
    folder = Path(path).absolute()
    try:
        there = next(p for p in (folder, *folder.parents) if p.exists() or p.is_symlink())
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise ConfigError(key, path, f"can't be written ({error.strerror}); choose another folder") from error


def _nearest(given: str, names: Iterable[str]) -> str:
    close = difflib.get_close_matches(given, list(names), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def leaf_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of every leaf a user can set."""
    keys: list[str] = []
    for key in map(str, config):
        child = config._get_node(key)
        keys += leaf_keys(child, f"{prefix}{key}.") if isinstance(child, DictConfig) else [f"{prefix}{key}"]
    return keys


def explain(error: Exception, overrides: list[str], known_keys: Iterable[str]) -> str:
    """One line for whatever Hydra or OmegaConf refused, with the nearest spelling of a key or an option."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option}: allowed: {', '.join(error.options)}{_nearest(option, error.options)}"
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = f"{error}\n{cause}"
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    if unknown:
        key = unknown.group(1)
        given = next((o for o in overrides if o.split("=")[0].lstrip("+~") == key), key)
        # A default list error names the group where a value error names the leaf: both are keys a user typed.
        if "could not be converted" not in text and "not a valid" not in text.lower():
            known = list(known_keys)
            if key in known:  # a sweep over several choices of a group, and this is the key of some of them
                group = key.split(".")[0]
                problem = f"not every {group} of this sweep has that key; sweep those that have it on their own"
                return f"{given}: {problem} (their keys: blockshock {group}=NAME --cfg job)"
            return f"{given}: unknown key{_nearest(key, known)} (all keys: blockshock --cfg job)"
    wrong = getattr(cause, "full_key", None)
    if wrong:
        return f"{wrong}: {str(getattr(cause, 'msg', cause) or cause).splitlines()[0]}"
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


UserErrors = (ConfigError, HydraException, OmegaConfBaseException)
