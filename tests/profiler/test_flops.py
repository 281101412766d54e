"""Operations of attention, whose formulas differ between releases of torch."""

import pytest
import torch
from torch import fx

from profiler.flops import flops_of


@pytest.mark.parametrize("key_heads", [1, 2, 8])
def test_shared_key_heads_cost_what_their_query_heads_multiply(key_heads):
    batch, heads, tokens, width = 2, 8, 16, 32
    graph = fx.Graph()
    operands = [graph.placeholder(name) for name in ("query", "key", "value")]
    for operand, count in zip(operands, (heads, key_heads, key_heads), strict=True):
        operand.meta["val"] = torch.empty(batch, count, tokens, width, device="meta")
    node = graph.call_function(torch.ops.aten._scaled_dot_product_flash_attention.default, tuple(operands))
    node.meta["val"] = (torch.empty(batch, heads, tokens, width, device="meta"),)
    # queries times keys, then weights times values: two products of tokens x tokens x width a head
    assert flops_of(node) == 2 * 2 * batch * heads * tokens * tokens * width
