"""Which losses can be computed in chunks of rows: found in whole models' graphs, and a sentence where there is none."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, linear, mse_loss

from checkpointing.compiled.loss.loss_region import LossRegion, below_tangents, find_loss, linear_layers
from tests.checkpointing.compiled.loss.joint_graphs_of import traced
from tests.checkpointing.compiled.recorded_graphs import NAMES, recorded

ROWS, WIDTH, VOCABULARY = 12, 4, 10
FORMS = pytest.mark.parametrize("decomposed", [False, True], ids=["as traced", "decomposed"])

Loss = Callable[[Tensor, Tensor, Tensor], Tensor | tuple[Tensor, ...]]


@pytest.mark.parametrize("name", NAMES)
def test_in_a_models_graph_the_one_loss_is_found_with_its_gradients(name: str) -> None:
    graph = recorded(name).module.graph
    backward = below_tangents(graph)
    found = [find_loss(graph, node, backward) for node in linear_layers(graph, backward)]
    [region] = [one for one in found if isinstance(one, LossRegion)]
    rows, vocabulary = region.logits.meta["val"].shape
    assert region is found[0]
    assert vocabulary in (50264, 30528, 30522, 128256, 1000)  # as inductor pads it
    hidden = [end for end in region.ends if end.by_row]
    sums = [end.node.meta["val"].shape for end in region.ends if not end.by_row]
    assert [end.node.meta["val"].shape[0] for end in hidden] == [rows]
    assert sorted(len(shape) for shape in sums) == ([2] if name in ("gpt2", "llama") else [2, 2])
    assert all(any(0 <= vocabulary - size < 8 for size in shape) for shape in sums)
    assert all(node.meta["val"].numel() == rows for node in region.exits)


def batch() -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden, weight = torch.randn(ROWS, WIDTH), torch.randn(VOCABULARY, WIDTH)
    return hidden.requires_grad_(), weight.requires_grad_(), torch.randint(VOCABULARY, (ROWS,))


def region_or_reason(loss: Loss, decomposed: bool) -> LossRegion | str:
    step = traced(loss, batch(), None, decomposed)
    step.run()
    return step.regions[0]


def plain(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(hidden @ weight.t(), labels)


def smoothed(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    classes = torch.linspace(0.5, 2, VOCABULARY)
    return cross_entropy(linear(hidden, weight), labels, weight=classes, label_smoothing=0.1, ignore_index=3)


def capped_with_z_loss(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = 5 * torch.tanh(linear(hidden.view(3, 4, WIDTH), weight) / 5)
    z = torch.logsumexp(logits.float(), -1)
    return cross_entropy(logits.view(-1, VOCABULARY), labels, reduction="sum") + 1e-3 * z.square().mean()


def by_row(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(linear(hidden, weight), labels, reduction="none")


def distilled(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    teacher = torch.nn.functional.one_hot(labels, VOCABULARY).float()
    return kl_div(linear(hidden, weight).log_softmax(-1), teacher, reduction="none").sum(-1).mean()


@FORMS
@pytest.mark.parametrize("loss", [plain, smoothed, capped_with_z_loss, by_row, distilled])
def test_losses_that_treat_each_row_alone_are_found(loss: Loss, decomposed: bool) -> None:
    region = region_or_reason(loss, decomposed)
    assert isinstance(region, LossRegion), region
    assert region.logits.meta["val"].shape == (ROWS, VOCABULARY)
    assert len(region.ends) == 2


def returned(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = linear(hidden, weight)
    return cross_entropy(logits, labels), logits


def with_accuracy(hidden: Tensor, weight: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = linear(hidden, weight)
    return cross_entropy(logits, labels), (logits.argmax(-1) == labels).float().mean()


def shifted(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = linear(hidden.view(3, 4, WIDTH), weight)[:, :-1].reshape(-1, VOCABULARY)
    return cross_entropy(logits, labels.view(3, 4)[:, 1:].reshape(-1))


def over_the_batch(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    logits = linear(hidden, weight)
    return cross_entropy(logits - logits.mean(0), labels)


def perplexity(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return plain(hidden, weight, labels).exp()


def regression(hidden: Tensor, weight: Tensor, labels: Tensor) -> Tensor:
    return mse_loss(linear(hidden, weight), labels[:, None].expand(-1, VOCABULARY).float())


@FORMS
@pytest.mark.parametrize(
    ("loss", "why"),
    [
        (returned, "are read by the caller, as a result of the step"),
        (with_accuracy, r"are read by aten\.argmax"),
        (shifted, r"are read by aten\.slice"),
        (over_the_batch, r"are read by aten\.mean|needs all rows at once"),
        (perplexity, "needs all rows at once"),
        (regression, "are read by|no softmax"),
    ],
)
def test_where_rows_meet_or_logits_are_needed_one_sentence_says_so(loss: Loss, why: str, decomposed: bool) -> None:
    said = region_or_reason(loss, decomposed)
    assert isinstance(said, str)
    assert re.search(why, said), said
    assert "\n" not in said


def test_one_row_cannot_be_divided() -> None:
    hidden, weight, labels = batch()
    step = traced(plain, (hidden[:1].detach().requires_grad_(), weight, labels[:1]), 4, decomposed=False)
    step.run()
    assert step.said == (
        "the loss is not in chunks: the 10 results per row of mm are of 1 row, which cannot be divided"
    )
