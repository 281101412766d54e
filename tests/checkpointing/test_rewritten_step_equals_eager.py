"""Whatever legal plan is carried out: the step leaves the bits of plain PyTorch's, and memory is what was foretold."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from checkpointing import Plan, rewrite_graph_with_recomputation
from tests.checkpointing.steps import TINY, Case, small_case, tiny_case

# Runs must end in bounded time and find the same things everywhere.
bounded = settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck), print_blob=False)
SEEDS = st.integers(0, 10**6)
SHARES = st.floats(0, 1)


def draw_plan(case: Case, random: Any, share: float, fresh_share: float) -> Plan:
    """Keep each activation with probability `share`, each temporary with half of it; make some copies anew."""
    problem = case.problem
    kept = [i for i in problem.candidates if random.random() < share]
    kept += [i for i in problem.keepable if random.random() < share / 2]
    backward = range(problem.backward_start, problem.count)
    anew = [i for i in problem.forward_values if random.random() < fresh_share]
    return case.plan(kept, {i: tuple(sorted(random.sample(backward, 2))) for i in anew})


@given(seed=SEEDS, length=st.integers(2, 14), share=SHARES, fresh=SHARES, random=st.randoms(use_true_random=False))
@settings(bounded, max_examples=100)
def test_random_plan_of_a_random_model_changes_nothing_but_memory(
    seed: int, length: int, share: float, fresh: float, random: Any
) -> None:
    case = small_case(seed, length)
    step = rewrite_graph_with_recomputation(case.step, draw_plan(case, random, share, fresh))
    case.check_steps(step)
    case.check_memory(step)


@pytest.mark.parametrize("name", TINY)
@given(share=SHARES, fresh=st.floats(0, 0.3), random=st.randoms(use_true_random=False))
@settings(bounded, max_examples=4)
def test_random_plan_of_a_tiny_model_changes_nothing_but_memory(
    name: str, share: float, fresh: float, random: Any
) -> None:
    case = tiny_case(name)
    step = rewrite_graph_with_recomputation(case.step, draw_plan(case, random, share, fresh))
    case.check_steps(step)
    case.check_memory(step)


@pytest.mark.parametrize("name", TINY)
def test_recomputing_all_that_may_be_changes_nothing_but_memory(name: str) -> None:
    case = tiny_case(name)
    step = rewrite_graph_with_recomputation(case.step, case.plan(()))
    assert len(step.plan.recomputed) > len(case.problem.activations) / 2
    case.check_steps(step)
    case.check_memory(step)


def operators(cases: Sequence[Case]) -> set[str]:
    return {str(node.target) for case in cases for node in case.step.nodes}


def test_random_models_contain_what_is_hard_to_recompute() -> None:
    """The property above says something only of what it meets."""
    cases = [small_case(seed, 12) for seed in range(12)]
    wanted = {
        "aten.relu_.default",
        "aten.add_.Tensor",
        "aten.mul_.Tensor",
        "aten.split.Tensor",
        "aten.max.dim",
        "aten.sort.default",
        "aten.bernoulli_.float",
        "aten.native_batch_norm.default",
        "aten.native_layer_norm.default",
        "aten.view.default",
        "aten.transpose.int",
    }
    assert wanted <= operators(cases)
    recomputable = [i for case in cases for i in case.problem.candidates]
    assert any(len(case.problem.writers[i]) > 1 for case in cases for i in case.problem.candidates)  # in place
    assert any("changes later" in why for case in cases for why in case.problem.pinned.values())
    assert len(recomputable) > 60
    assert any(torch.Tag.nondeterministic_seeded in getattr(n.target, "tags", ()) for c in cases for n in c.step.nodes)
