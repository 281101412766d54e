"""Is the result right? Compared with float64, and judged by the roundings that the method can't avoid.

A dense product in the dtype under test, measured against the same float64 reference, says what one rounding costs on
these data. A method that rounds more often (partial products, the additions of a reduction) states by which factor,
and may exceed that by a fifth. In float64 itself the limit is 1e-12. There is nothing to tune.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from blockshock.methods import ParallelModule
from blockshock.problem import Problem
from blockshock.ranks.distributed import max_over_ranks

MARGIN = 1.2
FLOAT64_LIMIT = 1e-12
ENOUGH = 1 << 14  # elements; the sampling error of a ratio of errors is then about one percent
QUANTITIES = ("Y", "dX", "dW")


class CheckFailed(Exception):
    """A result further from the reference than its roundings explain."""


@dataclass(frozen=True)
class Check:
    """One quantity's verdict; errors are the worst rank's."""

    relative_error: float  # ‖A - A*‖ / ‖A*‖, Frobenius
    max_abs_error: float
    dense_relative_error: float  # the same of a dense product in this dtype
    roundings: float  # the factor that the method's own roundings explain
    limit: float
    passed: bool


def errors(value: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """(relative Frobenius error, largest absolute error) of `value` against a float64 `reference`."""
    difference = value.double() - reference
    return float(difference.norm() / reference.norm()), float(difference.abs().max())


@dataclass
class _Pool:
    """Squared norms over several batches: a ratio of errors needs more than a handful of roundings to be one."""

    error: float = 0.0
    dense_error: float = 0.0
    reference: float = 0.0
    largest: float = 0.0

    def add(self, value: torch.Tensor, dense: torch.Tensor, reference: torch.Tensor) -> None:
        difference = value.double() - reference
        self.error += float(difference.square().sum())
        self.dense_error += float((dense.double() - reference).square().sum())
        self.reference += float(reference.square().sum())
        self.largest = max(self.largest, float(difference.abs().max()), key=_nan_is_worst)


def check(problem: Problem, layer: ParallelModule, quantities: Sequence[str] = QUANTITIES) -> dict[str, Any]:
    """Run `layer` forward and backward and judge Y, dX, dW as asked. A collective; leaves no gradients.

    Several weights may have verdicts of their own: `dW_up`, `dW_down`. Small layers are run on several
    batches, until each quantity has ENOUGH elements to compare roundings with.
    """
    pools: dict[str, _Pool] = {}
    batches = max(1, math.ceil(ENOUGH / (problem.B * min(problem.N, problem.K))))
    for batch in range(batches):
        got = _of_layer(problem, layer, quantities, batch)
        references = _of_dense(problem, torch.float64, quantities, batch)
        dense = _of_dense(problem, problem.dtype, quantities, batch)
        for name, parts in references.items():
            for value, dense_value, reference in zip(got.pop(name), dense.pop(name), parts, strict=True):
                pools.setdefault(name, _Pool()).add(value, dense_value, reference)
        del references
    verdicts = {}
    for name, pool in pools.items():
        norms = (math.sqrt(pool.error / pool.reference), pool.largest, math.sqrt(pool.dense_error / pool.reference))
        relative, largest, dense_error = max_over_ranks([_nan_is_worst(value) for value in norms])
        factor = layer.roundings()[name.split("_")[0]]
        limit = FLOAT64_LIMIT if problem.dtype == torch.float64 else MARGIN * factor * dense_error
        verdicts[name] = asdict(Check(relative, largest, dense_error, factor, limit, relative <= limit))
    return verdicts


def failure(verdicts: dict[str, Any]) -> str | None:
    """One line on the first quantity that failed; None if all passed."""
    for name, verdict in verdicts.items():
        if not verdict["passed"]:
            return f"{name} is wrong: relative error {verdict['relative_error']:.3g} exceeds {verdict['limit']:.3g}"
    return None


Tensors = dict[str, list[torch.Tensor]]  # by quantity; several weights may be judged as one


def _of_layer(problem: Problem, layer: ParallelModule, quantities: Sequence[str], batch: int) -> Tensors:
    parameters = list(layer.parameters())
    wanted = [p.requires_grad for p in parameters]
    x = layer.shard_input(problem.inputs(batch))
    got, grads = _results(problem, layer, x, problem.upstream_gradient(batch), quantities)
    if "dX" in got:
        got["dX"] = [layer.assemble_input_grad(got["dX"][0])]
    if "dW" in quantities:
        _add_weights(problem, got, layer.assemble_weights(grads))
    for p, had in zip(parameters, wanted, strict=True):
        p.grad = None
        p.requires_grad_(had)
    return got


def _of_dense(problem: Problem, dtype: torch.dtype, quantities: Sequence[str], batch: int) -> Tensors:
    x = problem.cast(problem.inputs(batch), dtype)
    upstream = problem.upstream_gradient(batch).to(dtype)
    got, grads = _results(problem, problem.dense(dtype), x, upstream, quantities)
    if "dW" in quantities:
        _add_weights(problem, got, grads)
    return got


def _results(
    problem: Problem, module: torch.nn.Module, x: torch.Tensor, upstream: torch.Tensor, quantities: Sequence[str]
) -> tuple[Tensors, list[torch.Tensor]]:
    """Y, dX where asked, and the parameters' gradients where asked."""
    backward = bool(set(quantities) & {"dX", "dW"})
    input_grad = "dX" in quantities and problem.has_input_grad
    x = x.detach().requires_grad_(input_grad)
    module.requires_grad_("dW" in quantities)
    with torch.set_grad_enabled(backward):
        y = module(x)
    got = {"Y": [y.detach()]} if "Y" in quantities else {}
    if backward:
        y.backward(upstream)
    if input_grad:
        assert x.grad is not None
        got["dX"] = [x.grad]
    if "dW" not in quantities:
        return got, []
    return got, [torch.zeros_like(p) if p.grad is None else p.grad for p in module.parameters()]


def _add_weights(problem: Problem, got: Tensors, grads: list[torch.Tensor]) -> None:
    kept = problem.kept()
    for place, (name, grad) in enumerate(zip(problem.weight_quantities(), grads, strict=True)):
        got.setdefault(name, []).append(grad * kept[place] if kept else grad)


def _nan_is_worst(value: float) -> float:
    return float("inf") if value != value else value
