"""Parts `product` and `backward`: one rank's product and its gradients beside the dense product over half of K.

The half-K product is the floor that algebra sets for masks made of dense blocks: the same multiplications, its operands
already in place. For any other mask the floor is bytes: 9/16 of the dense weight, X and Y at the copy rate.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from blockshock.bench.cells import Cell, Row, measure
from blockshock.jobs.correctness import errors
from blockshock.kernels import KERNELS, Half, Kernel, make
from blockshock.masks import halves
from blockshock.measure import calibration
from blockshock.problem import generator

Step = Callable[[], Any]
MEASURED = {"complement_1100_0011": ("auto", "cusparselt"), "random_2of4": ("auto", "cusparselt")}


def product(cell: Cell) -> Iterator[Row]:
    """Forward: the half-K dense product, the whole dense one, and each mask's kernels."""
    x, weight = _operands(cell)
    halved, out = x[:, : cell.K // 2].contiguous(), x.new_empty(cell.B, cell.N)
    half_weight = weight[:, : cell.K // 2].contiguous()
    steps: dict[str, Step] = {
        "half_k_dense": partial(torch.mm, halved, half_weight.t()),
        "dense": partial(torch.mm, x, weight.t()),
    }
    about: dict[str, dict[str, Any]] = {name: {} for name in steps}
    rate = calibration.rates(cell.dtype, cell.device, "nccl" if x.is_cuda else "gloo").copy_gbs
    for mask, kernel, built, values in _kernels(cell, weight):
        name = f"{mask}/{kernel}"
        steps[name] = partial(built.product, x, values)
        out.fill_(float("nan"))
        built.product(x, values, out)
        half = built.layout.unpack(values)
        about[name] = {"mask": mask, "kernel": kernel, "detail": built.describe(), "copy_gbs": rate}
        about[name] |= _judged(out, x @ half.t(), x.double() @ half.double().t(), cell.K)
        del half
    yield from measure(cell, "product", steps, about)


def backward(cell: Cell) -> Iterator[Row]:
    """dX and dW, each beside its half-K dense product."""
    x, weight = _operands(cell)
    dy = torch.randn(cell.B, cell.N, generator=generator(cell.seed, "dY", cell.device), device=cell.device)
    dy = dy.to(cell.dtype)
    halved, half_weight = x[:, : cell.K // 2].contiguous(), weight[:, : cell.K // 2].contiguous()
    steps: dict[str, Step] = {
        "half_k_dense": partial(torch.mm, dy, half_weight),
        "half_k_dense/dW": partial(torch.mm, dy.t(), halved),
    }
    about: dict[str, dict[str, Any]] = {
        name: {"quantity": "dW" if name.endswith("dW") else "dX", "method": "half_k_dense"} for name in steps
    }
    for mask, kernel, built, values in _kernels(cell, weight):
        if kernel != "auto":
            continue
        half = built.layout.unpack(values)
        own = {"mask": mask, "kernel": kernel, "detail": built.describe()}
        dx = built.input_grad(dy, values)
        steps[f"{mask}/dX"] = partial(built.input_grad, dy, values)
        about[f"{mask}/dX"] = own | {"quantity": "dX"} | _judged(dx, dy @ half, dy.double() @ half.double(), cell.N)
        dw = built.layout.unpack(built.values_grad(dy, x))
        kept = built.layout.unpack(torch.ones_like(values)).bool()
        dense, exact = (torch.where(kept, a.t() @ b, 0) for a, b in ((dy, x), (dy.double(), x.double())))
        steps[f"{mask}/dW"] = partial(built.values_grad, dy, x)
        about[f"{mask}/dW"] = own | {"quantity": "dW"} | _judged(dw, dense, exact, cell.B)
        del half, dx, dw, kept, dense, exact
    yield from measure(cell, "backward", steps, about)


def _operands(cell: Cell) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(cell.B, cell.K, generator=generator(cell.seed, "X", cell.device), device=cell.device)
    weight = torch.randn(cell.N, cell.K, generator=generator(cell.seed, "W", cell.device), device=cell.device)
    return x.to(cell.dtype), weight.mul_(cell.K**-0.5).to(cell.dtype)


def _kernels(cell: Cell, weight: torch.Tensor) -> Iterator[tuple[str, str, Kernel, torch.Tensor]]:
    """(mask, kernel asked for, kernel built for half 0, its packed values)."""
    for mask in cell.masks:
        half, _ = halves(mask, weight, generator(cell.seed, "mask", cell.device))
        for name in MEASURED.get(mask.name, ("auto",)):
            shape = Half(half, mask.period, cell.B, cell.dtype).shape
            if name != "auto" and KERNELS[name].unsupported(shape):
                continue
            built = make(name, half, mask.period, cell.B, cell.dtype)
            yield mask.name, name, built, built.adopt(built.layout.pack(weight))


def _judged(got: torch.Tensor, dense: torch.Tensor, exact: torch.Tensor, terms: int) -> dict[str, float]:
    """Relative errors of a result and of a dense product in the same dtype; raises ArithmeticError if it is wrong.

    A fifth more is allowed, and what float32 sums of that many terms in another order may differ by.
    """
    error, dense_error = errors(got, exact)[0], errors(dense, exact)[0]
    if not error <= 1.2 * dense_error + terms**0.5 * 2.0**-24:
        raise ArithmeticError(f"relative error {error:.3g}, where a dense product has {dense_error:.3g}")
    return {"relative_error": error, "dense_relative_error": dense_error}
