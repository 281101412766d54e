"""Trace files as they are found: packed, cut, empty, with a byte order mark, with quotation marks in names."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from profiler.errors import ProfilerError
from profiler.traces import KernelDataCollector, ModuleProfile
from profiler.traces.trace_file import load_trace_file


@pytest.fixture(scope="module")
def recorded() -> bytes:
    collector = KernelDataCollector(device="cpu")
    with collector, collector.step():
        nn.Linear(6, 3)(torch.randn(4, 6)).sum().backward()
    return collector.trace.text


def read(folder: Path, name: str, content: bytes) -> KernelDataCollector:
    (folder / name).write_bytes(content)
    return KernelDataCollector.from_chrome_trace(folder / name, on_cpu=True)


def test_a_packed_file_and_one_with_a_byte_order_mark_are_read_like_the_plain_one(
    recorded: bytes, tmp_path: Path
) -> None:
    plain = read(tmp_path, "plain.json", recorded)
    assert plain.kernels
    assert read(tmp_path, "packed.json.gz", gzip.compress(recorded)).kernels == plain.kernels
    assert read(tmp_path, "bom.json", b"\xef\xbb\xbf" + recorded).kernels == plain.kernels


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("cut.json", lambda text: text[: len(text) // 2], "ends in the middle"),
        ("cut.json.gz", lambda text: gzip.compress(text)[:-20], "cannot be read"),
        ("empty.json", lambda text: b"", "is empty"),
        ("list.json", lambda text: b"[1, 2]", "no list traceEvents"),
        ("other.json", lambda text: b'{"traceEvents": [{"ph": "X", "cat": "cpu_op"}]}', "writes no such event"),
        ("words.json", lambda text: b"{not json}", "no JSON from line 1"),
    ],
)
def test_what_cannot_be_read_is_one_line_that_names_the_file(recorded, tmp_path, name, change, reason) -> None:
    with pytest.raises(ProfilerError, match=reason) as caught:
        read(tmp_path, name, change(recorded))
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_cut_anywhere_ends_in_the_middle(tmp_path: Path) -> None:
    whole = '{"traceEvents": [{"ph": "X", "name": "{a}", "ts": 1.50, "args": {"b": [1, true, {}]}}]}'
    for length in range(1, len(whole)):
        (tmp_path / "cut.json").write_text(whole[:length])
        with pytest.raises(ProfilerError, match="ends in the middle"):
            load_trace_file(tmp_path / "cut.json")


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ProfilerError, match=r"nowhere\.json cannot be read"):
        KernelDataCollector.from_chrome_trace("nowhere.json")


def test_quotation_marks_in_the_name_of_a_module_keep_the_trace_and_the_saved_file_is_json(tmp_path: Path) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({'say "hi", "pid": 3': nn.Linear(6, 8)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            (part,) = self.parts.values()
            return part(x)

    net = Net()
    collector = KernelDataCollector(net, device="cpu")
    with collector, collector.step():
        net(torch.randn(4, 6)).sum().backward()
    assert 'parts.say "hi", "pid": 3' in set(ModuleProfile(collector).modules["module"])
    collector.save_trace(tmp_path / "trace.json")
    json.loads((tmp_path / "trace.json").read_text())


def test_names_of_releases_that_write_several_fields_on_a_line_are_mended(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    path.write_text(
        '{"traceEvents": [{\n"ph": "X", "cat": "cpu_op", "name": "say "hi"", "pid": 1, "tid": 1,\n"ts": 1}]}'
    )
    _, content = load_trace_file(path)
    assert content["traceEvents"][0]["name"] == 'say "hi"'
