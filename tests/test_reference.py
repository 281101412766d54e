"""docs/reference/keys.md is what conf/ and the launchers' dataclasses say today."""

from __future__ import annotations

import runpy
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from blockshock.cli import resolvers
from blockshock.config import CONF
from tests.import_graph import ROOT

PAGE = ROOT / "docs" / "reference" / "keys.md"


def test_the_page_of_the_keys_is_as_generated() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "make_keys.py"))
    assert PAGE.read_text() == made["page"](), "run: python docs/make_keys.py"


def test_every_key_that_hydra_composes_is_on_the_page() -> None:
    """By Hydra itself, and not by the parser of the comments: a key of any choice, and the choice."""
    resolvers.register()
    text = PAGE.read_text()
    missing = []
    with initialize_config_dir(str(CONF), version_base="1.3"):
        for group in ("phase", "method", "mask", "workload", "hardware", "sweep"):
            for option in sorted(path.stem for path in (CONF / group).glob("*.yaml")):
                missing += [] if f"| `{option}` |" in text else [f"{group}={option}"]
                if group not in ("sweep", "hardware"):
                    composed = compose("config", [f"{group}={option}"])
                    keys = OmegaConf.to_container(composed[group], resolve=False)
                    missing += [key for key in _dotted(group, keys) if f"| `{key}` |" not in text]
        composed = OmegaConf.to_container(compose("config"), resolve=False)
        assert isinstance(composed, dict)
        for group in ("experiment", "model", "hardware"):
            missing += [key for key in _dotted(group, composed[group]) if f"| `{key}` |" not in text]
    assert missing == []


def _dotted(group: str, keys: Any) -> list[str]:
    own = {"_target_", "contenders", "part"} | ({"name"} if group != "experiment" else set())
    return [f"{group}.{key}" for key in keys if key not in own]
