"""Kernel names as people read them: demangled, without parameters and namespaces, and short."""

from __future__ import annotations

import re
from collections.abc import Iterable

import torch


def demangled(name: str) -> str:
    """`_ZN2at6native…` → `void at::native::…`; a name that is not mangled stays as it is."""
    return torch._C._demangle(name) if name.startswith("_Z") else name


def short_name(name: str, limit: int = 46) -> str:
    """The function without its return type, namespaces and parameters, with its last telling template argument.

    `void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<float>, …>(int, …)` →
    `vectorized_elementwise_kernel<CUDAFunctor_add>`. Longer than `limit`: cut in the middle.
    """
    name = demangled(name).replace("(anonymous namespace)::", "").removeprefix("void ")
    head, arguments = _split_template(name)
    head = _last_part(head.split("(")[0]) if "::" in head or "(" in head else head
    if head.endswith(" const") or not head:
        head = name
    words = [found for argument in arguments if (found := _functor(argument))]
    telling = next((word for word in words if "unctor" in word), words[0] if words else "")
    full = f"{head}<{telling}>" if telling else head
    if len(full) <= limit:
        return full
    return full[: limit // 2 - 1] + "…" + full[-(limit - limit // 2) :]


def short_names(names: Iterable[str], limit: int = 46) -> dict[str, str]:
    """Name → short name, where different names stay different: the second of one short name gets `#2`."""
    seen: dict[str, int] = {}
    short: dict[str, str] = {}
    for name in names:
        if name in short:
            continue
        label = short_name(name, limit)
        seen[label] = seen.get(label, 0) + 1
        short[name] = label if seen[label] == 1 else f"{label} #{seen[label]}"
    return short


def _split_template(name: str) -> tuple[str, list[str]]:
    """`f<a, b<c>>(d)` → `f`, [`a`, `b<c>`]: the first template's arguments at its own level."""
    start = name.find("<")
    if start < 0 or "(" in name[:start]:
        return name, []
    depth, parts, current = 0, [], ""
    for character in name[start:]:
        if character == "<":
            depth += 1
            if depth == 1:
                continue
        elif character == ">":
            depth -= 1
            if depth == 0:
                break
        if character == "," and depth == 1:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    return name[:start], [*parts, current.strip()]


def _last_part(name: str) -> str:
    return name.rsplit("::", 1)[-1].strip()


def _functor(argument: str) -> str:
    """The word of a template argument that tells kernels of one family apart, or '' if it tells nothing."""
    lambda_in = re.search(r"(\w+_kernel_cuda|\w+_kernel_impl|\w+_kernel)\(", argument)  # a lambda in at::native::f(…)
    if lambda_in:
        return lambda_in.group(1)
    inner_head, inner = _split_template(argument)
    word = _last_part(inner_head)
    if re.fullmatch(r"(\(.*\))?-?\d+\w*|true|false|int|long|float|double|bool|char|c10::\w+|unsigned.*", argument):
        return ""
    if word in ("array", "Array", "TrivialOffsetCalculator", "ReduceOp", "BinaryFunctor", "gpu_kernel_impl_nocast", ""):
        return next((found for part in inner if (found := _functor(part))), "")
    return word if re.fullmatch(r"[A-Za-z_]\w+", word) and word not in ("BFloat16", "Half") else ""
