"""Rows added where their indices say, against float64: the operator as PyTorch's operators compute it on a CPU, and the
Triton kernels through their interpreter, in a process of its own. `test_add_rows_on_gpu` has the GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from checkpointing.compiled.embedding.operators import add_rows_, exact_type

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
interpreted = pytest.mark.skipif(not INTERPRETED, reason="needs TRITON_INTERPRET=1 from the start")


@dataclass(frozen=True)
class Drawn:
    total: Tensor
    indices: Tensor
    rows: Tensor

    def exact(self) -> Tensor:
        """By a product with the matrix that says which row goes where, in float64."""
        chosen = torch.nn.functional.one_hot(self.indices.flatten() % len(self.total), len(self.total)).double()
        return self.total.double() + chosen.T @ self.rows.double().reshape(-1, self.total.shape[1])

    def check(self, found: Tensor, roundings: float = 0.5) -> None:
        """Each element is rounded once, after a sum in float32: it is off by no more than half a unit of its type (one
        where Triton's interpreter truncates), and one of float32 for every row that is added."""
        exact = self.exact()
        magnitude = Drawn(self.total.abs(), self.indices, self.rows.abs()).exact()
        unit = torch.finfo(found.dtype).eps * roundings
        exact_unit = torch.finfo(torch.promote_types(found.dtype, torch.float32)).eps
        bound = unit * exact.abs() + exact_unit * (2 + self.indices.numel()) * magnitude + torch.finfo(found.dtype).tiny
        assert ((found.double() - exact).abs() <= bound).all()


@st.composite
def draws(draw: st.DrawFn) -> Drawn:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 9999)))
    places, width = draw(st.integers(1, 40)), draw(st.integers(1, 20))
    shape = (draw(st.integers(1, 3)), draw(st.integers(0, 30)))
    used = draw(st.integers(1, places))  # few places: long runs of equal indices
    indices = torch.randint(-used if draw(st.booleans()) else 0, used, shape, generator=generator)
    total = torch.randn(places + 2, width, generator=generator).to(
        draw(st.sampled_from([torch.bfloat16, torch.float32, torch.float64]))
    )
    rows = torch.randn(*shape, width + 3, generator=generator)[..., 3:]
    return Drawn(total[2:], indices, rows)


@settings(max_examples=60, deadline=None)
@given(draws())
def test_rows_are_added_and_each_place_is_rounded_once(drawn: Drawn) -> None:
    found = drawn.total.clone()
    add_rows_(found, drawn.indices, drawn.rows)
    drawn.check(found)


def test_an_index_out_of_range_is_an_error() -> None:
    with pytest.raises((IndexError, RuntimeError), match="out of"):
        add_rows_(torch.zeros(3, 2), torch.tensor([1, 3]), torch.ones(2, 2))


@pytest.mark.skipif(INTERPRETED, reason="the tests below run here as they are")
def test_the_kernels_under_the_interpreter() -> None:
    """The tests below, where the kernels' decorators see TRITON_INTERPRET when they are imported."""
    command = [sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider", __file__, "-k", "kernels"]
    environment = os.environ | {"TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[4], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@interpreted
@settings(max_examples=40, deadline=None)
@given(draws(), st.sampled_from([1, 2, 3, 16]))
def test_kernels_join_what_pieces_of_any_length_leave_open(drawn: Drawn, piece: int) -> None:
    from checkpointing.compiled.embedding.kernel import launch

    found = drawn.total.clone()
    width = found.shape[1]
    places = drawn.indices.flatten() % len(found)
    launch(found, *torch.sort(places, stable=True), drawn.rows.reshape(-1, width), exact_type(found, drawn.rows), piece)
    drawn.check(found, roundings=1.0)
