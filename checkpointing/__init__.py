"""Less memory for a little time: which activations to keep, the rewritten step, and the proof that it is the same.

from checkpointing import apply_activation_checkpointing

step = apply_activation_checkpointing(model, loss_fn, optimizer, batch, memory_budget=0.5, solver="optimal")
loss = step(*batch); print(step.plan.summary()); print(step.verify(batch).summary())
"""

from checkpointing.apply import apply_activation_checkpointing
from checkpointing.decide import decide_checkpoints
from checkpointing.errors import BudgetError, CheckpointingError, DecisionsFileError, IllegalPlanError
from checkpointing.planners import SOLVERS
from checkpointing.planners.plan import Decision, Plan, read_plan
from checkpointing.planners.problem import PlanningProblem, problem_from, problem_of
from checkpointing.rewriting.proof import Proof
from checkpointing.rewriting.rewrite import CheckpointedStep, rewrite_graph_with_recomputation
from checkpointing.rewriting.simulate import memory_of, simulate_memory_usage
from checkpointing.rewriting.subgraphs import extract_recomputation_subgraphs

__all__ = [
    "SOLVERS",
    "BudgetError",
    "CheckpointedStep",
    "CheckpointingError",
    "Decision",
    "DecisionsFileError",
    "IllegalPlanError",
    "Plan",
    "PlanningProblem",
    "Proof",
    "apply_activation_checkpointing",
    "decide_checkpoints",
    "extract_recomputation_subgraphs",
    "memory_of",
    "problem_from",
    "problem_of",
    "read_plan",
    "rewrite_graph_with_recomputation",
    "simulate_memory_usage",
]
