"""Phase checkpoint: what a training step needs in memory and time when activations are kept or recomputed.

Every method is measured in the same way: the allocator's peak, each step's time, the time of its kernels, and a
comparison of all that the step leaves with the unchanged step. A recomputed step that differs fails the run.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from blockshock.errors import ConfigError, at_least, one_of
from blockshock.jobs.agreement import compare_ranks
from blockshock.jobs.correctness import CheckFailed
from blockshock.jobs.eager_match import compare_with_eager
from blockshock.jobs.execution import Execution
from blockshock.measure import timing
from blockshock.measure.clocks import ClockLog
from blockshock.measure.cpu_log import CpuLog
from blockshock.measure.summarize import summarize
from blockshock.measure.turns import aside, jobs_that_share, turn
from blockshock.phases import OptimizerOptions
from blockshock.ranks import distributed

if TYPE_CHECKING:
    from blockshock.config import Job
    from checkpointing import CompiledPlan, Plan, Proof


@dataclass
class CheckpointStep(OptimizerOptions):
    acts_on: ClassVar[str] = "model"
    traces_kernels: ClassVar[bool] = True
    data_parallel: ClassVar[bool] = True
    files: ClassVar = ("proof.csv", "ac_decisions_bs*.csv", "memory_*.csv", "memory_against_rank.png", "plan.csv")

    name: str = "checkpoint"
    warmup_iters: int = 2
    timed_iters: int = 10
    timing: str = "sync"  # each step by itself; cuda_events: steps queued, as in training
    verify: bool = True

    def check(self, job: Job) -> None:
        self.check_optimizer()
        at_least("phase.warmup_iters", self.warmup_iters, 1)
        at_least("phase.timed_iters", self.timed_iters, 1)
        one_of("phase.timing", self.timing, ("sync", "cuda_events"))
        if self.timing == "cuda_events" and job.hardware.device != "cuda":
            raise ConfigError("phase.timing", self.timing, "needs a GPU; on a CPU use sync")

    def run(self, execution: Execution) -> float:
        """Record peak, time, plan and proof; the median step in ms."""
        job = execution.job
        execution.log("building %s", job.workload.name)
        with aside():
            problem = job.workload.task(job, execution.device)
        optimizer = self.make_optimizer(list(problem.model.parameters()))
        execution.log("preparing the step: %s", job.method.name)
        step = job.method.build_step(problem, optimizer)
        plan: Plan | None = getattr(step, "plan", None)
        first = distributed.rank() == 0  # of several ranks, one writes files
        if plan is not None and first:
            _save_plan(execution, step, plan)
        traced = self.verify and hasattr(step, "matches_eager")
        match = compare_with_eager(execution, step, problem.batch) if traced else None
        execution.log("timing %d steps", self.timed_iters)
        from checkpointing.compiled.costs.costs import measured_in

        started = time.perf_counter()
        with aside(), measured_in(turn):
            float(step(*problem.batch))  # compiles, where the step is compiled; reading the loss waits for the device
        first_s = time.perf_counter() - started
        clocks = ClockLog(execution.device)
        samples, memory, cpu, own = self._measure(execution, lambda: step(*problem.batch), clocks)
        if plan is not None:
            memory |= {
                "baseline_peak_bytes": plan.unchanged_peak_bytes,
                "predicted_static_bytes": plan.problem.static_bytes,
            }
        planned: CompiledPlan | None = getattr(step, "compiled_plan", None)  # there once it has run
        if planned is not None:
            for line in planned.summary().partition("\n\n")[0].splitlines():  # its table is in plan.csv
                execution.log("%s", line)
            if first:
                planned.table().to_csv(execution.folder.path / "plan.csv", index=False)
            memory["baseline_peak_bytes"] = planned.unplanned_peak_bytes
        proof: Proof | None = None
        if self.verify and hasattr(step, "verify"):
            execution.log("comparing with the unchanged step")
            with aside():
                proof = step.verify(problem.batch)
            if first:
                proof.table.to_csv(execution.folder.path / "proof.csv", index=False)
            execution.log("%s", proof.summary())
        alike = proof is None or proof.passed or proof.trains_alike
        ranks = compare_ranks(problem.model, planned or plan, alike, own_batches=problem.within is not None)
        own |= _kernels_ms(step, problem.batch, execution.device)
        each_rank = distributed.of_each_rank(own | _own_fields(planned, proof, step))
        execution.write(
            None,
            {"total_step": summarize(samples)},
            **job.workload.record_fields(job),
            timing_mode=self.timing,
            memory_peak_bytes=memory["peak_bytes"],
            memory=memory,
            clocks=clocks.summary(),
            cpu=cpu,
            device_ms=max((own["kernels_ms"] for own in each_rank), key=lambda ms: ms or 0.0),
            step={"variant": getattr(step, "variant", ""), "first_s": _undisturbed(first_s)},
            plan=_compiled_plan_fields(planned, job.method.solver) if planned else _plan_fields(plan) if plan else None,
            proof=None if proof is None else _proof_fields(proof),
            matches_eager=match,
            ranks=ranks,
            each_rank=each_rank if len(each_rank) > 1 else None,
        )
        if proof is not None:
            _require(proof, job.method)
        if ranks is not None and not ranks["alike"]:
            raise CheckFailed(f"the ranks differ: {', '.join(ranks['differing'][:3])}")
        if getattr(job.method, "trains_alike", False):
            _require_no_more_collectives(each_rank)
        return summarize(samples)["p50_ms"]

    def _measure(
        self, execution: Execution, step: Callable[[], object], clocks: ClockLog
    ) -> tuple[list[float], dict[str, Any], dict[str, float | None], dict[str, Any]]:
        """Milliseconds of each step, on a GPU the allocator's bytes between steps and at the peak (the largest), and
        what else kept the host busy; last, this rank's own peak and median."""
        timer = timing.Timer(self.timing, execution.device)
        timer.while_running = clocks.sample
        distributed.barrier()
        cuda = execution.device.type == "cuda"
        for _ in range(self.warmup_iters):
            step()
        parts = ("peak_bytes", "static_bytes", "above_static_bytes", "reserved_peak_bytes")
        memory: dict[str, Any] = dict.fromkeys(parts)
        if cuda:
            torch.cuda.synchronize(execution.device)
            static = torch.cuda.memory_allocated(execution.device)
            torch.cuda.reset_peak_memory_stats(execution.device)
        cpu_log = CpuLog(execution.device)
        samples = timer.measure("total_step", step, self.warmup_iters, self.timed_iters)["total_step"]
        cpu = cpu_log.summary()
        own = {"peak_bytes": None, "step_p50_ms": summarize(samples)["p50_ms"]}
        samples = distributed.max_over_ranks(samples)
        if cuda:
            from checkpointing.compiled.memory.device_memory import graph_pool_bytes

            peak = torch.cuda.max_memory_allocated(execution.device) + graph_pool_bytes(execution.device)
            own["peak_bytes"] = peak
            reserved = torch.cuda.max_memory_reserved(execution.device)
            peaks = distributed.max_over_ranks([float(n) for n in (peak, static, peak - static, reserved)])
            memory = dict(zip(memory, map(int, peaks), strict=True))
        return samples, memory, cpu, own


