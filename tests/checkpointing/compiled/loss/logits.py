"""Chunks of logits with all that a loss makes of their rows, and the same in float64.

chunk = draw(Chunk(rows=5, vocabulary=300, width=304), "cpu")
true_stats, true_gradient, sizes = exact(chunk)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SENTINEL = 77.0  # in memory between rows


@dataclass(frozen=True)
class Chunk:
    """`gap` elements lie between rows; rows begin `offset` elements into the memory."""

    rows: int
    vocabulary: int
    width: int
    gap: int = 0
    offset: int = 0
    dtype: torch.dtype = torch.bfloat16
    square: bool = False
    every: bool = False  # a part of the gradient that every class has: label smoothing
    weighted: bool = False
    spread: float = 3.0
    seed: int = 0


@dataclass
class Drawn:
    chunk: Chunk
    memory: Tensor
    logits: Tensor
    labels: Tensor
    of_softmax: Tensor
    of_label: Tensor
    of_square: Tensor | None
    of_all: Tensor | None
    classes: Tensor | None

    @property
    def factors(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.of_softmax, self.of_label, self.of_square, self.of_all


def draw(chunk: Chunk, device: str) -> Drawn:
    generator = torch.Generator(device).manual_seed(chunk.seed)

    def values(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device)

    stride = chunk.width + chunk.gap
    memory = torch.full((chunk.offset + chunk.rows * stride,), SENTINEL, dtype=chunk.dtype, device=device)
    logits = memory.as_strided((chunk.rows, chunk.width), (stride, 1), chunk.offset)
    logits.copy_(chunk.spread * values(chunk.rows, chunk.width))
    labels = torch.randint(chunk.vocabulary, (chunk.rows,), generator=generator, device=device)
    factors = [values(chunk.rows) for _ in range(4)]
    classes = torch.rand(chunk.vocabulary, generator=generator, device=device) + 0.5
    return Drawn(
        chunk,
        memory,
        logits,
        labels,
        factors[0],
        factors[1],
        factors[2] if chunk.square else None,
        factors[3] if chunk.every else None,
        classes if chunk.weighted else None,
    )


def exact(drawn: Drawn) -> tuple[Tensor, Tensor, Tensor]:
    """(statistics [3, rows], gradient [rows, width], size of the terms that were added in it), in float64."""
    chunk, x = drawn.chunk, drawn.logits[:, : drawn.chunk.vocabulary].double()
    weights = torch.ones_like(x) if drawn.classes is None else drawn.classes.double().expand_as(x)
    lse = x.logsumexp(1)
    at_label = x.gather(1, drawn.labels[:, None])[:, 0]
    stats = torch.stack([lse, at_label, (x * weights).sum(1)])
    factor, added = drawn.of_softmax.double(), drawn.of_softmax.double().abs()
    if drawn.of_square is not None:  # they may cancel, and their roundings do not
        factor, added = factor + drawn.of_square.double() * lse, added + (drawn.of_square.double() * lse).abs()
    terms = [x.softmax(1) * factor[:, None], torch.zeros_like(x)]
    terms[1].scatter_(1, drawn.labels[:, None], drawn.of_label.double()[:, None])
    if drawn.of_all is not None:
        terms.append(drawn.of_all.double()[:, None] * weights)
    behind = (0, chunk.width - chunk.vocabulary)
    gradient = torch.nn.functional.pad(torch.stack(terms).sum(0), behind)
    terms[0] = x.softmax(1) * added[:, None]
    return stats, gradient, torch.nn.functional.pad(torch.stack(terms).abs().sum(0), behind)


def check(drawn: Drawn, stats: Tensor, before: Drawn, roundings: float = 0.5) -> None:
    """`stats` and the gradient that `drawn.logits` hold now, of what `before` held.

    Float32 loses some units of the terms that are added; the result is rounded once: by half a unit in the last place,
    by one where Triton's interpreter truncates.
    """
    true_stats, true, sizes = exact(before)
    chunk, limits = drawn.chunk, torch.finfo(drawn.chunk.dtype)
    lse, at_label, weighted = (stats.double() - true_stats).abs()
    assert bool((lse <= 1e-5 + 1e-6 * true_stats[0].abs()).all())
    assert not at_label.any()
    if chunk.every:
        largest = before.logits.double().abs().sum(1) * 1.5
        assert bool((weighted <= 1e-6 * largest).all())
    error = (drawn.logits.double() - true).abs()
    vanishing = 1e-35 + limits.smallest_normal * limits.eps  # a probability that float32 has no normal number for
    allowed = roundings * limits.eps * true.abs() + 1e-5 * sizes + vanishing
    assert bool((error <= allowed).all()), float((error - allowed).max())
    assert not drawn.logits[:, chunk.vocabulary :].any()
    gaps = torch.ones_like(drawn.memory, dtype=torch.bool)
    gaps.as_strided(drawn.logits.shape, drawn.logits.stride(), chunk.offset).fill_(False)
    assert bool((drawn.memory[gaps] == SENTINEL).all())
