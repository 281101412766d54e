"""The first forward pass of a layer, by wall clock."""

from dataclasses import dataclass

import torch

from blockshock.measure.summarize import summarize
from blockshock.measure.timing import Timer


@dataclass
class Cold:
    name: str

    def run(self, execution):
        layer, build = execution.build()
        x = layer.shard_input(execution.problem.inputs())
        with torch.no_grad():
            _, first = Timer("sync", execution.device).once("forward", lambda: layer(x))
        timings = {name: summarize(samples) for name, samples in (build | first).items()}
        execution.write(layer, timings)
        return timings["forward"]["p50_ms"]