def _save_plan(execution: Execution, step: Any, plan: Plan) -> None:
    from checkpointing import memory_of
    from checkpointing.plots import plot_memory
    from profiler import simulate
    from profiler.costs.storage import analyse

    folder, batch_size = execution.folder.path, execution.job.workload.batch_size
    execution.log("%s", plan.summary())
    plan.to_csv(folder / f"ac_decisions_bs{batch_size}.csv")
    after = memory_of(step)
    before = simulate(analyse(step.baseline), plan.problem.measured_memory)
    for name, curve in (("before", before), ("after", after)):
        curve.table.to_csv(folder / f"memory_{name}.csv", index=False)
    plot_memory(before, after, plan.budget_bytes, folder / "memory_against_rank.png")


def _require(proof: Proof, method: Any) -> None:
    """Raise CheckFailed where the step did something else than the method promises."""
    if not proof.passed and getattr(method, "exact", False):
        raise CheckFailed(f"the recomputed step differs from the unchanged one: {proof.summary().splitlines()[-1]}")
    if not proof.trains_alike and getattr(method, "trains_alike", False):
        raise CheckFailed(
            f"the recomputed step differs from the unchanged one by more than rounding: gradients by "
            f"{proof.gradient_error:.2g}, batch norm's statistics by {proof.buffer_error:.2g}; allowed: "
            f"{proof.rounding_limit:.2g}"
        )


