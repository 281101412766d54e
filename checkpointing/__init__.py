"""Less memory for a little time: which activations to keep, the rewritten step, and the proof that it is the same.

model = torch.compile(model, backend=checkpointing.backend(memory_budget="8GB"), dynamic=False)     # in any loop
print(checkpointing.plan_of(model).summary())

The whole step as one graph, rewritten and proved bitwise equal:

from checkpointing import apply_activation_checkpointing

step = apply_activation_checkpointing(model, loss_fn, optimizer, batch, memory_budget=0.5, solver="optimal")
loss = step(*batch); print(step.plan.summary()); print(step.verify(batch).summary())
"""

from typing import TYPE_CHECKING, Any

from checkpointing.apply import apply_activation_checkpointing
from checkpointing.decide import decide_checkpoints
from checkpointing.errors import BudgetError, CheckpointingError, DecisionsFileError, IllegalPlanError, ProofError
from checkpointing.planners import SOLVERS
from checkpointing.planners.plan import Decision, Plan, read_plan
from checkpointing.planners.problem import PlanningProblem, problem_from, problem_of
from checkpointing.policy import SelectivePolicy, read_policy
from checkpointing.rewriting.proof import Proof
from checkpointing.rewriting.rewrite import CheckpointedStep, rewrite_graph_with_recomputation
from checkpointing.rewriting.simulate import memory_of, simulate_memory_usage
from checkpointing.rewriting.subgraphs import extract_recomputation_subgraphs

if TYPE_CHECKING:
    from checkpointing.compiled.backend import backend, fit
    from checkpointing.compiled.compiled_plan import CompiledPlan, plan_of, plans_of
    from checkpointing.compiled.largest_batch import LargestBatch, largest_batch
    from checkpointing.compiled.proof.prove import CompiledProof, prove_compiled
    from checkpointing.trainer import PrintPlan as PrintPlan  # needs transformers, so a star does not import it

__all__ = [
    "SOLVERS",
    "BudgetError",
    "CheckpointedStep",
    "CheckpointingError",
    "CompiledPlan",
    "CompiledProof",
    "Decision",
    "DecisionsFileError",
    "IllegalPlanError",
    "LargestBatch",
    "Plan",
    "PlanningProblem",
    "Proof",
    "ProofError",
    "SelectivePolicy",
    "apply_activation_checkpointing",
    "backend",
    "decide_checkpoints",
    "extract_recomputation_subgraphs",
    "fit",
    "largest_batch",
    "memory_of",
    "plan_of",
    "plans_of",
    "problem_from",
    "problem_of",
    "prove_compiled",
    "read_plan",
    "read_policy",
    "rewrite_graph_with_recomputation",
    "simulate_memory_usage",
]


def __getattr__(name: str) -> Any:
    """What needs the compiler is imported when it is first asked for."""
    if name in ("backend", "fit"):
        from checkpointing.compiled import backend

        return getattr(backend, name)
    if name in ("LargestBatch", "largest_batch"):
        from checkpointing.compiled import largest_batch

        return getattr(largest_batch, name)
    if name in ("CompiledPlan", "plan_of", "plans_of"):
        from checkpointing.compiled import compiled_plan

        return getattr(compiled_plan, name)
    if name in ("CompiledProof", "prove_compiled"):
        from checkpointing.compiled.proof import prove

        return getattr(prove, name)
    if name == "PrintPlan":  # needs transformers
        from checkpointing import trainer

        return trainer.PrintPlan
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
