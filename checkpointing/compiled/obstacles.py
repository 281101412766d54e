"""What keeps a step from being one graph of known shapes: where it is in the user's code, and what to do.

place_of(stack), remedy_of_break(reason)        # of a graph break
break_around(breaks_before)                     # one that Dynamo met before the graph that it compiles now
check_shapes(joint_graph)                       # raises CheckpointingError at a shape that depends on data
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from traceback import FrameSummary
from types import FrameType

import torch
from torch import fx
from torch._dynamo import convert_frame, eval_frame
from torch._dynamo.utils import counters
from torch.fx.experimental.symbolic_shapes import free_symbols

from checkpointing.compiled.kernels import tensors
from checkpointing.errors import CheckpointingError

_FRAME = re.compile(r'^ *File "(?P<file>.+)", line (?P<line>\d+), in (?P<name>.+)\n? *(?P<code>.*)', re.MULTILINE)
_FIXED_LENGTH = "use a mask or torch.where, or a length that does not depend on data"
_ANY_BREAK = (
    "remove the break (torch.compile(..., fullgraph=True) finds it), or compile the parts with budgets of their own"
)
# What Dynamo says of a break → what removes it. Anything else: `_ANY_BREAK`.
_REMEDIES = {
    "RNN, GRU, or LSTM": "set torch._dynamo.config.allow_rnn = True",
    ".item()": "keep the value a tensor, or set torch._dynamo.config.capture_scalar_outputs = True",
    "Dynamic shape": _FIXED_LENGTH,
    "Dynamic slicing": _FIXED_LENGTH,
    "Data-dependent": "use torch.where in place of the condition, or take the check out of the step",
    "DDPOptimizer": "checkpointing.fit(model, ...) in its place keeps the model whole",
    "requires_grad": "set requires_grad outside of the step (speech models of transformers: freeze_feature_encoder)",
}


def place_of(stack: Sequence[FrameSummary] | None) -> str:
    """The innermost frame of `stack` outside of PyTorch, as " at file:line (code)"; "" for an empty stack."""
    if not stack:
        return ""
    library = str(Path(torch.__file__).parent)
    frame = [frame for frame in stack if not frame.filename.startswith(library)] or stack
    return f" at {frame[-1].filename}:{frame[-1].lineno} ({frame[-1].line})" if frame[-1].lineno else ""


def remedy_of_break(reason: str) -> str:
    """What to do about a graph break that Dynamo explains by `reason`."""
    return next((remedy for part, remedy in _REMEDIES.items() if part in reason), _ANY_BREAK)


def breaks_so_far() -> dict[str, int]:
    """What Dynamo says of the graph breaks that it has met in this process, and how often each."""
    return dict(counters["graph_break"])


def break_around(before: Mapping[str, int]) -> str | None:
    """Where and why the graph that Dynamo compiles now is a part of what torch.compile was given, and what to do.

    A break in a loop or in a `with` has Dynamo run the whole function as it is, and compile those that it calls. None:
    the graph begins where torch.compile was called. `before`: the breaks before that.
    """
    callers = list(_untraced_callers())
    if not callers:
        return None
    reason = next((said for said, count in breaks_so_far().items() if count > before.get(said, 0)), "")
    why = reason.splitlines()[0] if reason else "Dynamo cannot trace the function around it"
    place = place_of([FrameSummary(callers[0].f_code.co_filename, callers[0].f_lineno, callers[0].f_code.co_name)])
    return f"the step breaks into several graphs{place}: {why}; {remedy_of_break(why)}"


def _untraced_callers() -> Iterator[FrameType]:
    """The frames between torch.compile's call and the one that is compiled now, innermost first; not PyTorch's own."""
    stack: list[FrameType] = []
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename != eval_frame.__file__:
        stack.append(frame)
        frame = frame.f_back
    if frame is None:
        return
    outside = [index for index, frame in enumerate(stack) if frame.f_code.co_filename == convert_frame.__file__]
    own = (str(Path(torch.__file__).parent), contextlib.__file__)
    for caller in stack[max(outside, default=len(stack)) + 1 :]:
        if not caller.f_code.co_filename.startswith(own):
            yield caller


def check_shapes(graph: fx.Graph) -> None:
    """Raise CheckpointingError for the first value whose shape is not known when the step compiles."""
    for node in graph.nodes:
        if any(free_symbols(tensor) for tensor in tensors(node)):
            frames = _FRAME.finditer(node.meta.get("stack_trace") or "")
            stack = [FrameSummary(m["file"], int(m["line"]), m["name"], line=m["code"]) for m in frames]
            raise CheckpointingError(
                f"the shape of a result of {node.target} depends on data{place_of(stack)}, and a plan is of one shape: "
                f"{_FIXED_LENGTH}"
            )
