"""Losses traced with their backward by AOTAutograd, as they are or decomposed as inductor does it, and run in chunks.

step = traced(loss_fn, inputs, chunks=4, decomposed=True)
loss, gradients = step.run()
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch.aot_autograd import aot_function
from torch._inductor.decomposition import select_decomp_table

from checkpointing.compiled.embedding.gradients import with_gradients_by_row
from checkpointing.compiled.loss.chunked_loss import with_chunked_losses
from checkpointing.compiled.loss.loss_region import LossRegion, below_tangents, find_loss, linear_layers
from checkpointing.compiled.loss.nll_sums import sum_apart
from checkpointing.compiled.partition import default_split, own_copy


@dataclass
class TracedLoss:
    inputs: Sequence[Tensor]
    call: Callable[..., Any] = field(repr=False, default=lambda: None)
    said: str = ""
    joint: fx.GraphModule | None = field(repr=False, default=None)
    forward: fx.GraphModule | None = field(repr=False, default=None)
    backward: fx.GraphModule | None = field(repr=False, default=None)

    def run(self) -> tuple[Any, list[Tensor]]:
        """The results, and the gradients of the inputs that need one, of the first result."""
        results = self.call(*self.inputs)
        first = results[0] if isinstance(results, tuple | list) else results
        needing = [t for t in self.inputs if t.requires_grad]
        return results, list(torch.autograd.grad(first, needing, torch.ones_like(first)))

    @property
    def regions(self) -> list[LossRegion | str]:
        """What is found for each linear layer, the last first."""
        assert self.joint is not None
        graph = self.joint.graph
        sum_apart(graph)
        return [find_loss(graph, node, below_tangents(graph)) for node in linear_layers(graph, below_tangents(graph))]


def traced(
    loss_fn: Callable[..., Any], inputs: Sequence[Tensor], chunks: int | None, decomposed: bool, kernel: bool = False
) -> TracedLoss:
    """`chunks` None leaves the graph as it is. By the `kernel` means by its operators, which PyTorch's are on a CPU."""
    traced_loss = TracedLoss(inputs)

    def partition(
        joint: fx.GraphModule,
        joint_inputs: Sequence[Any],
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Sequence[int] | None = None,
        **_: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        traced_loss.joint = joint
        if chunks is not None:
            joint, traced_loss.said = with_chunked_losses(joint, chunks, kernel)
        if decomposed:
            joint = with_gradients_by_row(joint)
        default = default_split(
            own_copy(joint), joint_inputs, num_fwd_outputs, list(static_lifetime_input_indices or ()), decomposed
        )
        traced_loss.forward, traced_loss.backward = default.halves()
        return traced_loss.forward, traced_loss.backward

    def interpreted(module: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        def run(arguments: list[Any]) -> Any:
            with torch.no_grad():
                return torch.fx.Interpreter(module).boxed_run(arguments)

        run._boxed_call = True  # type: ignore[attr-defined]
        return run

    traced_loss.call = aot_function(
        loss_fn,
        fw_compiler=interpreted,
        bw_compiler=interpreted,
        partition_fn=partition,
        decompositions=select_decomp_table() if decomposed else None,
        num_params_buffers=0,
    )
    return traced_loss
