"""docs/reference/keys.md and columns.md are what the code says today."""

from __future__ import annotations

import runpy
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from blockshock.cli import resolvers
from blockshock.config import CONF
from tests.import_graph import ROOT

PAGE = ROOT / "docs" / "reference" / "keys.md"


@pytest.mark.parametrize("page", ["keys.md", "columns.md"])
def test_a_page_is_as_generated(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    made = runpy.run_path(str(ROOT / "docs" / "make_reference.py"))["PAGES"]
    assert (PAGE.parent / page).read_text() == made[page](), "run: python docs/make_reference.py"


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
