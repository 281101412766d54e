"""From an option's `_target_` to its dataclass, or one line that says what to write instead.

option_class("blockshock.methods.block_shock.BlockShock", "method", CONF / "method")      # the class BlockShock
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from pathlib import Path

from omegaconf import OmegaConf

from blockshock.errors import WrongValue

PACKAGE = Path(__file__).resolve().parent


def option_class(target: str, group: str, own_options: Path) -> type:
    """The dataclass that `target` names, whose fields are the option's keys. Raises WrongValue.

    own_options: the folder with the YAML files of the group's options here.
    """
    key = f"{group}._target_"
    module, _, name = target.rpartition(".")
    try:
        schema = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        remedy = _own_option(name, own_options) or _where_it_is_now(error)
        raise WrongValue(key, target, f"can't be imported: {error}{remedy}") from error
    if not dataclasses.is_dataclass(schema) or not isinstance(schema, type):
        raise WrongValue(key, target, "must be a dataclass whose fields are its options")
    fields = {field.name for field in dataclasses.fields(schema)}
    renamed = getattr(schema, "of", None)
    if renamed in ("layer", "model", "any") and "of" not in fields:
        raise WrongValue(key, target, f"its class says `of`, which is `acts_on` now: write acts_on = {renamed!r}")
    return schema


def _where_it_is_now(error: Exception) -> str:
    """`; blockshock.timing is blockshock.measure.timing now`, where a module of ours has moved to another folder."""
    missing = re.search(r"cannot import name '(\w+)' from '([\w.]+)'", str(error))
    asked = f"{missing[2]}.{missing[1]}" if missing else str(getattr(error, "name", None) or "")
    if not asked.startswith(f"{PACKAGE.name}."):
        return ""
    stem = asked.rpartition(".")[2]
    paths = [path.relative_to(PACKAGE.parent).with_suffix("") for path in PACKAGE.rglob(f"{stem}.py")]
    return f"; {asked} is {'.'.join(paths[0].parts)} now" if len(paths) == 1 else ""


def _own_option(name: str, own_options: Path) -> str:
    """`; write _target_: ...`, where one of our own options has a class of this name."""
    files = sorted(own_options.glob("*.yaml"))
    targets = [str(OmegaConf.select(OmegaConf.load(path), "_target_")) for path in files]
    same = [target for target in targets if target.endswith(f".{name}")]
    return f"; write _target_: {same[0]}" if same else ""
