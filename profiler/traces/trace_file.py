"""The text of a trace file, plain or packed, mended where torch.profiler writes what is no JSON.

    text, content = load_trace_file(Path("trace.json.gz"))

A quotation mark in the name of a module, or in the file name of generated code, is written as it is; the text that is
returned has it escaped, so that a viewer reads it too.
"""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

from profiler.errors import ProfilerError

_GZIP = b"\x1f\x8b"
# A name ends with its line or, in releases that write several fields on a line, where the process begins.
_NAME = re.compile(r'^(.*?"name": ")(.*)("(?:, "pid": .*|,?))$', re.MULTILINE)
_BARE_QUOTE = re.compile(r'(?<!\\)((?:\\\\)*)"')


def load_trace_file(path: Path) -> tuple[bytes, Any]:
    """The file as valid JSON, and what it holds, numbers with a point as text.

    Raises ProfilerError, which names the file, where it can't be read.
    """
    try:
        raw = path.read_bytes()
        if raw.startswith(_GZIP):
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise ProfilerError(f"{path} cannot be read ({error}): record the trace again") from error
    text = raw.decode("utf-8-sig", errors="replace")
    if not text.strip():
        raise ProfilerError(f"{path} is empty: record the trace again")
    try:
        return text.encode(), json.loads(text, parse_float=str)
    except json.JSONDecodeError:
        text = _NAME.sub(lambda found: found[1] + _BARE_QUOTE.sub(r'\1\\"', found[2]) + found[3], text)
    try:
        return text.encode(), json.loads(text, parse_float=str)
    except json.JSONDecodeError as error:
        what = (
            "it ends in the middle" if _is_cut(text.rstrip(), error) else f"it is no JSON from line {error.lineno} on"
        )
        raise ProfilerError(f"{path} cannot be read as a trace: {what}; record the trace again") from error


def _is_cut(text: str, error: json.JSONDecodeError) -> bool:
    """Whether the error is the end of the text: what is there may end with the bracket of an inner object."""
    return not text.endswith("}") or error.pos >= len(text) or error.msg.startswith("Unterminated string")
