"""One captured graph, planned and compiled, and compiled again for less where it takes more memory than predicted.

step = CompiledStep(graph_module, inputs, "8GB", "inductor", "optimal", Rules())
step.plan, step(*inputs)
"""

from __future__ import annotations

import logging
import sys
import time
import weakref
from collections.abc import Collection, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, fx
from torch._guards import TracingContext, tracing

from checkpointing import budget as budgets
from checkpointing.compiled.compiled_plan import CompiledPlan, remember
from checkpointing.compiled.decisions.decider import Decider
from checkpointing.compiled.decisions.graph_key import GraphKey, described, graph_key
from checkpointing.compiled.decisions.rejection import below_minimum
from checkpointing.compiled.decisions.within import margin_of, plan_within
from checkpointing.compiled.execution import CompiledHalves, compile_halves
from checkpointing.compiled.joint_problem import forward_kernels
from checkpointing.compiled.joint_step import JointStep
from checkpointing.compiled.loss.candidates import Candidates
from checkpointing.compiled.loss.choice import LossChunks
from checkpointing.compiled.memory.device_memory import FirstSteps
from checkpointing.compiled.memory.optimizer_memory import trained_bytes, with_shards
from checkpointing.compiled.memory.step_peak import StepPeak, trainable
from checkpointing.compiled.memory.wrapper_memory import WrapperError
from checkpointing.compiled.obstacles import check_shapes
from checkpointing.compiled.partition import split
from checkpointing.compiled.rules import Rules
from checkpointing.errors import BudgetError
from checkpointing.planners.plan import NoPlanError, Plan
from checkpointing.planners.problem import PlanningProblem
from profiler.garbage import collected_later

log = logging.getLogger(__name__)

RECOMPILED = 2  # times at most: where a compiled plan takes more memory than predicted
ROOM = 0.02  # of the budget: if the code leaves more than that, planning anew pays


