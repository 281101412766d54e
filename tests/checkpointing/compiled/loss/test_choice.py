"""Chunks as a decision of the planner: how many, along with what is recomputed, and why."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import checkpointing
from checkpointing import BudgetError, decide, plan_of, plans_of
from checkpointing.compiled.loss.candidates import Candidate, Candidates, candidate, guessed
from checkpointing.compiled.loss.choice import choose
from checkpointing.decide import lowest_plan
from checkpointing.planners.schedule import make_schedule, unchanged_peak
from tests.checkpointing.compiled.loss.test_chunked_loss import Head, batch, loss_of
from tests.checkpointing.compiled.recorded_graphs import candidate_of, chunked_problem_of, on_meta, problem_of, recorded
from tests.checkpointing.compiled.training import train

MIB = 2**20
ROWS, VOCABULARY = 256, 2048


def planned(budget: float | int, chunks: int | str | None = "auto") -> tuple[nn.Module, list[Tensor]]:
    backend = checkpointing.backend(budget, execution="eager", chunked_loss=chunks)
    trained = train(Head(VOCABULARY), loss_of, batch(ROWS, VOCABULARY), backend, steps=2)
    return trained.model, trained.losses


def test_a_step_that_fits_as_it_is_stays_as_it_is_bitwise() -> None:
    model, losses = planned(1.0)
    assert plan_of(model).loss == "the loss is in one piece: the step fits the budget so"
    assert plan_of(model).is_empty
    expected = train(Head(VOCABULARY), loss_of, batch(ROWS, VOCABULARY), "aot_eager", steps=2)
    assert [loss.item() for loss in losses] == [loss.item() for loss in expected.losses]


def test_a_step_that_fits_in_chunks_alone_has_as_few_as_it_needs_and_says_why() -> None:
    model, _ = planned(0.5)
    plan = plan_of(model)
    assert plan.loss.startswith("the loss of head in ")
    assert "in one piece above the budget" in plan.loss
    assert plan.loss in plan.summary()
    assert "the unplanned step fits" not in plan.summary()
    assert plan.predicted_peak_bytes <= plan.budget_bytes == int(0.5 * plan.unplanned_peak_bytes)
    alone, _ = planned(1.0)
    assert plan.unplanned_peak_bytes == plan_of(alone).unplanned_peak_bytes  # a fraction of the step as it was
    assert plan.curve(planned=False).bytes.max() == plan.unplanned_peak_bytes


def test_a_budget_that_no_number_of_chunks_meets_is_rejected_with_the_lowest_of_all() -> None:
    with pytest.raises(BudgetError, match="below the minimum of") as rejected:
        planned(0.05)
    with pytest.raises(BudgetError) as unchunked:
        planned(0.05, None)
    assert rejected.value.minimum_bytes < 0.5 * unchunked.value.minimum_bytes


def test_the_files_of_a_loop_have_each_its_own_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two shapes under one budget the larger needs chunks. Whoever reads the files neither measures nor plans."""
    budget = plan_of(planned(0.5)[0]).budget_bytes
    small, large = (train(Head(VOCABULARY), loss_of, batch(rows, VOCABULARY), _by(budget), 1) for rows in (8, ROWS))
    none, number = (plan_of(one.model).options["chunked_loss"] for one in (small, large))
    assert none is None
    assert number > 1
    files = [plan_of(one.model).to_json(tmp_path / f"{i}.json") for i, one in enumerate((small, large))]

    def forbidden(*_: Any) -> None:
        raise AssertionError("measured or planned")

    monkeypatch.setattr("checkpointing.compiled.costs.costs.Costs.measure", forbidden)
    monkeypatch.setattr("checkpointing.compiled.decisions.within.SOLVERS", {"optimal": forbidden})
    again = train(Head(VOCABULARY), loss_of, batch(ROWS, VOCABULARY), checkpointing.backend(plan=files), steps=1)
    assert again.losses == large.losses
    assert plan_of(again.model).to_json(tmp_path / "again.json").read_text() == files[1].read_text()
    again.loss_fn(again.model, *batch(8, VOCABULARY)).backward()
    assert {plan.options["chunked_loss"] for plan in plans_of(again.model)} == {None, number}


def _by(budget: int) -> Any:
    return checkpointing.backend(budget, execution="eager", chunked_loss="auto")


def test_a_model_without_such_a_loss_says_why() -> None:
    def square(model: nn.Module, x: Tensor, _: Tensor) -> Tensor:
        return model(x).square().mean()

    backend = checkpointing.backend(0.9, execution="eager", chunked_loss="auto")
    model = train(Head(64), square, batch(64, 64), backend, steps=1).model
    assert plan_of(model).loss.startswith("the loss is not in chunks: ")


def test_the_number_is_planned_where_kernels_round_in_their_own_way() -> None:
    """And the loss stays as it is where a step promises the bits of the unplanned graph, or where that is asked for."""
    default, eager = (checkpointing.backend("8GB", execution=execution) for execution in ("inductor", "eager"))
    assert (default.chunked_loss, eager.chunked_loss) == ("auto", None)
    assert checkpointing.backend("8GB", chunked_loss="plain").chunked_loss is None
    assert checkpointing.backend("8GB", chunked_loss=4, execution="eager").chunked_loss == 4


