"""Is a profile consistent with itself, with the model and with the allocator? One line a check.

checks = sign_off(profiler, folder)
print(sign_off_table(checks)); ok = all(check.passed for check in checks)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from torch import Tensor, fx
from torch.optim import SGD

from profiler.costs.memory import MemoryCurve
from profiler.costs.profile import Profile
from profiler.costs.stats import ACTIVATION_STATS, MEMORY_CURVE, NODE_STATS, read_csv
from profiler.costs.storage import StorageAnalysis
from profiler.errors import MissingStatsError
from profiler.graph.fake_tensors import communicates
from profiler.graph.lift import NodeType
from profiler.graph.step import TracedStep

PEAK_TOLERANCE = 0.003  # of the allocator's peak, on CUDA; on the CPU the two are equal


class ProfiledStep(Protocol):
    """What is read of a `GraphProfiler` that has run."""

    step: TracedStep
    analysis: StorageAnalysis

    @property
    def profile(self) -> Profile: ...

    @property
    def measured_ranks(self) -> np.ndarray: ...

    def memory(self) -> MemoryCurve: ...


@dataclass(frozen=True)
class Check:
    """One line of the sign-off: what was found, what was expected, and whether that passes."""

    name: str
    found: str
    expected: str
    passed: bool


def sign_off(profiler: ProfiledStep, folder: Path) -> list[Check]:
    """Check a profiled step and the CSV files that it wrote into `folder`."""
    return [
        *_liveness(profiler),
        *_conservation(profiler),
        *_sizes(profiler),
        *_state(profiler),
        *_peak(profiler),
        *_schema(folder),
    ]


def sign_off_table(checks: Sequence[Check]) -> str:
    """The checks as text, one a line, numbered, with pass or FAIL."""
    width = [max(len(getattr(check, key)) for check in checks) for key in ("name", "found", "expected")]
    return "\n".join(
        f"{number:2d}  {check.name:<{width[0]}}  {check.found:>{width[1]}}  {check.expected:<{width[2]}}  "
        f"{'pass' if check.passed else 'FAIL'}"
        for number, check in enumerate(checks, start=1)
    )


def _liveness(profiler: ProfiledStep) -> Iterator[Check]:
    activations = profiler.analysis.activations
    late = [
        a.name
        for a in activations
        if not a.creation_rank <= a.last_fw_use_rank < a.first_bw_use_rank <= a.last_bw_use_rank
    ]
    found = f"{len(activations)} activations, {len(late)} out of order"
    yield Check("liveness: creation ≤ last forward use < first backward use", found, "0 out of order", not late)


def _conservation(profiler: ProfiledStep) -> Iterator[Check]:
    curve = profiler.memory()
    difference = sum(curve.breakdown().values()) - curve.peak_bytes
    yield Check("conservation: categories − peak", f"{difference} B", "0 B", difference == 0)
    live, held = curve.table["live_bytes"].to_numpy(), _held_by_gloo(profiler.step)
    above = int((live - profiler.profile.after_bytes > held)[profiler.measured_ranks].sum())
    yield Check("live bytes above the measured", f"{above} nodes", "0 nodes", above == 0)


def _sizes(profiler: ProfiledStep) -> Iterator[Check]:
    model, analysis = profiler.step.model, profiler.analysis
    of_model = {name: p.numel() * p.element_size() for name, p in model.named_parameters()}
    parameters = sum(analysis.bytes_by_name(NodeType.PARAM).values())
    yield _equal("parameter bytes, graph and model", parameters, sum(of_model.values()))
    gradients = analysis.bytes_by_name(NodeType.GRAD)
    yield _equal(
        f"gradient bytes, and of the {len(gradients)} parameters that have one",
        sum(gradients.values()),
        sum(of_model[name] for name in gradients),
    )


def _equal(name: str, found: int, expected: int) -> Check:
    return Check(name, f"{found} B", f"{expected} B", found == expected)


def _state(profiler: ProfiledStep) -> Iterator[Check]:
    optimizer = profiler.step.optimizer
    tensors = [v for state in optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
    tensors += [v for group in optimizer.param_groups for v in group.values() if isinstance(v, Tensor)]
    nodes = profiler.analysis.bytes_by_name(NodeType.OPT_STATE)
    stateless = isinstance(optimizer, SGD) and all(group["momentum"] == 0 for group in optimizer.param_groups)
    passed = len(nodes) == len(tensors) and (stateless or len(nodes) > 0)
    yield Check("optimizer state, nodes and tensors", f"{len(nodes)}", f"{len(tensors)}", passed)


def _peak(profiler: ProfiledStep) -> Iterator[Check]:
    simulated, measured = profiler.memory().peak_bytes, profiler.profile.step_peak_bytes
    tolerance = PEAK_TOLERANCE if profiler.step.device.type == "cuda" else 0.0
    error, held = simulated / measured - 1, _held_by_gloo(profiler.step)
    yield Check(
        "simulated peak against the allocator's",
        f"{simulated} B ({error:+.3%})",
        f"{measured} B ± {tolerance:.1%}" + (f", ± {held} B that gloo holds" if held else ""),
        abs(measured - simulated) <= held if held else abs(error) <= tolerance,
    )


def _held_by_gloo(step: TracedStep) -> int:
    """On a CPU, bytes that gloo's two threads may hold, or free in another node: each what it was given last."""
    if step.device.type == "cuda":
        return 0
    given = [sum(t.nbytes for t in map(_value, n.all_input_nodes)) for n in step.nodes if communicates(n)]
    return 2 * max(given, default=0)


def _value(node: fx.Node) -> Tensor:
    value: Tensor = node.meta["val"]
    return value


def _schema(folder: Path) -> Iterator[Check]:
    for name in (NODE_STATS, ACTIVATION_STATS, MEMORY_CURVE):
        try:
            found, passed = f"{len(read_csv(folder, name))} rows, complete", True
        except MissingStatsError as error:
            found, passed = str(error), False
        yield Check(f"schema of {name}", found, "every column, no empty cell", passed)
