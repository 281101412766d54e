"""Reads the Chrome trace that `torch.profiler` writes: everything is in it, in the same words in every release.

    trace = read_trace(Path("trace.json"))
    trace.kernels, trace.copies, trace.host, trace.launches

Times in the file are microseconds with three decimals after `baseTimeNanoseconds`. They are read as text, so that no
nanosecond is lost, and become nanoseconds since 1970: the clock of `time.time_ns()`, to which the profiler has
converted the device's clock.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from profiler.errors import ProfilerError
from profiler.garbage import collected_later
from profiler.traces.records import HostRange, KernelLaunch, Launch, MemoryCopy, is_communication, memcpy_kind
from profiler.traces.trace_file import load_trace_file

_HOST = ("cpu_op", "user_annotation", "python_function")
_LAUNCHES = ("cuda_runtime", "cuda_driver")


@dataclass
class RawTrace:
    """A trace as it was recorded; nothing is attributed to modules yet."""

    kernels: list[KernelLaunch] = field(default_factory=list)
    copies: list[MemoryCopy] = field(default_factory=list)
    host: list[HostRange] = field(default_factory=list)
    launches: dict[int, Launch] = field(default_factory=dict)  # correlation → the call that launched it
    launched_by: dict[int, int] = field(default_factory=dict)  # correlation → external number of the operator
    threads: dict[int, int] = field(default_factory=dict)  # PyTorch's number of a thread → the system's
    text: bytes = b""  # of the file

    def copy(self) -> RawTrace:
        """A trace whose kernels and copies can be attributed anew."""
        kernels = [dataclasses.replace(kernel) for kernel in self.kernels]
        return dataclasses.replace(self, kernels=kernels, copies=[dataclasses.replace(copy) for copy in self.copies])


def read_trace(path: Path) -> RawTrace:
    """Parse a trace file, plain or .gz. Raises ProfilerError if it can't be read or is none of torch.profiler's."""
    with collected_later():
        text, content = load_trace_file(path)
    if not isinstance(content, dict) or not isinstance(content.get("traceEvents"), list):
        raise ProfilerError(f"{path} is no trace of torch.profiler: it has no list traceEvents")
    trace = RawTrace(text=text)
    flows: dict[int, dict[str, tuple[int, int]]] = {}
    event: Any = "baseTimeNanoseconds"
    try:
        base = int(content.get("baseTimeNanoseconds", 0))
        with collected_later():
            for event in content["traceEvents"]:
                kind, phase = event.get("cat"), event.get("ph")
                if kind == "fwdbwd":
                    flows.setdefault(event["id"], {})[phase] = (event["tid"], base + _nanoseconds(event["ts"]))
                elif phase == "X" and kind is not None:
                    _add(trace, kind, event, base)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        what = f"{type(error).__name__}: {error}, in {str(event)[:100]}"
        raise ProfilerError(f"{path} is no trace of torch.profiler: it writes no such event ({what})") from error
    trace.threads = _threads(trace.host, flows)
    return trace


def _add(trace: RawTrace, kind: str, event: dict[str, Any], base: int) -> None:
    arguments = event.get("args", {})
    start = base + _nanoseconds(event["ts"])
    end = start + max(0, _nanoseconds(event.get("dur", 0)))
    name = event["name"]
    if kind in _HOST:
        trace.host.append(
            HostRange(
                name,
                start,
                end,
                event["tid"],
                kind,
                int(arguments.get("Sequence number", -1)),
                int(arguments.get("Fwd thread id", 0)),
                int(arguments.get("External id", 0)),
                arguments.get("Python id"),
                arguments.get("Python parent id"),
            )
        )
        if name == "aten::copy_" and "Input Dims" in arguments:
            _add_host_copy(trace, event, start, end)
    elif kind in _LAUNCHES:
        if "correlation" in arguments:
            trace.launches[arguments["correlation"]] = Launch(event["tid"], start)
    elif kind in ("kernel", "gpu_memcpy", "gpu_memset"):
        device, stream = int(arguments.get("device", 0)), int(arguments.get("stream", 0))
        correlation = int(arguments.get("correlation", 0))
        if arguments.get("External id"):
            trace.launched_by[correlation] = int(arguments["External id"])
        if kind == "kernel":
            grid = tuple(int(size) for size in arguments.get("grid", (0, 0, 0)))
            kernel = KernelLaunch(name, start, end, device, stream, (grid[0], grid[1], grid[2]), correlation)
            kernel.communication = is_communication(name)
            trace.kernels.append(kernel)
        else:
            size = int(arguments.get("bytes", 0))
            trace.copies.append(MemoryCopy(start, end, size, memcpy_kind(name), device, stream, correlation))


_ITEM_BYTES = {"float": 4, "double": 8, "c10::BFloat16": 2, "c10::Half": 2, "long int": 8, "long": 8, "int": 4}
_ITEM_BYTES |= {"short int": 2, "short": 2, "bool": 1, "unsigned char": 1, "signed char": 1}
_ITEM_BYTES |= {"c10::complex<float>": 8, "c10::complex<double>": 16}
HOST_TO_HOST = 9


def _add_host_copy(trace: RawTrace, event: dict[str, Any], start: int, end: int) -> None:
    """Where shapes are recorded, which is on a CPU, `aten::copy_` is a copy of the target's bytes."""
    arguments = event["args"]
    shapes, types = arguments["Input Dims"], arguments.get("Input type", [""])
    elements = 1
    for size in shapes[0]:
        elements *= size
    size_bytes = elements * _ITEM_BYTES.get(types[0], 0)
    if size_bytes:
        copy = MemoryCopy(start, end, size_bytes, HOST_TO_HOST, stream=event["tid"])
        copy.correlation = int(arguments.get("External id", 0))
        trace.copies.append(copy)


def _nanoseconds(microseconds: str | int) -> int:
    """Text such as '4373411988672.467', or a whole number of microseconds, without a detour through floating point."""
    whole, _, fraction = str(microseconds).partition(".")
    sign = -1 if whole.startswith("-") else 1
    return sign * (abs(int(whole)) * 1000 + int(f"{fraction[:3]:0<3}"))


def _threads(host: list[HostRange], flows: dict[int, dict[str, tuple[int, int]]]) -> dict[int, int]:
    """PyTorch numbers threads by itself and says so only of backward operators; the flows from a forward operator to
    its backward say which of the system's threads the number stands for."""
    evaluated = {(r.thread, r.start): r.forward_thread for r in host if r.forward_thread}
    threads: dict[int, int] = {}
    for flow in flows.values():
        if "s" in flow and "f" in flow and flow["f"] in evaluated:
            threads[evaluated[flow["f"]]] = flow["s"][0]
    return threads
