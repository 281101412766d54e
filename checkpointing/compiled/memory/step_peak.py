"""What is known of a compiled step's peak memory, from before it is planned until its first steps have run.

memory = StepPeak(inputs, cuda_graphs=False)
memory.read_graph(joint, static_input_indices)
memory.of_plan(schedule)            # bytes at the step's peak, expected of a plan
memory.of_code(halves)              # and of the code that was generated for it
memory.correct(bytes), memory.surprise(bytes)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from checkpointing.compiled.execution import CompiledHalves
from checkpointing.compiled.memory.device_memory import (
    device_of,
    graph_workspaces,
    input_bytes,
    resident_bytes,
    take_library_workspaces,
)
from checkpointing.compiled.memory.generated_memory import memory_of_code, peak_of_plan
from checkpointing.compiled.memory.operator_memory import measured_bytes
from checkpointing.compiled.memory.optimizer_memory import missing_optimizer_state
from checkpointing.planners.problem import PlanningProblem
from checkpointing.planners.schedule import Schedule, make_schedule


class StepPeak:
    """Of one captured graph with `inputs`, whose halves are CUDA graphs or not. All numbers are bytes on its device."""

    def __init__(self, inputs: Sequence[Any], cuda_graphs: bool) -> None:
        self.device, self.cuda_graphs = device_of(inputs), cuda_graphs
        parameters = trainable(inputs)
        self.workspaces: list[int] = []  # of each that the libraries take in a CUDA graph
        if cuda_graphs:
            self.workspaces = graph_workspaces(self.device, parameters)
        else:
            take_library_workspaces(self.device, parameters)
        self.resident = resident_bytes(self.device, inputs)  # of all that is there before the first step
        self.static = input_bytes(inputs)
        # of each tensor that the optimizer's first step makes
        self.state = missing_optimizer_state(parameters, self.device) if torch.is_grad_enabled() else []
        self.offset = 0  # by which the step is known to take more than its plan says; less, if negative
        self.unseen = 0  # of these, what the generated code does not show: seen in a step
        self._given: set[str] = set()  # names of the joint graph's inputs
        self._leaving: set[str] = set()  # and of the forward's results
        self._differentiated: list[Tensor | None] = []  # the parameter of each of the backward's gradients
        self._copied: list[int] = []  # of each input that a CUDA graph finds at a place of its own
        self._unplanned_of: tuple[PlanningProblem | None, list[int], int] = (None, [], 0)  # problem, state and peak

    @property
    def between_steps(self) -> int:
        """Bytes that are there between steps, the optimizer's state among them."""
        return self.resident + sum(self.state)

    def read_graph(self, joint: fx.GraphModule, static: Collection[int]) -> None:
        """Its inputs: parameters and others at the positions `static` stay where they are."""
        values = [node.meta["val"] for node in joint.graph.find_nodes(op="placeholder")]
        self._differentiated = [value if index in static else None for index, value in enumerate(values)]
        self._copied = input_bytes([value for index, value in enumerate(values) if index not in static])

    def name_inputs(self, joint: fx.GraphModule, results: Iterable[fx.Node]) -> None:
        """Of the joint graph that is split: neither its inputs nor the forward's `results` are freed in the step."""
        self._given = {node.name for node in joint.graph.find_nodes(op="placeholder")}
        self._leaving = {node.name for node in results}

    def of_plan(self, schedule: Schedule) -> int:
        """Bytes at the peak that a plan is expected to have: the allocator's, with what is known of the code."""
        return peak_of_plan(schedule, self.device, self.state, self.cuda_graphs, self.workspaces) + self.offset

    def of_code(self, halves: CompiledHalves) -> int | None:
        """Bytes at the peak of the step's code; None of a step that runs operator by operator. Where the halves are
        CUDA graphs, their pool is laid out for it. Raises WrapperError for code that cannot be read."""
        if halves.forward is None or halves.backward is None:
            return None
        memory = memory_of_code(
            halves.forward,
            halves.backward,
            self._given,
            self._leaving,
            self.static,
            self.state,
            copied=self._copied if self.cuda_graphs else None,
            workspaces=self.workspaces,
            internal_bytes=measured_bytes(self.device),
            parameters=self._differentiated,
        )
        halves.reserve(memory.first_block)
        return self.resident + memory.peak + self.unseen

    def unplanned(self, problem: PlanningProblem) -> int:
        """Bytes at the peak of the unplanned step: the plan that keeps everything, with what is known of the code."""
        if problem is not self._unplanned_of[0] or self.state != self._unplanned_of[1]:  # asked for a dozen times
            peak = self.of_plan(make_schedule(problem, problem.default_kept)) - self.offset
            self._unplanned_of = (problem, self.state, peak)
        return self._unplanned_of[2] + self.offset

    def correct(self, more: int) -> None:
        """The generated code takes so many bytes more than its plan says."""
        self.offset += more

    def surprise(self, more: int) -> None:
        """A step took so many bytes more than its code shows."""
        self.offset += more
        self.unseen += more


def trainable(inputs: Iterable[Any]) -> list[nn.Parameter]:
    """The parameters among them that get gradients."""
    return [value for value in inputs if isinstance(value, nn.Parameter) and value.requires_grad]