@cache
def made(name: str, chunks: int | None) -> Candidate:
    """Once for all tests: what inductor saves takes it seconds to choose."""
    with pytest.MonkeyPatch.context() as patch:
        return candidate_of(recorded(name), chunks, patch)


def in_the_docs() -> list[list[str]]:
    """The rows of the table of lowest plans: model, static, gradients, chunks, in one piece, in chunks, set by."""
    page = (Path(__file__).parents[4] / "docs" / "checkpointing.md").read_text()
    table = page.partition("| lowest in one piece |")[2].partition("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in table]


@pytest.mark.slow
@pytest.mark.parametrize("row", in_the_docs(), ids=lambda row: row[0].split()[0])
def test_the_lowest_plans_of_full_size_models_are_those_of_the_docs(
    row: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loss in chunks is not above the one in one piece."""
    monkeypatch.setattr(decide, "SEARCH_S", 30.0)  # a busy machine's
    name = {"GPT-2": "gpt2", "BERT": "bert", "Llama": "llama"}[row[0].split()[0]]
    static, gradients, chunks, in_one_piece, in_chunks = map(int, row[1:6])
    graph = recorded(name)
    whole, step = (made(name, count).step for count in (None, chunks))
    plain = chunked_problem_of(graph, whole)
    kernels = {node for node in step.gradients if node in step.kernels.of}
    assert round(plain.static_bytes / MIB) == static
    assert round(sum(map(step.size, kernels)) / MIB) == gradients
    lowest = [lowest_plan(p).predicted_peak_bytes / MIB for p in (plain, chunked_problem_of(graph, step))]
    assert lowest == pytest.approx([in_one_piece, in_chunks], rel=0.005)
    assert in_chunks <= 1.01 * in_one_piece
    assert name != "gpt2" or in_chunks < 1500


@pytest.mark.slow
def test_gpt2_is_in_chunks_where_that_is_faster_than_recomputing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = recorded("gpt2")
    whole = unchanged_peak(problem_of(graph, monkeypatch))

    def chosen(budget: int) -> tuple[int | None, str]:
        one, why = choose(
            lambda chunks: made("gpt2", chunks),
            lambda step: chunked_problem_of(graph, step),
            lambda _: budget,
            lambda schedule: schedule.peak,
            guess=lambda one, chunks: guessed(graph.num_fwd_outputs, graph.static_inputs, True, False, one, chunks),
        )
        return one.chunks, why

    assert chosen(whole + MIB)[0] is None
    chunks, why = chosen(int(0.4 * whole))
    assert chunks is not None
    assert chunks >= 4
    assert "in one piece above the budget" in why


@pytest.mark.slow
def test_chunks_of_logits_that_are_a_thousandth_of_the_memory_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of 64 images and 1000 classes."""
    graph = recorded("resnet152")
    budget = int(0.6 * unchanged_peak(problem_of(graph, monkeypatch)))

    def no_other(*_: Any) -> Any:
        raise AssertionError("a loss in chunks was tried")

    one, why = choose(
        lambda chunks: made("resnet152", None) if chunks is None else no_other(),
        lambda step: chunked_problem_of(graph, step),
        lambda _: budget,
        lambda schedule: schedule.peak,
        guess=no_other,
    )
    assert one.chunks is None
    assert why == "the loss is in one piece: no linear layer of the step makes logits that matter"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "chunks"), [("gpt2", 16), ("bert", 8), ("llama", 8)])
def test_a_guess_is_the_compilers_own_choice(name: str, chunks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    on_meta(monkeypatch)
    graph = recorded(name)
    in_one_piece, exact = made(name, None), made(name, chunks)
    guess = guessed(graph.num_fwd_outputs, graph.static_inputs, True, False, in_one_piece, chunks)
    assert guess is not None
    assert guess.is_compilers
    assert (guess.chunks, guess.said) == (exact.chunks, exact.said)
    for of in (
        lambda problem: problem.targets,
        lambda problem: problem.time,
        lambda problem: {problem.storage_names[index] for index in problem.default_kept},
        lambda problem: make_schedule(problem, problem.default_kept).peak,
    ):
        assert of(chunked_problem_of(graph, guess.step)) == of(chunked_problem_of(graph, exact.step))


@pytest.mark.slow
def test_where_a_guess_is_the_compilers_choice_it_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    on_meta(monkeypatch)
    graph, asked = recorded("gpt2"), []

    def counted(*args: Any) -> Any:
        asked.append(args[-1])
        return candidate(*args)

    monkeypatch.setattr("checkpointing.compiled.loss.candidates.candidate", counted)
    candidates = Candidates(fused=True, kernel=False)
    candidates.begin(graph.module, [], graph.num_fwd_outputs, graph.static_inputs)
    made = candidates.make(4)
    assert made.chunks == 4
    assert made is candidates.guess(candidates.make(None), 4)
    assert asked == [None]


def test_operator_by_operator_the_step_in_one_piece_and_the_chosen_one_are_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[int | None] = []

    def counted(*args: Any) -> Any:
        asked.append(args[-1])
        return candidate(*args)

    monkeypatch.setattr("checkpointing.compiled.loss.candidates.candidate", counted)
    model, _ = planned(0.5)
    assert asked == [None, plan_of(model).options["chunked_loss"]]