def _own_fields(plan: CompiledPlan | None, proof: Proof | None, step: Any) -> dict[str, Any]:
    """What may differ between ranks: the plan's bytes, the error of the gradients, the collectives of one step."""
    collectives = getattr(step, "collectives", {})  # there once the proof has run
    return {
        "budget_bytes": plan and plan.budget_bytes,
        "predicted_peak_bytes": plan and plan.predicted_peak_bytes,
        "gradient_error": proof and _finite(proof.gradient_error),
        "collectives": collectives.get("step"),
        "reference_collectives": collectives.get("reference"),
    }


def _require_no_more_collectives(each_rank: list[dict[str, Any]]) -> None:
    """Raise CheckFailed where the step starts more of them than the step that it is compared with."""
    for rank, own in enumerate(each_rank):
        started, expected = own["collectives"], own["reference_collectives"]
        if started is not None and started > expected:
            raise CheckFailed(f"rank {rank}: the step starts {started} collectives, and the unchanged one {expected}")


def _compiled_plan_fields(plan: CompiledPlan, solver: str) -> dict[str, Any]:
    decisions = plan.table()["decision"]
    return {
        "solver": solver,
        "budget_bytes": plan.budget_bytes,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "predicted_added_s": plan.predicted_added_s,
        "planning_s": _undisturbed(plan.planning_s),
        "gap": plan.gap,
        "recompilations": plan.recompilations,
        "recomputed": int((decisions == "recompute").sum()),
        "activations": len(decisions),
    }


def _plan_fields(plan: Plan) -> dict[str, Any]:
    return {
        "solver": plan.solver,
        "budget_bytes": plan.budget_bytes,
        "predicted_peak_bytes": plan.predicted_peak_bytes,
        "predicted_step_s": plan.predicted_step_s,
        "predicted_added_s": plan.predicted_added_s,
        "predicted_added_share": plan.predicted_added_s / sum(plan.problem.time),
        "planning_s": _undisturbed(plan.planning_s),
        "bound_added_s": plan.bound_s,
        "gap": plan.gap,
        "recomputed": len(plan.recomputed),
        "activations": len(plan.problem.activations),
        "elementwise_batch_norms": len(plan.problem.substitutes),
        "note": plan.note,
    }


def _undisturbed(seconds: float) -> float | None:
    """Of what runs beside other jobs that share the GPU, which is no time of its own: None."""
    return seconds if jobs_that_share() == 1 else None


def _proof_fields(proof: Proof) -> dict[str, Any]:
    differing = proof.table[~proof.table["identical"]]
    failing = proof.table[~proof.table["passed"]]
    return {
        "passed": proof.passed,
        "identical": proof.identical,
        "deterministic": proof.deterministic,
        "not_deterministic": list(proof.unsteady),
        "tensors": len(proof.table),
        "differing": len(differing),
        "failing": len(failing),
        "failing_by_kind": failing.groupby("kind").size().to_dict(),
        "largest_difference": float(failing["difference"].max()) if len(failing) else 0.0,
        "gradient_error": _finite(proof.gradient_error),
        "buffer_error": _finite(proof.buffer_error),
        "rounding_limit": proof.rounding_limit,
        "trains_alike": proof.trains_alike,
    }


def _finite(error: float | None) -> float | None:
    """As records hold it: no number for what has none."""
    return error if error is not None and math.isfinite(error) else None


def _kernels_ms(
    step: Callable[..., object], batch: tuple[torch.Tensor, ...], device: torch.device
) -> dict[str, float | None]:
    """Milliseconds of a step's kernels, copies and fills, from a trace of three steps; None on a CPU. Those of
    collectives, which wait for other ranks, are apart."""
    found: dict[str, float | None] = {"kernels_ms": None, "collectives_ms": None}
    if device.type != "cuda":
        return found
    from profiler.costs.node_trace import node_trace
    from profiler.traces.records import is_communication

    count = 3
    with node_trace(device, cpu=False) as trace:
        for _ in range(count):
            step(*batch)
        torch.cuda.synchronize(device)
    ns = [0, 0]
    for event in trace.events():
        if event.kind == "kernel":
            ns[is_communication(event.name)] += event.end - event.start
    return dict(zip(found, (total / count / 1e6 for total in ns), strict=True))