class CompiledStep:
    """One captured graph, planned and compiled; it is what Dynamo calls in the graph's place."""

    def __init__(
        self,
        module: fx.GraphModule,
        inputs: Sequence[Any],
        memory_budget: float | str,
        execution: str,
        solver: str,
        rules: Rules,
        chunked_loss: int | str | None = None,
        decider: Decider | None = None,
        loss_kernel: bool | None = None,
        cuda_graphs: bool = False,
        plans: list[CompiledPlan] | None = None,
    ) -> None:
        """`plans` gets each plan that has been compiled."""
        self.module, self.memory_budget = module, memory_budget
        self.cuda_graphs, self.plans = cuda_graphs, [] if plans is None else plans
        self.inputs = [described(value) for value in inputs]
        self.decider = decider or Decider()
        self.execution, self.solver, self.rules, self.chunks = execution, solver, rules, LossChunks(chunked_loss)
        self.candidates = Candidates(execution == "inductor", loss_kernel)
        self.parameters = trainable(inputs)
        self.memory = StepPeak(inputs, cuda_graphs)
        self.device = self.memory.device
        self.unread_code = False  # whether code was generated whose memory is not known
        self.warned_of_second = False
        self.recompilations = 0
        self.excesses: list[int] = []  # bytes by which each compilation took too much
        self.margin = 0  # bytes of the budget that the last compilation leaves
        self.plan: CompiledPlan | None = None
        self.context = TracingContext.try_get()
        state = sum(self.memory.state)
        self.first_steps = FirstSteps(
            self.device,
            state,
            self._measured,
            self.decider.highest,
            cuda_graphs,
            lambda: trained_bytes(self.parameters, self.device),
        )
        self.recompile = False
        self.measuring_s = 0.0
        self._autograd: list[weakref.ref[Any]] = []  # the autograd nodes of the latest forward; none once it began
        self.halves = self._compile(inputs)

    def __call__(self, *arguments: Any) -> Any:
        plan = self.plan if torch.is_grad_enabled() else None
        if plan is not None:
            self._follow(arguments, plan)
            self.first_steps.before_call()
            if self.recompile:
                self.recompile = False
                self.halves = self._compile_again(arguments)
                self.first_steps.restart()
                self.first_steps.before_call()
            if self.first_steps.are_over:
                self.candidates.forget()
            if self.is_pending and not self.warned_of_second:
                self.warned_of_second = True
                log.warning("the step runs forward twice before one backward, and the budget counts one forward")
        results = self.halves.run(*arguments)
        if plan is not None:
            self._await_backward(results)
        return results

    def _follow(self, arguments: Sequence[Any], plan: CompiledPlan) -> None:
        """The plan goes on with new parameters: Dynamo calls the same code where the user has replaced them."""
        parameters = trainable(arguments)
        if parameters and not (self.parameters and parameters[0] is self.parameters[0]):
            self.parameters = parameters
            remember(with_shards(parameters), plan)

    def _compile_again(self, arguments: Sequence[Any]) -> CompiledHalves:
        """After the first compilation, which Dynamo made: on fake inputs of the same sizes, none of them symbolic."""
        assert self.context is not None
        mode = self.context.fake_mode
        assert mode is not None
        fakes = [mode.from_tensor(a, static_shapes=True) if isinstance(a, Tensor) else a for a in arguments]
        with tracing(self.context):
            return self._compile(fakes)

    @property
    def is_pending(self) -> bool:
        """Whether a forward has run, its results are still in use, and their backward has not begun."""
        return any(node() is not None for node in self._autograd)

    def _await_backward(self, results: Sequence[Any]) -> None:
        differentiable = [value for value in results if isinstance(value, Tensor) and value.requires_grad]
        self._autograd = [weakref.ref(value.grad_fn) for value in differentiable]
        for value in differentiable:
            value.register_hook(self._backward_begins)

    def _backward_begins(self, _: Tensor) -> None:
        self._autograd = []

    def _measured(self, peak: int) -> None:
        """The allocator's peak of one of the first steps. Raises BudgetError if no plan brought it under the budget."""
        assert self.plan is not None
        self.plan.measured_peak_bytes = max(peak, self.plan.measured_peak_bytes or 0)
        if peak <= self.plan.budget_bytes:
            return
        self.memory.surprise(peak - self.plan.predicted_peak_bytes)
        self.plan.predicted_peak_bytes = peak
        self._learn(self.plan)
        budget = self.plan.budget_bytes  # a fraction is one of an unplanned peak that is now known to be higher
        if peak <= budget:
            return
        if self.cuda_graphs:  # their pool keeps what it has, so that a smaller plan would not make it smaller
            raise BudgetError(
                f"memory_budget={self.memory_budget!r} is {budget / 2**20:.1f} MiB, and the step's CUDA graphs take "
                f"{(peak - budget) / 2**20:.1f} MiB more: use at least {budgets.written(peak)}"
            )
        self._count(peak - budget, "the step")
        self.recompile = True

    def _compile(self, inputs: Sequence[Any]) -> CompiledHalves:
        """Plan and compile, and again for less where the generated code takes more than the plan.

        Where it takes so much less that more could be kept, once for more: what was compiled before is taken if that
        is too much.
        """
        fitting: tuple[CompiledHalves, CompiledPlan, int] | None = None
        while True:
            halves = compile_halves(
                self.execution, self.module, inputs, self._partition, self._has_plan, self.cuda_graphs
            )
            plan = self.plan
            if plan is None:  # no backward
                return halves
            planned = plan.predicted_peak_bytes
            plan.predicted_peak_bytes = self.decider.highest(self._predicted(halves, plan)) or 0
            self.memory.correct(plan.predicted_peak_bytes - planned)
            self._learn(plan)
            excess = plan.predicted_peak_bytes - plan.budget_bytes
            if excess > 0 and fitting is not None:
                later = plan
                halves, plan, self.memory.offset = fitting
                if later.is_empty:
                    plan.budget_bytes, plan.unplanned_peak_bytes = later.budget_bytes, later.unplanned_peak_bytes
                plan.recompilations, self.plan = self.recompilations, plan
                break
            if excess <= 0:
                enough = plan.is_empty or self.recompilations or -excess < ROOM * plan.budget_bytes
                if enough or self._decided(plan.problem).kept == plan.plan.kept:
                    break
                fitting = (halves, plan, self.memory.offset)
            self._count(excess, "the generated code")
        remember(with_shards(self.parameters), plan)
        self.plans.append(plan)
        return halves

    def _has_plan(self) -> bool:
        """Whether the code that is being compiled is not the unplanned step's."""
        return self.plan is not None and not (self.plan.is_empty and self.plan.options["chunked_loss"] is None)

    def _learn(self, plan: CompiledPlan) -> None:
        """Bring what the plan says of its budget and of the unplanned step up to what is known by now."""
        plan.budget_bytes, plan.unplanned_peak_bytes = self._budget(plan.problem), self._unplanned(plan.problem)

    def _count(self, excess: int, who: str) -> None:
        """Before each further compilation. Raises BudgetError after `RECOMPILED` of them."""
        assert self.plan is not None
        log.info("%s takes %+.1f MiB of the budget: planned anew", who, excess / 2**20)
        if excess > 0 and (self.recompilations == RECOMPILED or self.decider.fixed):
            times = "by the plan of the file" if self.decider.fixed else f"planned {1 + RECOMPILED} times"
            raise BudgetError(
                f"memory_budget={self.memory_budget!r} is {self.plan.budget_bytes / 2**20:.1f} MiB, and {who} takes "
                f"{excess / 2**20:.1f} MiB more, {times}: use at least "
                f"{budgets.written(self.plan.budget_bytes + excess)}"
            )
        self.recompilations += 1
        self.excesses.append(max(excess, 0))
        self.margin = margin_of(self.excesses) if self.recompilations == RECOMPILED else 0

    def _predicted(self, halves: CompiledHalves, plan: CompiledPlan) -> int:
        """Bytes at the peak of the step, from the generated code where there is some."""
        try:
            of_code = self.memory.of_code(halves)
        except WrapperError as error:
            self._warn_of_unread_code(error)
            of_code = None
        return plan.predicted_peak_bytes if of_code is None else of_code

    def _warn_of_unread_code(self, error: WrapperError) -> None:
        """Once a step, however often it is compiled."""
        if not self.unread_code:
            checked = "the first steps check it" if self.device.type == "cuda" else "on this device nothing checks it"
            log.warning("%s: the peak is the planner's own prediction, and %s", error, checked)
        self.unread_code = True

    @collected_later()
    def _partition(
        self,
        joint: fx.GraphModule,
        joint_inputs: Sequence[Any],
        *,
        num_fwd_outputs: int,
        static_lifetime_input_indices: Collection[int] | None = None,
        **_: Any,
    ) -> tuple[fx.GraphModule, fx.GraphModule]:
        started = time.perf_counter()
        check_shapes(joint.graph)
        static = list(static_lifetime_input_indices or ())
        self.memory.read_graph(joint, static)
        self.candidates.begin(joint, joint_inputs, num_fwd_outputs, static)
        make = self.candidates.make

        @cache
        def key_of(count: int | None) -> GraphKey:
            return graph_key(self.module, self.inputs, make(count).step)

        count = self.decider.first(self.chunks.first, key_of)
        memory = self.memory
        memory.resident, memory.state = self.decider.meet(key_of(count), memory.resident, memory.state)
        if self.plan is None and not self.decider.fixed:
            # of the step as its user knows it: chunks have other operators
            self.rules.check(forward_kernels(make(count).step))
        if self.chunks.is_choice:
            find = partial(self.chunks.find, make, self._problem, self._budget, memory.of_plan, self.candidates.guess)
            count = self.decider.chunks(find)
            if self.chunks.in_one_piece is None:  # of rank 0's choice: for the budget, whatever things cost
                self.chunks.in_one_piece = self._unmeasured(make(None).step)
        chosen, loss = self.chunks.take(make, count)
        default, step = chosen.default, chosen.step
        memory.name_inputs(default.joint, step.outputs)
        problem = self._problem(step, self.decider)
        plan = self._decided(problem)
        previous = self.plan
        self.plan = CompiledPlan(
            problem=problem,
            plan=plan,
            budget_bytes=self._budget(problem),
            unplanned_peak_bytes=self._unplanned(problem),
            predicted_peak_bytes=memory.of_plan(plan.schedule),
            optimizer_state_bytes=sum(memory.state),
            execution=self.execution,
            planning_s=time.perf_counter() - started + (previous.planning_s if previous else 0.0),
            measuring_s=self.measuring_s,
            recompilations=self.recompilations,
            loss=loss,
            graph=key_of(count),
            options={**self.rules.options(), "chunked_loss": chosen.chunks},
            in_one_piece=None if chosen.chunks is None else self.chunks.in_one_piece,
            on_request=sum(step.storages.get(node) in problem.never_kept for node in step.default_roots),
        )
        if self.plan.is_empty:
            log.info("the unplanned step fits the budget: nothing is recomputed")
            return default.halves()
        return split(default.joint, step.saved_nodes(plan.kept), num_fwd_outputs, default.info)

    def _problem(self, step: JointStep, decider: Decider | None = None) -> PlanningProblem:
        """With costs that are measured here, or those of whoever decides."""
        resident = self.memory.between_steps
        hopeless = budgets.in_bytes(self.memory_budget, 0, sys.maxsize) < resident  # and rejected whatever things cost
        problem, seconds = (decider or Decider()).problem(
            lambda measure: self.candidates.problem(step, self.rules, self.device, resident, measure), not hopeless
        )
        self.measuring_s += seconds
        return problem

    def _unmeasured(self, step: JointStep) -> PlanningProblem:
        """The problem for questions of memory alone."""
        return self.candidates.problem(step, self.rules, self.device, self.memory.between_steps, measure=False)[0]

    def _budget(self, problem: PlanningProblem) -> int:
        return budgets.in_bytes(self.memory_budget, 0, self._unplanned(problem))  # a fraction is one of that peak

    def _unplanned(self, problem: PlanningProblem) -> int:
        """Bytes at the peak of the unplanned step, whose loss is in one piece."""
        return self.memory.unplanned(self.chunks.in_one_piece or problem)

    def _decided(self, problem: PlanningProblem) -> Plan:
        """The plan of whoever decides. Raises BudgetError."""
        return self.decider.plan(problem, lambda: self._plan(problem))

    def _plan(self, problem: PlanningProblem) -> Plan:
        """The solver's plan. Raises BudgetError with the lowest that has a plan, and what sets it."""
        budget = self._budget(problem)
        try:
            return plan_within(budget, problem, self.solver, self.memory.of_plan, self.margin)
        except NoPlanError:
            raise below_minimum(problem, self.memory_budget, budget, self.memory.of_plan) from None
