"""Architectures that people train: under a budget each is bitwise the unplanned step, or is rejected with a reason."""

from __future__ import annotations

import pytest

from tests.checkpointing.compiled.architectures import (
    REJECTED,
    RELATIVES,
    REMEDIED,
    TIMM,
    TRANSFORMERS,
    has_timm,
    prove,
    prove_all,
)

QUICK = ("gpt2", "mixtral", "resnet")


@pytest.mark.parametrize("name", QUICK)
def test_an_architecture_under_a_budget_is_bitwise_the_unplanned_step(name: str) -> None:
    row = prove(name)
    assert row.reason == ""
    assert row.recomputed > 0


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_architectures_of_each_kind_under_a_budget_are_bitwise_the_unplanned_step() -> None:
    """Without their relatives, which `python -m tests.checkpointing.compiled.architectures` proves for the table."""
    cases = [(name, "") for name in (*TRANSFORMERS, *(TIMM if has_timm() else ()))] + list(REMEDIED.items())
    proved = [case for case in cases if case[0] not in RELATIVES and case[0] not in QUICK]
    assert set(RELATIVES.values()) <= {*QUICK, *(name for name, _ in proved), *TIMM}
    rows = list(prove_all(proved))
    assert {row.name: row.reason for row in rows if row.reason} == {}
    assert [row.name for row in rows if not row.recomputed] == []


@pytest.mark.slow
@pytest.mark.parametrize("name", REJECTED)
def test_what_is_no_one_graph_is_rejected_in_a_line_that_says_where_and_what_to_do(name: str) -> None:
    reason = prove(name).reason
    assert "\n" not in reason
    assert "the step breaks into several graphs at " in reason
    assert REJECTED[name] in reason
