"""What it takes to compare two runs of a step: repeatable kernels, bitwise equality, room for copies.

with deterministic_algorithms():
    a, b = step(*batch), step(*batch)
same_bits(a, b)
"""

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def deterministic_algorithms() -> Iterator[None]:
    """PyTorch's deterministic algorithms where it has them; memory that an operator leaves unset is filled with NaN.

    Silent about operators that have none: warnings are the user's own to ask for.
    """
    before, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Bitwise equality: NaN of the same bits is equal, and 0 is not -0."""
    if a.dtype != b.dtype or a.shape != b.shape or a.layout != b.layout:
        return False
    if a.layout is torch.sparse_coo:
        return torch.equal(a._indices(), b._indices()) and same_bits(a._values(), b._values())
    a, b = (tensor.resolve_conj().resolve_neg() for tensor in (a, b))  # a view that negates has other bits in memory
    if a.is_complex():
        a, b = torch.view_as_real(a), torch.view_as_real(b)
    if a.is_floating_point():
        integer = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
        return torch.equal(a.contiguous().view(integer), b.contiguous().view(integer))
    return torch.equal(a, b)


def where_there_is_room(device: torch.device, tensors: Iterable[Tensor], copies: int) -> torch.device | str:
    """`device` if so many copies of `tensors` take less than a tenth of its free memory, else "cpu"."""
    if device.type != "cuda":
        return "cpu"
    free, _ = torch.cuda.mem_get_info(device)
    needed = copies * sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return device if 10 * needed < free else "cpu"
