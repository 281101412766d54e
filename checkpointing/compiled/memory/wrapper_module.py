"""The Python module that inductor generates for one graph, loaded so that it computes nothing.

    namespace = {"torch": ..., "empty_strided_cuda": ..., ...}        # what the wrapper may use
    call = load_wrapper(source_code, namespace, after_statement)      # call([tensor, ...]) -> tuple of outputs

Only the functions of the module are compiled: no kernel is built, and nothing is imported that needs Triton.
"""

import ast
import re
from collections.abc import Callable
from typing import Any

import torch

FILENAME = "<inductor wrapper>"  # what tracebacks call the wrapper's source

_IGNORED = ("get_args", "benchmark_compiled_module")  # the file's own benchmark
_CONSTANT = re.compile(r"^(\w+) = None  # (device\(.*?\)) (torch\.\w+) (\(.*?\)) (\(.*?\)) ", re.MULTILINE)
_AFTER = "_after_statement"
_RESULT = "_result"
_ITEM = "_item"


def load_wrapper(
    source: str, namespace: dict[str, Any], after_statement: Callable[[int], None]
) -> Callable[[list[Any]], Any]:
    """The wrapper's `call`. `after_statement(line)` runs after each of its statements, before it returns too.

    `namespace` becomes the module's globals: what it lacks, and the source does not define as a function, is a
    NameError when `call` reaches it.
    """
    module = _Items().visit(ast.parse(source))
    kept: list[ast.stmt] = []
    for statement in module.body:
        if isinstance(statement, ast.FunctionDef) and statement.name not in _IGNORED:
            kept.append(_Marked().visit(statement))
        elif isinstance(statement, ast.ClassDef):  # Runner, from torch 2.9 on
            for method in statement.body:
                if isinstance(method, ast.FunctionDef) and method.name == "call":
                    _Marked().visit(method)
            kept.append(statement)
        elif isinstance(statement, ast.Assign) and ast.unparse(statement).startswith(("runner = ", "call = ")):
            kept.append(statement)
    module.body = kept
    namespace |= {_AFTER: after_statement, _ITEM: _item}
    exec(compile(ast.fix_missing_locations(module), FILENAME, "exec"), namespace)
    call: Callable[[list[Any]], Any] = namespace["call"]
    return call


def kernels_of(source: str) -> list[str]:
    """Names of the kernels that the wrapper compiles: `name = async_compile.triton(...)`, `.cpp_pybinding(...)`."""
    return [
        target.id
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.value, ast.Call)
        and ast.unparse(statement.value.func).startswith("async_compile.")
        for target in statement.targets
        if isinstance(target, ast.Name)
    ]


def constants_of(source: str) -> dict[str, tuple[str, str, tuple[int, ...], tuple[int, ...]]]:
    """Name → (device, dtype, shape, stride) of the tensors that inductor attaches to the module after loading it."""
    found = {}
    for name, device, dtype, shape, stride in _CONSTANT.findall(source):
        kind = re.search(r"type='(\w+)'", device)
        assert kind is not None
        found[name] = (kind[1], dtype.removeprefix("torch."), ast.literal_eval(shape), ast.literal_eval(stride))
    return found


def _item(value: Any, key: Any) -> Any:
    """`value[key]`. A fake tensor's own `[...]` wants PyTorch to be built for its device."""
    if isinstance(value, torch.Tensor) and isinstance(key, slice):
        return torch.ops.aten.slice.Tensor(value, 0, key.start, key.stop, key.step or 1)
    return value[key]


class _Items(ast.NodeTransformer):
    """`a[b]`, where it is read, becomes `_item(a, b)`."""

    def visit_Subscript(self, node: ast.Subscript) -> ast.AST:
        self.generic_visit(node)
        if not isinstance(node.ctx, ast.Load):
            return node
        key = node.slice
        if isinstance(key, ast.Slice):
            ends = [end or ast.Constant(None) for end in (key.lower, key.upper, key.step)]
            key = ast.Call(func=ast.Name("slice", ast.Load()), args=ends, keywords=[])
        call = ast.Call(func=ast.Name(_ITEM, ast.Load()), args=[node.value, key], keywords=[])
        return ast.copy_location(call, node)


class _Marked(ast.NodeTransformer):
    """Puts `_after_statement(line)` after each simple statement; `return x` becomes `_result = x`, the mark, return."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list):
                setattr(node, name, [new for old in block for new in self._marked(old)])
        return node

    def _marked(self, statement: ast.stmt) -> list[ast.stmt]:
        if hasattr(statement, "body"):
            return [self.visit(statement)]
        mark = ast.parse(f"{_AFTER}({statement.lineno})").body[0]
        if not isinstance(statement, ast.Return) or statement.value is None:
            return [statement, mark]
        result = ast.Assign(targets=[ast.Name(_RESULT, ast.Store())], value=statement.value)
        after = [result, mark, ast.Return(value=ast.Name(_RESULT, ast.Load()))]
        for new in after:
            ast.copy_location(new, statement)
        return after
