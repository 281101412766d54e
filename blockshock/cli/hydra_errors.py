"""What Hydra or OmegaConf refused, said in one line: what was given, what is allowed, what to do.

explain(error, ["method=dtensor_row", "method.collective=nccl"])
# method.collective=nccl: method=dtensor_row has no such key (block_shock, dense_tp_row, ... have it)
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from blockshock.config import CONF, GROUPS
from blockshock.errors import ConfigError, nearest

UserErrors = (ConfigError, HydraException, OmegaConfBaseException)
_NO_WORD, _TWO_FLAGS = "Config group override must be a string", "Only one of --run, --multirun"
_NEAR = 0.85  # keys of a group start alike, which is no likeness


def is_users(error: ValueError) -> bool:
    """Whether one of Hydra's bare ValueErrors is about the command line."""
    return str(error).startswith((_NO_WORD, _TWO_FLAGS, "The --resolve flag"))


def explain(error: Exception, overrides: list[str]) -> str:
    """One line for what was refused, with the nearest spelling of a key or an option."""
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file and error.options is not None:
        group, _, option = error.missing_cfg_file.rpartition("/")
        return f"{group}={option}: allowed: {', '.join(error.options)}{nearest(option, error.options)}"
    if str(error).startswith(_TWO_FLAGS):
        return f"{error}; to see a job of a sweep, leave out -m and give each key one value"
    if str(error).startswith(_NO_WORD):
        return _no_option(overrides) or str(error)
    cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else error
    text = f"{error}\n{cause}"
    unknown = re.search(r"Could not override '([^']+)'", text) or re.search(r"Key '([^']+)' is not in struct", text)
    # A default list error names the group where a value error names the leaf: both are keys a user typed.
    if unknown and "could not be converted" not in text and "not a valid" not in text.lower():
        return _unknown_key(unknown.group(1), overrides)
    wrong = getattr(cause, "full_key", None)
    if wrong:
        return f"{wrong}: {str(getattr(cause, 'msg', cause) or cause).splitlines()[0]}"
    return " ".join(line.strip() for line in str(error).splitlines() if line.strip())


def _no_option(overrides: list[str]) -> str | None:
    """The choice that is no word, `method=3` or `method=null`, and the group's options."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        for override in overrides:
            group, _, value = override.lstrip("+").partition("=")
            options = loader.get_group_options(group)
            if options and not set(value.split(",")) <= set(options):
                return f"{override}: allowed: {', '.join(options)}"
    return None


def _unknown_key(key: str, overrides: list[str]) -> str:
    given = next((o for o in overrides if o.split("=")[0].lstrip("+~") == key), key)
    group = key.split(".")[0]
    typed = dict(o.lstrip("+").split("=", 1) for o in overrides)
    if "/" in key and (CONF / key).is_dir():
        choices = [path.stem for path in (CONF / key).parent.glob("*.yaml") if f"/{key}:" in path.read_text()]
        return f"{given}: belongs to {' and '.join(f'{Path(key).parent}={choice}' for choice in choices)}"
    try:  # with what is chosen inside of a phase, if that phase is chosen
        cfg = _composed(typed, [o for o in overrides if "@" in o.split("=")[0] or o.startswith("phase/")])
    except HydraException:
        cfg = _composed(typed)
    having = _having(group, key) if group in GROUPS else []
    if having:
        chosen = typed.get(group, cfg.hydra.runtime.choices[group])
        if "," in chosen or "(" in chosen or group in (cfg.hydra.sweeper.get("params") or {}):
            problem = f"not every {group} of this sweep has that key; sweep those that have it on their own"
        else:
            problem = f"{group}={chosen} has no such key"
        return f"{given}: {problem} ({', '.join(having)} {'has' if len(having) == 1 else 'have'} it)"
    known = [*leaf_keys(cfg), *GROUPS, "hardware", "sweep", *(_keys_of(group) if group in GROUPS else [])]
    return f"{given}: unknown key{nearest(key, known, _NEAR)} (all keys: blockshock --cfg job)"


def _composed(typed: dict[str, str], inner: Sequence[str] = ()) -> DictConfig:
    """The configuration with its `hydra` node that the choices on the command line make, where those exist.

    `inner`: overrides of choices within a choice, such as a benchmark's part and its contenders.
    """
    groups = (*GROUPS, "hardware", "sweep")
    chosen = [(g, c) for g, c in typed.items() if g in groups and (CONF / g / f"{c}.yaml").exists()]
    chosen += [(g, c) for g, c in typed.items() if g == "hydra/launcher" and c in ("local", "slurm")]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = [f"{'+' * (group == 'sweep')}{group}={choice}" for group, choice in chosen]
        return compose("config", overrides=[*overrides, *inner], return_hydra_config=True)


def _having(group: str, key: str) -> list[str]:
    """The choices of `group` whose file sets `key`, as `group.key` where it speaks of other groups too."""
    names = {key, key.removeprefix(f"{group}.")}
    files = {path.stem: OmegaConf.load(path) for path in sorted((CONF / group).glob("*.yaml"))}
    return [choice for choice, cfg in files.items() if isinstance(cfg, DictConfig) and names & set(leaf_keys(cfg))]


def _keys_of(group: str) -> list[str]:
    """Every key that some choice of `group` has: a sweep's jobs may have another choice than its configuration."""
    files = [OmegaConf.load(path) for path in sorted((CONF / group).glob("*.yaml"))]
    return [
        f"{group}.{key.removeprefix(f'{group}.')}"
        for cfg in files
        if isinstance(cfg, DictConfig)
        for key in leaf_keys(cfg)
    ]


def leaf_keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Dotted names of every leaf a user can set."""
    keys: list[str] = []
    for key in map(str, config):
        child = config._get_node(key)
        keys += leaf_keys(child, f"{prefix}{key}.") if isinstance(child, DictConfig) else [f"{prefix}{key}"]
    return keys
