"""Architectures that people train: under a budget each is bitwise the unplanned step, or is rejected with a reason."""

from __future__ import annotations

import pytest

from tests.checkpointing.compiled.architectures import (
    BUDGETS,
    REJECTED,
    RELATIVES,
    REMEDIED,
    TIMM,
    TRANSFORMERS,
    has_timm,
    prove,
)

QUICK = ("gpt2", "mixtral", "resnet")
CASES = [(name, "") for name in (*TRANSFORMERS, *(TIMM if has_timm() else ()))] + list(REMEDIED.items())
# One layer of these needs more than the first budget: what is below its minimum compiles as long as what is proved.
NEEDS_MORE = {**dict.fromkeys(("fnet", "xlnet", "mamba2", "vit", "wav2vec2"), 0.92), "gpt_oss": 0.97}
PROVED = [case for case in CASES if case[0] not in RELATIVES]


@pytest.mark.parametrize(
    ("name", "remedy"),
    [pytest.param(*case, id=case[0], marks=() if case[0] in QUICK else pytest.mark.slow) for case in PROVED],
)
def test_an_architecture_under_a_budget_is_bitwise_the_unplanned_step(name: str, remedy: str) -> None:
    """Each with one of its layers, and without relatives: `python -m tests.checkpointing.compiled.architectures` proves
    all of them, with two layers, for the table."""
    row = prove(name, remedy, layers=1, budgets=(NEEDS_MORE.get(name, BUDGETS[0]), BUDGETS[-1]))
    assert row.reason == ""
    assert row.recomputed > 0


def test_what_is_left_out_has_a_relative_that_is_proved() -> None:
    assert set(RELATIVES.values()) <= {*(name for name, _ in PROVED), *TIMM}


@pytest.mark.slow
@pytest.mark.parametrize("name", REJECTED)
def test_what_is_no_one_graph_is_rejected_in_a_line_that_says_where_and_what_to_do(name: str) -> None:
    reason = prove(name, layers=1).reason
    assert "\n" not in reason
    assert "the step breaks into several graphs at " in reason
    assert REJECTED[name] in reason
