"""The check passes what is right, fails what is wrong, and its limit is what the roundings explain."""

import pytest
import torch

from blockshock.jobs.correctness import FLOAT64_LIMIT, check, errors, failure
from blockshock.methods.dense_single import DenseSingleLinear
from tests.blockshock.rank_tasks import method_yaml, problem_of

SPEC = {"mask": "random_2of4", "N": 128, "K": 256, "B": 32, "seed": 1, "dtype": "bfloat16"}


def build(method: str, **options):
    problem = problem_of({**SPEC, **options})
    return problem, method_yaml(method).build(problem, problem.weight())


def test_errors_are_frobenius_relative_and_largest_absolute():
    reference = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    value = torch.tensor([[3.0, 4.0], [0.6, -0.8]])
    assert errors(value, reference) == pytest.approx((1 / 5, 0.8))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("method", ["dense_single", "masked_split_dense", "block_shock"])
def test_right_layers_pass_and_leave_no_gradients(method, dtype):
    problem, layer = build(method, dtype=dtype)
    verdicts = check(problem, layer)
    assert failure(verdicts) is None
    assert set(verdicts) == {"Y", "dX", "dW"}
    assert all(p.grad is None and p.requires_grad for p in layer.parameters())


def test_the_limit_is_the_margin_times_the_roundings_times_what_dense_measures():
    problem, layer = build("block_shock", B=128)
    verdict = check(problem, layer, ("Y",))["Y"]
    exact = problem.inputs().double() @ problem.weight().double().t()
    dense = (problem.inputs() @ problem.weight().t()).double()
    dense_error = float((dense - exact).norm() / exact.norm())
    assert verdict["dense_relative_error"] == pytest.approx(dense_error)
    assert verdict["limit"] == pytest.approx(1.2 * 2**0.5 * dense_error)  # two halves on one rank: one addition more


@pytest.mark.parametrize("method", ["dense_single", "masked_split_dense", "block_shock"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_layers_of_few_elements_pass_as_surely_as_large_ones(method, dtype):
    for seed in range(4):
        problem, layer = build(method, dtype=dtype, N=64, K=64, B=1, seed=seed)
        verdicts = check(problem, layer)
        assert failure(verdicts) is None


def test_in_float64_the_limit_is_absolute():
    problem, layer = build("block_shock", dtype="float64")
    assert check(problem, layer, ("Y",))["Y"]["limit"] == FLOAT64_LIMIT == 1e-12


class ForgetsOneWeight(DenseSingleLinear):
    def forward(self, x):
        weight = self.weight.clone()
        weight[0, 0] = 1.0
        return x @ weight.t()


class WrongInputGradient(DenseSingleLinear):
    def forward(self, x):
        y = super().forward(x)
        x.register_hook(lambda grad: grad * 1.01)
        return y


class WrongWeightGradient(DenseSingleLinear):
    def forward(self, x):
        self.weight.register_hook(lambda grad: torch.where(grad.abs() > 3, grad * 1.1, grad))
        return super().forward(x)


class NotANumber(DenseSingleLinear):
    def forward(self, x):
        y = super().forward(x).clone()
        y[0, 0] = float("nan")
        return y


@pytest.mark.parametrize(
    ("layer_type", "quantity"),
    [(ForgetsOneWeight, "Y"), (WrongInputGradient, "dX"), (WrongWeightGradient, "dW"), (NotANumber, "Y")],
)
def test_a_small_mistake_in_any_quantity_is_found(layer_type, quantity):
    problem = problem_of(SPEC)
    verdicts = check(problem, layer_type(problem, problem.weight()))
    assert not verdicts[quantity]["passed"]
    assert failure(verdicts).startswith(f"{quantity} is wrong")
