"""What a user writes, a budget or a file of decisions: read as it is meant, or refused in one line."""

import math
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from checkpointing import (
    BudgetError,
    Decision,
    DecisionsFileError,
    IllegalPlanError,
    Plan,
    apply_activation_checkpointing,
    decide_checkpoints,
    read_plan,
    rewrite_graph_with_recomputation,
)
from checkpointing.budget import in_bytes
from profiler.models import build
from tests.checkpointing.brute_force import random_times
from tests.checkpointing.steps import adamw, small_case, tiny_case

COLUMNS = "activation_name,decision,median_mem_size_bytes,recomp_time_s,recompute_ratio,creation_rank,first_bw_use_rank"


@pytest.mark.parametrize(
    ("budget", "expected"),
    [
        (0.5, 100 + 200),
        (1, 500),
        (1.0, 500),
        (2, 2),
        (24 * 2**30, 24 * 2**30),
        ("24GiB", 24 * 2**30),
        ("1.5 GB", 1_500_000_000),
        ("800 MB", 800_000_000),
        ("512 mib", 512 * 2**20),
        ("4096B", 4096),
    ],
)
def test_budget_is_bytes_a_string_or_a_fraction(budget: float | str, expected: int) -> None:
    assert in_bytes(budget, static_bytes=100, peak_bytes=500) == expected


@pytest.mark.parametrize("budget", [0, 0.0, -1, -0.5, math.nan, math.inf, 1.5, "24 parsecs", "", "-4GiB", "0GiB", True])
@pytest.mark.parametrize("where", ["decide", "apply"])
def test_a_budget_that_means_nothing_is_refused_before_any_work(budget: float | str, where: str) -> None:
    problem = tiny_case("tiny_gpt2").problem

    def apply() -> None:
        model = build("tiny_gpt2")
        never = lambda *_: pytest.fail("the model ran")  # noqa: E731
        apply_activation_checkpointing(model.model, never, adamw(model.model.parameters()), model.batch, budget)

    with pytest.raises(BudgetError) as caught:
        apply() if where == "apply" else decide_checkpoints(problem, budget)
    message = str(caught.value)
    assert message.startswith(f"memory_budget={budget!r}: ")
    assert 'give bytes (25769803776), a string ("24GiB", "800 MB"), or a fraction' in message
    assert "\n" not in message


@pytest.fixture
def plan() -> Plan:
    case = small_case(2, 12, random_times(2))
    problem = case.problem
    return case.plan([*problem.candidates[::2], *problem.keepable[:2]])


def test_csv_has_the_columns_and_the_values_of_the_plan(plan: Plan, tmp_path: Path) -> None:
    path = plan.to_csv(tmp_path / "new folder" / "ac_decisions_bs4.csv")
    assert path.read_text().splitlines()[0] == COLUMNS
    table = pd.read_csv(path).set_index("activation_name")
    problem = plan.problem
    for index in problem.activations:
        row = table.loc[problem.storage_names[index]]
        assert row["decision"] == (Decision.CHECKPOINT if index in plan.kept else Decision.RECOMPUTE)
        assert row["median_mem_size_bytes"] == problem.size[index]
        assert row["creation_rank"] == problem.writers[index][0]
        assert row["first_bw_use_rank"] >= problem.backward_start
    extra = table.index[table["first_bw_use_rank"] == -1]  # temporaries that are kept
    assert len(extra) == 2
    assert (table.loc[extra, "decision"] == "CHECKPOINT").all()


def test_ratio_is_bytes_saved_over_recompute_time(plan: Plan) -> None:
    table = plan.table()
    timed = table[table["recomp_time_s"] > 0]
    assert len(timed) > 3
    assert (timed["recompute_ratio"] == timed["median_mem_size_bytes"] / timed["recomp_time_s"]).all()
    assert (table[table["recomp_time_s"] == 0]["recompute_ratio"] == math.inf).all()
    assert plan.table().equals(table)


