"""Numbers that a step draws outside of PyTorch, which would stay in its graph for ever: seen, and drawn differently.

generators = PythonGenerators(found_in_the_users_objects)
...                        # the step runs
if generators.drawn(): generators.seed(SEEDS[0])
generators.restore()
"""

import random
import sys
from collections.abc import Sequence
from typing import Any

# Pairs of seeds for Python's and NumPy's generators: with the first pair the first uniform number is below 0.001,
# with the second above 0.999, so that a branch with a small probability is taken once and not taken once.
SEEDS: tuple[tuple[int, int, int], ...] = ((1651, 2927, 1022), (2172, 2748, 1074), (5, 5, 5))


def is_generator(value: Any) -> bool:
    """Whether `value` is a generator of Python or NumPy."""
    if isinstance(value, random.Random):
        return True
    return type(value).__module__.startswith("numpy.random") and type(value).__name__ in ("Generator", "RandomState")


class PythonGenerators:
    """The generators of the modules `random` and `numpy.random`, and those of the user's own."""

    def __init__(self, own: Sequence[Any]) -> None:
        numpy: Any = sys.modules.get("numpy")
        self._generators: list[Any] = [random, *own]
        if numpy is not None:
            self._generators.append(numpy.random.get_state.__self__)  # the one behind its functions
        self._before = [_state(generator) for generator in self._generators]

    def drawn(self) -> bool:
        """Whether one of them is in another state than at the start."""
        return any(repr(_state(g)) != repr(before) for g, before in zip(self._generators, self._before, strict=True))

    def seed(self, seeds: tuple[int, int, int]) -> None:
        """Start all of them from seeds: Python's, NumPy's old generator, NumPy's new ones."""
        for generator in self._generators:
            if generator is random or isinstance(generator, random.Random):
                generator.seed(seeds[0])
            elif hasattr(generator, "bit_generator"):
                generator.bit_generator.state = type(generator.bit_generator)(seeds[2]).state
            else:
                generator.seed(seeds[1])

    def restore(self) -> None:
        """Put the states of the start back."""
        for generator, state in zip(self._generators, self._before, strict=True):
            if generator is random or isinstance(generator, random.Random):
                generator.setstate(state)
            elif hasattr(generator, "bit_generator"):
                generator.bit_generator.state = state
            else:
                generator.set_state(state)


def _state(generator: Any) -> Any:
    if generator is random or isinstance(generator, random.Random):
        return generator.getstate()
    if hasattr(generator, "bit_generator"):
        return generator.bit_generator.state
    kind, keys, *rest = generator.get_state()
    return (kind, keys.tolist(), *rest)
