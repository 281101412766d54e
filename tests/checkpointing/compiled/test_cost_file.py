"""Measured costs are kept on disk: nothing is measured twice, and no line is trusted that was not written whole."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from blockshock.measure.cache import cache_folder
from checkpointing.compiled.costs.cost_file import OperatorCost, append_cost, cost_path
from checkpointing.compiled.costs.costs import Costs
from checkpointing.compiled.costs.operator_call import call_of
from tests.checkpointing.compiled.counted_operator import RUNS, counted, counted_node, operators
from tests.import_graph import ROOT

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "blockshock"
    RUNS.reset()


def test_operators_that_are_called_alike_are_measured_once_and_a_later_process_measures_none():
    nodes = operators(lambda x, y: counted(counted(x, 2.0), 2.0) + counted(y, 2.0), torch.ones(3, 4), torch.ones(3, 4))
    costs = Costs(CPU)
    costs.measure(nodes[:1])
    assert RUNS.count() > 0
    costs.measure(nodes)
    later = Costs(CPU)
    later.measure(nodes)
    assert later.seconds(nodes[0]) == costs.seconds(nodes[1]) == later.seconds(nodes[2])
    assert RUNS.count() == 0


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(lambda: counted_node(factor=3.0), id="scalar"),
        pytest.param(lambda: counted_node(torch.ones(3, 4, dtype=torch.float64)), id="dtype"),
        pytest.param(lambda: counted_node(torch.ones(4, 3).T), id="stride"),
        pytest.param(lambda: counted_node(torch.ones(4, 3)), id="shape"),
    ],
)
def test_another_scalar_dtype_stride_or_shape_is_another_operator(other):
    costs = Costs(CPU)
    costs.measure([counted_node()])
    RUNS.count()
    costs.measure([other()])
    assert RUNS.count() > 0


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def _seconds_changed(line: str) -> str:
    return json.dumps(json.loads(line) | {"seconds": 1e-9})


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lambda line: line[: len(line) // 2], id="cut"),
        pytest.param(lambda line: line[:-1], id="last character"),
        pytest.param(_seconds_changed, id="another number"),
        pytest.param(lambda line: json.dumps(json.loads(line) | {"seconds": "1"}), id="text"),
        pytest.param(lambda line: line.replace("torch 2", "torch 1"), id="another version"),
        pytest.param(lambda line: json.dumps(json.loads(line) | {"inside_bytes": 7}), id="other bytes"),
        pytest.param(lambda line: json.dumps(json.loads(line) | {"inside_bytes": -1.5}), id="no bytes"),
        pytest.param(lambda line: json.dumps([line]), id="a list"),
        pytest.param(lambda line: json.dumps({"seconds": 1.0}), id="a part"),
        pytest.param(lambda line: "\x00\xff\ud800", id="binary"),
        pytest.param(lambda line: "", id="empty"),
    ],
)
def test_a_damaged_line_is_measured_again_and_the_others_count(damage):
    kept, lost = counted_node(), counted_node(factor=3.0)
    costs = Costs(CPU)
    costs.measure([kept, lost])
    first, second = costs.path.read_text().splitlines()
    costs.path.write_bytes(f"{first}\n{damage(second)}".encode(errors="surrogatepass"))
    RUNS.count()
    known = Costs(CPU)
    assert known.seconds(kept) == costs.seconds(kept)
    assert RUNS.count() == 0
    assert known.seconds(lost) != 1e-9
    assert RUNS.count() > 0
    known = Costs(CPU)  # a cut last line does not take the next one with it
    known.measure([kept, lost])
    assert RUNS.count() == 0


def test_costs_of_another_version_or_setting_are_not_used():
    costs, node = Costs(CPU), counted_node()
    for where in (costs.where.replace("torch 2", "torch 1"), f"{costs.where}, more"):
        append_cost(costs.path, where, str(call_of(node)), OperatorCost(123.0))
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        Costs(CPU).measure([node])
    finally:
        torch.set_num_threads(threads)
    assert RUNS.count() > 0
    assert Costs(CPU).seconds(node) < 123
    assert RUNS.count() > 0


def test_of_two_processes_that_measure_at_once_the_first_to_write_counts_for_both():
    node, costs = counted_node(), Costs(CPU)
    RUNS.during = lambda x: append_cost(costs.path, costs.where, str(call_of(node)), OperatorCost(123.0))
    assert costs.seconds(node) == 123
    assert Costs(CPU).seconds(node) == 123


TWO_AT_ONCE = """
    import json, sys, time, pathlib, torch
    from torch.fx.experimental.proxy_tensor import make_fx
    from checkpointing.compiled.costs.costs import Costs
    torch.set_num_threads(1)  # two processes that wait for each other's threads are slow
    ready = pathlib.Path(sys.argv[1])
    nodes = []
    for n in range(1, 60):
        graph = make_fx(torch.mm, tracing_mode="fake")(torch.ones(4, n), torch.ones(n, 4)).graph
        nodes += [node for node in graph.nodes if node.op == "call_function"]
    costs = Costs(torch.device("cpu"))
    (ready / sys.argv[2]).touch()
    while len(list(ready.iterdir())) < 2:
        time.sleep(0.001)
    costs.measure(nodes)
    print(json.dumps([costs.seconds(node) for node in nodes]))
"""


@pytest.mark.slow
def test_two_processes_write_at_once_and_agree(tmp_path):
    (tmp_path / "ready").mkdir()
    command = [sys.executable, "-c", textwrap.dedent(TWO_AT_ONCE), tmp_path / "ready"]
    pair = [subprocess.Popen([*command, str(n)], cwd=ROOT, stdout=subprocess.PIPE, text=True) for n in range(2)]
    first, second = (json.loads(process.communicate(timeout=120)[0]) for process in pair)
    assert first == second
    (path,) = (tmp_path / "blockshock").iterdir()
    assert len({line["call"] for line in _lines(path)}) == 59


def test_without_a_folder_to_write_costs_are_in_memory_and_that_is_said_once(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    costs, nodes = Costs(CPU), [counted_node(), counted_node(factor=3.0)]
    costs.measure(nodes)
    RUNS.count()
    costs.measure(nodes)
    assert RUNS.count() == 0
    Costs(CPU).measure(nodes)
    assert RUNS.count() > 0
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == [
        f"costs of operators can't be kept in {costs.path} (Not a directory): the next process measures them again"
    ]


@pytest.mark.parametrize("given", [True, False])
def test_costs_are_kept_where_blockshock_keeps_its_measurements(monkeypatch, given):
    if not given:
        monkeypatch.delenv("XDG_CACHE_HOME")
    assert cost_path("a GPU").parent == cache_folder()