def test_recompute_time_grows_when_sources_are_given_up() -> None:
    """Every node takes 1 ms here."""
    case = tiny_case("tiny_gpt2")
    problem = case.problem
    everything = set(problem.forward_values)
    for index in problem.candidates[:10]:
        table = case.plan(everything - {index}).table().set_index("activation_name")
        seconds = table.loc[problem.storage_names[index], "recomp_time_s"]
        assert seconds >= len(problem.writers[index]) * 1e-3 * (1 - 1e-9)
        deeper = case.plan(()).table().set_index("activation_name").loc[problem.storage_names[index], "recomp_time_s"]
        assert deeper >= seconds


def test_a_file_gives_the_plan_back(plan: Plan, tmp_path: Path) -> None:
    again = read_plan(plan.to_csv(tmp_path / "plan.csv"), plan.problem)
    assert again.kept == plan.kept
    assert again.predicted_peak_bytes == plan.predicted_peak_bytes
    assert again.predicted_added_s == plan.predicted_added_s


def dropped(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.drop(columns=column)


def emptied(column: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table = table.astype({column: object})
        table.loc[1, column] = math.nan
        return table

    return change


def written_in(column: str, value: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[1, column] = value
        return table

    return change


@pytest.mark.parametrize(
    ("change", "error", "expected"),
    [
        *(
            (dropped(c), DecisionsFileError, f"column {c} is missing; it needs activation_name, ")
            for c in COLUMNS.split(",")
        ),
        *((emptied(c), DecisionsFileError, f"column {c} is empty in row 3") for c in COLUMNS.split(",")),
        (written_in("decision", "MAYBE"), DecisionsFileError, "decision 'MAYBE' is neither CHECKPOINT nor RECOMPUTE"),
        (
            written_in("activation_name", "foo"),
            IllegalPlanError,
            "this step makes no foo: the plan is for another graph",
        ),
        (lambda table: table.iloc[1:], IllegalPlanError, "says nothing of "),
    ],
)
def test_a_wrong_file_is_refused(
    plan: Plan, tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], error: type, expected: str
) -> None:
    path = plan.to_csv(tmp_path / "plan.csv")
    change(pd.read_csv(path)).to_csv(path, index=False)
    with pytest.raises(error) as caught:
        read_plan(path, plan.problem)
    assert str(caught.value).startswith(f"{path}: ")
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_table_is_refused(plan: Plan, tmp_path: Path) -> None:
    for path, content in ((tmp_path / "none.csv", None), (tmp_path / "empty.csv", "")):
        if content is not None:
            path.write_text(content)
        with pytest.raises(DecisionsFileError, match="cannot be read as a table of decisions"):
            read_plan(path, plan.problem)


def test_a_file_that_recomputes_what_may_not_be_is_refused(tmp_path: Path) -> None:
    case = next(c for c in (small_case(s, 12) for s in range(60)) if set(c.problem.pinned) & set(c.problem.activations))
    problem = case.problem
    name = problem.storage_names[next(i for i in problem.activations if i in problem.pinned)]
    path = case.plan(problem.activations).to_csv(tmp_path / "plan.csv")
    table = pd.read_csv(path)
    table.loc[table["activation_name"] == name, "decision"] = "RECOMPUTE"
    table.to_csv(path, index=False)
    with pytest.raises(IllegalPlanError, match=f"{name} may not be recomputed: it .* plan it as CHECKPOINT"):
        read_plan(path, problem)


def test_a_plan_and_its_step_are_shown_in_a_line_and_the_plan_prints_a_table(plan: Plan) -> None:
    recomputed, activations = len(plan.recomputed), len(plan.problem.activations)
    assert repr(plan) == f"<Plan of {plan.solver}: {recomputed} of {activations} activations recomputed>"
    step = rewrite_graph_with_recomputation(small_case(2, 12, random_times(2)).step, plan)
    assert len(repr(step)) < 120
    assert "CheckpointedStep" in repr(step)
    name = plan.problem.storage_names[plan.recomputed[0]]
    assert name in str(plan)
    assert plan.summary() in str(plan)
    assert f"<td>{name}</td>" in plan._repr_html_()
