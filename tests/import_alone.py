"""`python -P import_alone.py FILE`: can every module of ours be the first one that a process imports?

FILE holds `{"third_party": [...], "imports": {module: [modules of ours that it imports]}}`, importers before what they
import, and is replaced by `{module: null or {"missing": package that is not installed, "trace": ...}}`.

A new interpreter for each module would spend minutes importing torch. So third-party packages are imported once, here,
and our modules in forks. Where importing A starts with importing B, and that with C, then B and C met a process without
any complete module of ours: they need no fork of their own.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import tempfile
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Any


def import_in_fork(module: str) -> dict[str, Any]:
    """`{"error": ..., "loaded": every module in the order in which its import started}`."""
    with tempfile.TemporaryFile() as pipe:
        child = os.fork()
        if child == 0:
            said: dict[str, Any] = {"error": None}
            try:
                importlib.import_module(module)
            except BaseException as error:  # an import that exits the process is as wrong as one that raises
                missing = error.name if isinstance(error, ModuleNotFoundError) else None
                said["error"] = {"missing": missing, "trace": traceback.format_exc()}
            pipe.write(json.dumps(said | {"loaded": list(sys.modules)}).encode())
            pipe.flush()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        pipe.seek(0)
        said = json.loads(pipe.read() or "null")
    return said or {"error": {"missing": None, "trace": f"ended with status {status}"}, "loaded": []}


def first_ones(module: str, loaded: list[str], imports: dict[str, list[str]]) -> list[str]:
    """`module` with the packages that it is in, then the chain in which each is the first import of the one before."""
    ours = [name for name in loaded if name in imports]
    chain, rest = ours[: ours.index(module) + 1], ours[ours.index(module) + 1 :]
    for name in rest:
        if name not in imports[chain[-1]]:
            break
        chain.append(name)
    return chain


def import_alone(imports: dict[str, list[str]]) -> dict[str, dict[str, Any] | None]:
    errors: dict[str, dict[str, Any] | None] = {}
    for module in imports:
        if module not in errors:
            said = import_in_fork(module)
            errors[module] = said["error"]
            if said["error"] is None:
                errors = dict.fromkeys(first_ones(module, said["loaded"], imports)) | errors
    return errors


if __name__ == "__main__":
    file = Path(sys.argv[1])
    request = json.loads(file.read_text())
    for name in request["third_party"]:
        with suppress(ImportError):  # an optional one: the module that needs it says so
            importlib.import_module(name)
    file.write_text(json.dumps(import_alone(request["imports"])))
