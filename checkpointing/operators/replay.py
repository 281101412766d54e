"""Runs a random operator a second time with the numbers that it drew the first time.

The rewritten graph calls `generator_state` before the first run and `replay` for the second.
"""

from collections.abc import Callable
from typing import Any

import torch


def generator_of(device: torch.device) -> torch.Generator:
    """The generator from which operators on `device` draw."""
    if device.type == "cuda":
        torch.cuda.init()
        index = device.index if device.index is not None else torch.cuda.current_device()
        return torch.cuda.default_generators[index]
    return torch.default_generator


def generator_state(device: torch.device) -> torch.Generator:
    """A copy of the device's generator, as it is now. No memory of the device is used."""
    return generator_of(device).clone_state()


def replay(
    state: torch.Generator, device: torch.device, function: Callable[..., Any], /, *args: Any, **kwargs: Any
) -> Any:
    """`function(*args, **kwargs)` drawing from `state`; the device's generator is where it was afterwards.

    The arguments may have a `device=` of their own, as those of torch.rand have.
    """
    generator = generator_of(device)
    now = generator.get_state()
    generator.set_state(state.get_state())
    try:
        return function(*args, **kwargs)
    finally:
        generator.set_state(now)
