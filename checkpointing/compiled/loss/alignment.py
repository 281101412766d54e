"""Matmuls whose vocabulary is a size that the device multiplies fast: padded with zeros that nothing reads.

    plain = without_padding(graph, logits)          # inductor's own padding of that vocabulary, undone in place
    aligned = Alignment(logits)
    aligned.padded(new, gradient, dim=1)            # once for all matmuls that read it

16-bit matmuls are several times as fast where the rows of their operands are whole units of 16 bytes. Inductor pads
each matmul for itself (`pad_mm`), so two matmuls that read one gradient of logits read two padded copies of it. Here
each value is padded once, from a vocabulary of 50257 to 50304.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from checkpointing.compiled.loss.new_nodes import NewNodes, is_matrix
from checkpointing.compiled.loss.row_rules import arguments, packet

aten = torch.ops.aten

UNIT = 16  # bytes: rows that are multiples of it are multiplied fast
TILE = 128  # bytes: rows that are not are padded to a multiple of this, as the copy is made anyway
MATMULS = (aten.mm.default, aten.addmm.default)


class Alignment:
    """Of the vocabulary of `logits`, a matmul of [rows, H] by [H, vocabulary]."""

    def __init__(self, logits: fx.Node) -> None:
        value = logits.meta["val"]
        self.vocabulary: int = value.shape[1]
        is_aligned = value.element_size() != 2 or self.vocabulary * 2 % UNIT == 0
        self.missing = 0 if is_aligned else -self.vocabulary % (TILE // 2)
        self._padded: dict[tuple[fx.Node, int], fx.Node] = {}

    def padded(self, new: NewNodes, node: fx.Node, dim: int) -> fx.Node:
        """`node` with its dimension of the vocabulary padded with zeros; itself if it needs none.

        A transposed matrix is padded before it is transposed, so that both ways of reading it share one copy.
        """
        if not self.missing:
            return node
        if (node, dim) not in self._padded:
            source = arguments(node)[0] if is_transpose(node) else None
            if isinstance(source, fx.Node):
                padded = new.add(aten.permute.default, self.padded(new, source, 1 - dim), [1, 0])
            else:
                after = node.meta["val"].dim() - 1 - dim  # dimensions; two numbers for each, the last first
                padded = new.add(aten.constant_pad_nd.default, node, [0, 0] * after + [0, self.missing])
            self._padded[node, dim] = padded
        return self._padded[node, dim]

    def cut(self, new: NewNodes, padded: fx.Node) -> fx.Node:
        """Rows of the vocabulary that are padded with zeros, without these: `padded` is known for their copy."""
        rows = new.slice(padded, 1, 0, self.vocabulary)
        if rows is not padded:
            self._padded[rows, 1] = padded
        return rows

    def known(self, node: fx.Node) -> fx.Node:
        """The padded copy of rows of the vocabulary, if there is one: whose sums over rows are the same, and zeros."""
        return self._padded.get((node, 1), node)


def is_transpose(node: fx.Node) -> bool:
    return packet(node) is aten.t or (packet(node) is aten.permute and list(arguments(node)[1]) == [1, 0])


def without_padding(graph: fx.Graph, logits: fx.Node) -> fx.Node:
    """Undo, in place, the padding of the vocabulary that `logits` have, in every matmul of the graph.

    Returns the matmul that makes the logits now: `logits` itself if nothing of it was padded.
    """
    plain = _plain(logits)
    vocabulary = (plain[-1] if plain else arguments(logits)[-1]).meta["val"].shape[1]
    result = logits
    for node in list(graph.nodes):
        if node.target not in MATMULS or (operands := _plain(node)) is None:
            continue
        if not any(vocabulary in operand.meta["val"].shape for operand in operands):
            continue
        rows, columns = operands[-2].meta["val"].shape[0], operands[-1].meta["val"].shape[1]
        cuts = _cuts(node, (rows, columns))
        if cuts is None:
            continue
        new = NewNodes(node, like=node)
        replacement = new.add(node.target, *operands)
        replacement.meta = {**node.meta, "val": replacement.meta["val"]}
        for cut in cuts:
            cut.replace_all_uses_with(replacement)
            if cut is not node:
                graph.erase_node(cut)
        graph.erase_node(node)
        result = replacement if node is logits else result
    return result


def is_padded(logits: fx.Node) -> bool:
    """Whether an operand of the matmul is padded in its dimension of the vocabulary."""
    return _plain(logits) is not None


def _plain(matmul: fx.Node) -> list[fx.Node] | None:
    """The operands of a matmul before they were padded with zeros; None if none was, or they do not fit."""
    given = list(arguments(matmul))
    operands = [_before_padding(operand) for operand in given]
    if operands == given or matmul.kwargs:
        return None
    left, right = operands[-2:]
    if not (is_matrix(left) and is_matrix(right)) or left.meta["val"].shape[1] != right.meta["val"].shape[0]:
        return None
    bias = operands[0].meta["val"].shape[-1:] if len(operands) == 3 else (1,)
    return operands if bias[0] in (1, right.meta["val"].shape[1]) else None


def _before_padding(node: Any) -> Any:
    """What was padded with zeros at the end of its dimensions, a vector by a concatenation with zeros."""
    if not isinstance(node, fx.Node):
        return node
    if packet(node) is aten.constant_pad_nd:
        source, padding, *value = arguments(node)
        at_the_end = not any(padding[::2]) and all(p >= 0 for p in padding)
        return source if at_the_end and value in ([], [0], [0.0]) else node
    if packet(node) is aten.cat and len(arguments(node)[0]) == 2:
        source, rest = arguments(node)[0]
        is_zero = packet(rest) is aten.full and arguments(rest)[1] == 0
        return source if is_zero and source.meta["val"].dim() == 1 else node
    return node


def _cuts(matmul: fx.Node, shape: tuple[int, int]) -> list[fx.Node] | None:
    """The nodes that cut the padding off the matmul's result, or itself if there is none; None if it is used whole."""
    if tuple(matmul.meta["val"].shape) == shape:
        return [matmul]
    for node in matmul.users:
        is_cut = node.target is aten.slice.Tensor and arguments(node)[0] is matmul and arguments(node)[2:3] == (0,)
        if not is_cut or tuple(node.meta["val"].shape) != shape:
            return None
    return list(matmul.users)
